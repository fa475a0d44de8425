"""``inferbus drain``: a worker, or all of a machine, takes nothing new and finishes; no request fails."""

import json
import time
from datetime import timedelta
from typing import Any

import click
from inferbus.scheduler.v1.scheduler_pb2 import DrainWorkersResponse
from inferbus_runtime import clock

from inferbus_cli.edge import PATIENCE, Edge, Refused, Unreachable
from inferbus_cli.fleet import Fleet, fleet_of
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import Lifetime
from inferbus_cli.text import count, seconds

_EVERY_SECONDS = 0.2
# Longer than what was placed on a worker before it was heard to drain may take to get there.
_QUIET_SECONDS = 1.5


@click.command()
@click.argument("name", metavar="WORKER|NODE")
@click.option(
    "--grace",
    type=Lifetime(),
    default="30s",
    show_default=True,
    help="How long what runs may take to end where it is; what is left then goes on at other workers. 0s: all at once.",
)
@click.option("--wait", is_flag=True, help="Until nothing runs there; Ctrl-C stops the waiting, not the draining.")
@json_option
@with_target
def drain(target: Target, name: str, grace: timedelta, wait: bool, as_json: bool) -> None:
    """Take no new work at a worker, or at all workers of a machine, and finish what runs, there or elsewhere.

    What is drained can be stopped at any time. It takes work again when its process is started anew.
    """
    began = clock.monotonic()
    with Edge(target) as edge:
        before = fleet_of(edge, PATIENCE)
        body = {**_target(name, before), "grace": grace.total_seconds()}
        drained = edge.ask("POST", "/fleet/drain", DrainWorkersResponse(), json=body, patience=PATIENCE)
        names = sorted(drained.workers)
        boots = {one.record.worker: one.record.boot for one in before.picture.workers if one.record.worker in names}
        if not as_json:
            click.echo(f"{_listed(names)} {'drains' if len(names) == 1 else 'drain'}.")
        if wait:
            _until_drained(edge, boots, quiet=as_json)
    took = clock.monotonic() - began
    if as_json:
        shown: dict[str, Any] = {"workers": names}
        click.echo(json.dumps(shown | ({"seconds": round(took, 3)} if wait else {})))
    elif wait:
        click.echo(f"Drained after {seconds(took)}: nothing runs there.")


def _target(name: str, fleet: Fleet) -> dict[str, str]:
    """Whose name it is. Raises Refused; a worker comes first."""
    workers = fleet.picture.workers
    if any(one.record.worker == name for one in workers):
        return {"worker": name}
    if any(one.record.node == name for one in workers):
        return {"node": name}
    known = sorted({one.record.worker for one in workers} | {one.record.node for one in workers if one.record.node})
    raise Refused(f"there is no worker and no machine called '{name}'; there is {_listed(known) or 'none'}")


def _until_drained(edge: Edge, boots: dict[str, int], *, quiet: bool) -> None:
    """Until these incarnations have had nothing to do for a moment, or are gone."""
    running, quiet_since = 0, clock.monotonic()
    while clock.monotonic() - quiet_since < _QUIET_SECONDS:
        time.sleep(_EVERY_SECONDS)
        try:
            workers = fleet_of(edge).picture.workers
        except (Refused, Unreachable):  # schedulers change, edges restart: what drains goes on
            quiet_since = clock.monotonic()
            continue
        there = [one for one in workers if boots.get(one.record.worker) == one.record.boot]
        if not there:
            return
        left = sum(one.active + one.on_the_way for one in there)
        if left:
            quiet_since = clock.monotonic()
            if left != running and not quiet:
                click.echo(f"{count(left)} still run there.")
        running = left


def _listed(names: list[str]) -> str:
    return ", ".join(names)

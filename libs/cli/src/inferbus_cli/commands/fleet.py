"""``inferbus fleet``: who works, on which machine, how full, and who decides."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.registry_pb2 import WorkerState
from inferbus.scheduler.v1.scheduler_pb2 import FleetWorker
from inferbus_runtime import clock
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from inferbus_cli.edge import PATIENCE, Edge, Refused, Unreachable
from inferbus_cli.fleet import Fleet, fleet_of, from_cache, kv_used, queued, shards_of, state_of
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import age, count, duration, rfc3339, seconds

_TTFT_MINUTES = 5
# The figures come out of the store: not with every refresh.
_TTFT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class View:
    """One look. ``ttft``: of each worker the 95th percentile of the last minutes, in seconds. A part that did not
    answer is empty, and ``problems`` says why."""

    fleet: Fleet | None
    ttft: Mapping[str, float]
    problems: tuple[str, ...] = ()


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds per refresh.")
@click.option("--once", is_flag=True, help="Print once and end, for scripts.")
@json_option
@with_target
def fleet(target: Target, interval: float, once: bool, as_json: bool) -> None:
    """Show workers by machine, queues and schedulers, live (needs an admin key)."""
    with Edge(target) as edge:
        view = _look(edge, _ttft(edge), PATIENCE if once or as_json else 0.0)
        if once or as_json:
            if view.fleet is None:
                raise Refused("; ".join(view.problems))
            if as_json:
                click.echo(_json(view.fleet, view.ttft))
            else:
                terminal().print(render(view, target.url, clock.now_us()))
            return
        _watch(edge, view, target.url, interval)


def _watch(edge: Edge, view: View, url: str, interval: float) -> None:
    """Until Ctrl-C."""
    asked = clock.monotonic()
    console, first = terminal(), render(view, url, clock.now_us())
    with Live(first, console=console, screen=True, auto_refresh=False) as display:
        while True:
            try:
                time.sleep(interval)
                ttft = view.ttft
                if clock.monotonic() - asked > _TTFT_SECONDS:
                    ttft, asked = _ttft(edge), clock.monotonic()
                view = _look(edge, ttft)
                display.update(render(view, url, clock.now_us()), refresh=True)
            except KeyboardInterrupt:
                return


def _look(edge: Edge, ttft: Mapping[str, float], patience: float = 0.0) -> View:
    try:
        return View(fleet_of(edge, patience), ttft)
    except (Refused, Unreachable) as error:
        return View(None, ttft, (error.message,))


def _ttft(edge: Edge) -> dict[str, float]:
    """Empty if the meter does not say: the fleet is shown without it."""
    now = datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    since = now - timedelta(minutes=_TTFT_MINUTES)
    query = {"measure": "ttft", "by": "worker", "start": rfc3339(since), "end": rfc3339(now)}
    try:
        rows = edge.facts("/analytics", params={**query, "step": f"{_TTFT_MINUTES * 60}s"}).get("rows", [])
    except (Refused, Unreachable):
        return {}
    return {row["group"]["worker"]: row["numbers"]["p95"] for row in rows if row.get("numbers", {}).get("p95")}


def render(view: View, url: str, now_us: int) -> RenderableType:
    parts: list[RenderableType] = [Text(f"Fleet of {url}", style="bold")]
    if view.fleet is not None:
        workers = view.fleet.picture.workers
        for node in sorted({one.record.node for one in workers}):
            parts += _node(node, [one for one in workers if one.record.node == node], view.ttft, now_us)
        if not workers:
            parts.append(Text("no worker has registered", style="red"))
        parts += [Text(queued(view.fleet.picture)), *_schedulers(view.fleet)]
    return Group(*parts, *(Text(problem, style="red") for problem in view.problems))


def _node(
    node: str, workers: Sequence[FleetWorker], ttft: Mapping[str, float], now_us: int
) -> tuple[RenderableType, RenderableType]:
    zones = sorted({one.record.zone for one in workers if one.record.zone})
    where = f" ({', '.join(zones)})" if zones else ""
    active, room = sum(one.active for one in workers), sum(one.record.capacity for one in workers)
    many = "1 worker" if len(workers) == 1 else f"{count(len(workers))} workers"
    head = f"{node or 'machine not named'}{where}: {many}, {count(active)} of {count(room)} run"
    table = Rows(
        *(Column("worker"), Column("state"), Column("model"), Column("revision", spare=3), Column("engine", spare=7)),
        *(Column("load", number=True), Column("KV used", number=True, spare=1)),
        *(Column("from cache", number=True, spare=4), Column("TTFT P95", number=True, spare=2)),
        *(Column("GPUs", spare=9), Column("up", number=True, spare=5), Column("start", number=True, spare=8)),
        Column("heartbeat", number=True, spare=6),
    )
    for one in sorted(workers, key=lambda one: one.record.worker):
        table.add(*_worker(one, ttft, now_us), dim=one.record.state != WorkerState.WORKER_STATE_ACTIVE)
    return Text(f"\n{head}"), table


def _worker(worker: FleetWorker, ttft: Mapping[str, float], now_us: int) -> tuple[str, ...]:
    record = worker.record
    coming = f" +{count(worker.on_the_way)}" if worker.on_the_way else ""
    gpus = f"{record.gpus} × {record.gpu_names}" if record.gpus else "-"
    return (
        *(record.worker, state_of(record), record.model, record.revision, record.engine),
        *(f"{count(worker.active)}{coming}/{count(record.capacity)}", kv_used(worker.engine)),
        *(from_cache(worker.engine), seconds(ttft.get(record.worker, 0.0)), gpus),
        *(age(max(0.0, (now_us - record.boot) / 1e6)), duration(record.start.total_duration)),
        *(f"{duration(worker.heartbeat_age)} ago",),
    )


def _schedulers(fleet: Fleet) -> list[RenderableType]:
    if not fleet.schedulers.schedulers:
        return []
    table = Rows(Column("scheduler"), Column("holds shards"))
    for one in sorted(fleet.schedulers.schedulers, key=lambda one: one.name):
        table.add(one.name, shards_of(list(one.shards)) or "none: it stands by")
    return [table]


def _json(fleet: Fleet, ttft: Mapping[str, float]) -> str:
    options: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    shown = MessageToDict(fleet.picture, **options)
    # "self" is of no meaning behind an edge.
    schedulers = [{"name": one.name, "shards": list(one.shards)} for one in fleet.schedulers.schedulers]
    return json.dumps({**shown, "schedulers": schedulers, "ttft_p95_seconds": ttft})

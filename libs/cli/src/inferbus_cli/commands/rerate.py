"""``inferbus rerate``: what the present prices make of charges, and corrections."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
from inferbus.meter.v1.prices_pb2 import RerateChange, RerateResponse, RerateSummary
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inferbus_cli.edge import Edge, Refused, as_message
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339
from inferbus_cli.timerange import time_range

_REFUSED = {"currency": "left: it was charged in another currency"}


@click.command()
@time_range
@click.option("--tenant", help="Only this tenant's.")
@click.option("--apply", is_flag=True, help="Write the corrections; without it nothing is changed.")
@click.option("--reason", help="Said in each correction.")
@json_option
@with_target
def rerate(
    target: Target,
    since: datetime | None,
    until: datetime | None,
    tenant: str | None,
    apply: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Compare charges with what the present price book makes of them, and show the difference.

    A correction is added to a charge, and never made twice: running it again changes nothing.
    """
    if since is None:
        raise click.UsageError("say from when on: --since")
    body = {
        "start": rfc3339(since), "end": until and rfc3339(until), "tenant": tenant, "apply": apply, "reason": reason
    }  # fmt: skip
    with Edge(target) as edge:
        events = edge.lines("POST", "/rerate", json={name: value for name, value in body.items() if value})
        if as_json:
            for event in events:
                click.echo(json.dumps(event))
            return
        changes, summary = _read(events)
    if summary is None:
        raise Refused("the re-rating ended without a summary")
    console = terminal()
    if changes:
        console.print(_table(changes))
    console.print(_conclusion(summary))


def _read(events: Iterator[dict[str, Any]]) -> tuple[list[RerateChange], RerateSummary | None]:
    changes: list[RerateChange] = []
    summary = None
    columns = (TextColumn("reading requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal(), transient=True) as progress:
        task = progress.add_task("", total=None)
        for event in events:
            message = as_message(event, RerateResponse())
            if message.HasField("progress"):
                step = message.progress
                progress.update(task, total=step.requests_total, completed=step.requests_read)
            elif message.HasField("change"):
                changes.append(message.change)
            elif message.HasField("summary"):
                summary = message.summary
    return changes, summary


def _table(changes: list[RerateChange]) -> Rows:
    left = any(change.refused for change in changes)
    table = Rows(
        *(Column("tenant"), Column("model"), Column("from"), Column("to"), Column("requests", number=True, spare=1)),
        *(Column("charged", number=True, spare=2), Column("by now", number=True, spare=3)),
        Column("difference", number=True),
        *([Column("", folds=True)] if left else []),
    )
    for change in changes:
        table.add(
            *(change.tenant_id, change.model, change.from_rate_version or "-", change.to_rate_version or "-"),
            *(count(change.requests), change.from_charge, change.to_charge),
            f"{change.delta} {change.currency}",
            *([_REFUSED.get(change.refused, change.refused)] if left else []),
            dim=bool(change.refused),
        )
    return table


def _conclusion(summary: RerateSummary) -> str:
    of = f"of {count(summary.requests)} requests"
    left = f" {count(summary.refused_requests)} are left as they are." if summary.refused_requests else ""
    if not summary.changed_requests:
        return f"No charge {of} is to be corrected.{left}"
    if summary.applied:
        return f"{count(summary.changed_requests)} {of} are corrected, by {summary.rerate_id}.{left}"
    return f"{count(summary.changed_requests)} {of} would be corrected. Nothing is changed: --apply does it.{left}"

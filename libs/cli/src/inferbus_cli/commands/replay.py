"""``inferbus replay``: make the tables from the log again."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
from inferbus.meter.v1.replay_pb2 import ReplayResponse, ReplaySummary
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inferbus_cli.edge import Edge, Refused, as_message
from inferbus_cli.tables import terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339
from inferbus_cli.timerange import time_range


@click.command()
@time_range
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait until all of the range is stored.")
@json_option
@with_target
def replay(
    target: Target, since: datetime | None, until: datetime | None, dry_run: bool, timeout: float, as_json: bool
) -> None:
    """Make ClickHouse equal to the log: rows of tokens and requests, and the sums made of them.

    What agrees is not touched, so running it again changes nothing. What the log does not hold any more is left alone.
    """
    body = {
        "start": since and rfc3339(since), "end": until and rfc3339(until), "dry_run": dry_run, "timeout": timeout
    }  # fmt: skip
    with Edge(target) as edge:
        asked = {name: value for name, value in body.items() if value is not None}
        events = edge.lines("POST", "/replay", json=asked, patience=timeout)
        if as_json:
            for event in events:
                click.echo(json.dumps(event))
            return
        summary = _read(events)
    if summary is None:
        raise Refused("the replay ended without a summary")
    terminal().print(_conclusion(summary), highlight=False)


def _read(events: Iterator[dict[str, Any]]) -> ReplaySummary | None:
    summary = None
    columns = (TextColumn("reading frames"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal(), transient=True) as progress:
        task = progress.add_task("", total=None)
        for event in events:
            message = as_message(event, ReplayResponse())
            if message.HasField("progress"):
                step = message.progress
                progress.update(task, total=step.frames_total, completed=step.frames_read)
            elif message.HasField("summary"):
                summary = message.summary
    return summary


def _conclusion(summary: ReplaySummary) -> str:
    done = "would be" if summary.dry_run else "were"
    span = f"frames {summary.first_sequence} to {summary.last_sequence}"
    lines = []
    if not (summary.tokens_before or summary.tokens_after or summary.requests_before or summary.requests_after):
        lines.append(
            f"[bold green]All rows agree[/] with {span}: nothing {'would be' if summary.dry_run else 'was'} changed."
        )
    else:
        lines.append(
            f"[bold]Rows that did not agree[/] with {span}: {count(summary.tokens_before)} of tokens {done} replaced "
            f"by {count(summary.tokens_after)}, {count(summary.requests_before)} of requests by "
            f"{count(summary.requests_after)}."
        )
    lines += [
        f"Charges of these requests: {one.before} {one.currency} before, {one.after} after." for one in summary.charges
    ]
    if summary.minutes or summary.hours:
        lines.append(f"Sums of {count(summary.minutes)} minutes and {count(summary.hours)} hours {done} made anew.")
    if summary.minutes_left:
        lines.append(f"{count(summary.minutes_left)} minutes were not looked at: not over, or not whole on the log.")
    if summary.not_held:
        lines.append(f"[yellow]{summary.not_held[:1].upper()}{summary.not_held[1:]}.[/]")
    return "\n".join(lines)

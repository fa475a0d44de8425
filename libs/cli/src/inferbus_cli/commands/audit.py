"""``inferbus audit``: prove that what was delivered is what is stored and what is billed."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
from inferbus.meter.v1.meter_pb2 import AuditDifference, AuditResponse, AuditSummary
from inferbus_contracts.ids import REQUEST_ID_BYTES, uuid_text
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inferbus_cli.edge import Edge, Refused, as_message
from inferbus_cli.tables import terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339
from inferbus_cli.timerange import time_range

_FOUND_DIFFERENCES = 1


@click.command()
@time_range
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait until all of the range is stored.")
@json_option
@with_target
def audit(target: Target, since: datetime | None, until: datetime | None, timeout: float, as_json: bool) -> None:
    """Compare, request by request: tokens on the log, in ClickHouse, billed, and what edges say they delivered.

    Exit code 0: all equal; 1: there are differences, each of which is named; 2: the audit could not be done.
    """
    body = {"start": since and rfc3339(since), "end": until and rfc3339(until), "timeout": timeout}
    with Edge(target) as edge:
        asked = {name: value for name, value in body.items() if value is not None}
        events = edge.lines("POST", "/audit", json=asked, patience=timeout)
        summary = _print_json(events) if as_json else _show(events)
    if summary is None:
        raise Refused("the audit ended without a summary")
    if summary.differences:
        raise SystemExit(_FOUND_DIFFERENCES)


def _print_json(events: Iterator[dict[str, Any]]) -> AuditSummary | None:
    """One line an event, as it comes; request ids in their public form."""
    summary = None
    for event in events:
        message = as_message(event, AuditResponse())
        if "difference" in event:
            event["difference"]["request_id"] = _request(message.difference)
        if message.HasField("summary"):
            summary = message.summary
        click.echo(json.dumps(event))
    return summary


def _show(events: Iterator[dict[str, Any]]) -> AuditSummary | None:
    summary = None
    console = terminal()
    columns = (TextColumn("reading frames"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for event in events:
            message = as_message(event, AuditResponse())
            if message.HasField("progress"):
                progress.update(task, total=message.progress.frames_total, completed=message.progress.frames_read)
            elif message.HasField("difference"):
                console.print(_difference(message.difference), style="red", highlight=False)
            elif message.HasField("summary"):
                summary = message.summary
    if summary is not None:
        console.print(_conclusion(summary), highlight=False)
    return summary


def _request(difference: AuditDifference) -> str:
    request_id = difference.request_id
    return uuid_text(request_id) if len(request_id) == REQUEST_ID_BYTES else request_id.hex()


def _difference(difference: AuditDifference) -> str:
    detail = f": {difference.detail}" if difference.detail else ""
    if not difference.request_id:
        return f"{difference.reason}{detail}"
    if not (difference.stream_tokens or difference.stored_tokens or difference.billed_tokens):
        return f"{_request(difference)} {difference.reason}{detail}"  # of a column, or of what has no tokens
    counts = f"log {difference.stream_tokens}, stored {difference.stored_tokens}, billed {difference.billed_tokens}"
    if difference.HasField("delivered_tokens"):
        counts += f", delivered {difference.delivered_tokens}"
    return f"{_request(difference)} {difference.reason} (tokens: {counts}){detail}"


def _conclusion(summary: AuditSummary) -> str:
    still = f", {count(summary.open_requests)} of them still open" if summary.open_requests else ""
    verdict = "[bold green]No difference[/]"
    if summary.differences:
        verdict = f"[bold red]{count(summary.differences)} differences[/]"
    return (
        f"{verdict} in {count(summary.requests)} requests{still} (frames {summary.first_sequence} to "
        f"{summary.last_sequence}).\nTokens: {count(summary.stream_tokens)} on the log, "
        f"{count(summary.stored_tokens)} in ClickHouse, {count(summary.billed_tokens)} billed, "
        f"{count(summary.delivered_tokens)} delivered.{_undelivered(summary)}"
    )


def _undelivered(summary: AuditSummary) -> str:
    """What is billed and no client is known to have, which is no difference."""
    text = ""
    if summary.undelivered_requests:
        text += (
            f"\n{count(summary.undelivered_requests)} requests ended before their client had all of them: "
            f"{count(summary.undelivered_tokens)} tokens were generated and not delivered."
        )
    if summary.unknown_deliveries:
        text += f"\nOf {count(summary.unknown_deliveries)} requests no edge has said what it delivered, or not yet."
    return text

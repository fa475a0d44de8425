"""``inferbus requests`` and ``inferbus request ID``: requests found by what they were, and one as a timeline."""

import json
from datetime import datetime
from typing import Any

import click
from google.protobuf.json_format import MessageToJson
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus.meter.v1.requests_pb2 import ListRequestsResponse, RequestSummary

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, duration, moment, rfc3339
from inferbus_cli.timeline import charge_table, event_table, head, lanes
from inferbus_cli.timerange import time_range

_STATUSES = ("stop", "length", "cancelled", "error")
_CLASSES = ("interactive", "background", "batch")
_ORDERS = ("time", "e2e", "ttft", "tokens", "charge")
_MOST = 500


@click.command()
@time_range
@click.option("--tenant", help="Only this tenant's.")
@click.option("--project", help="Only in this project (its id).")
@click.option("--key-id", help="Only by this API key (its id).")
@click.option("--model", help="Only of this model.")
@click.option("--revision", help="Only of this revision of it.")
@click.option("--class", "class_", multiple=True, type=click.Choice(_CLASSES), help="Only of this class.")
@click.option("--user", help="Only for this end user.")
@click.option("--worker", help="Only ended by this worker.")
@click.option("--status", multiple=True, type=click.Choice(_STATUSES), help="How they ended.")
@click.option("--reason", help="The reason of their error, as queue_full.")
@click.option(
    "--order", type=click.Choice(_ORDERS), default="time", show_default=True, help="Latest, slowest, largest, dearest."
)
@click.option("--ascending", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=20, show_default=True)
@click.option("--page", help="The token that the page before ended with.")
@json_option
@with_target
def requests(
    target: Target,
    since: datetime | None,
    until: datetime | None,
    class_: tuple[str, ...],
    status: tuple[str, ...],
    ascending: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """List requests that have ended, of the last day unless --since says otherwise."""
    named = {"key" if name == "key_id" else name: value for name, value in given.items()}
    query = [("start", since and rfc3339(since)), ("end", until and rfc3339(until)), *named.items()]
    query += [("class", one) for one in class_] + [("status", one) for one in status]
    query += [("ascending", "true")] if ascending else []
    with Edge(target) as edge:
        params = [(name, str(value)) for name, value in query if value]
        answer = edge.ask("GET", "/requests", ListRequestsResponse(), params=params, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    if not answer.requests:
        click.echo("No request ended in that time.")
        return
    terminal().print(_table(answer))
    if answer.next_page_token:
        click.echo(f"There are more: --page {answer.next_page_token}")


@click.command()
@click.argument("request_id")
@json_option
@with_target
def request(target: Target, request_id: str, as_json: bool) -> None:
    """Show one request as a timeline. REQUEST_ID: what x-request-id said, or the id of an answer (chatcmpl-...)."""
    with Edge(target) as edge:
        shown = edge.facts(f"/requests/{request_id.strip()}", patience=PATIENCE)
    if as_json:
        click.echo(json.dumps(shown))
        return
    console = terminal()
    console.print(head(shown), highlight=False)
    for part in (lanes(shown), event_table(shown), charge_table(shown)):
        if part is not None:
            console.print(part)


def _table(answer: ListRequestsResponse) -> Rows:
    table = Rows(
        *(Column("ended (UTC)"), Column("request"), Column("tenant", spare=2), Column("model", spare=1)),
        *(Column("status"), Column("input", number=True, spare=4), Column("output", number=True, spare=3)),
        *(Column("queue", number=True, spare=7), Column("TTFT", number=True, spare=5), Column("E2E", number=True)),
        *(Column("charge", number=True, spare=6), Column("worker", spare=8)),
    )
    for one in answer.requests:
        table.add(
            *(moment(one.end_time), one.request_id, one.tenant_id, one.model, _status(one)),
            *(count(one.input_tokens), count(one.output_tokens)),
            *(duration(one.queue), duration(one.ttft), duration(one.e2e)),
            *(f"{one.charge} {one.currency}" if one.currency else "", one.worker),
            dim=one.attempts == 0,
        )
    return table


def _status(one: RequestSummary) -> str:
    if one.error_reason:
        return one.error_reason
    return FinishReason.Name(one.finish_reason).removeprefix("FINISH_REASON_").lower()

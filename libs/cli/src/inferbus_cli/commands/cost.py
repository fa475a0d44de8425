"""``inferbus cost`` and ``inferbus margin``: what was charged, and what it cost the operator to serve it."""

from datetime import datetime, timedelta
from typing import Any

import click
from google.protobuf.json_format import MessageToJson
from inferbus.meter.v1.usage_pb2 import QueryCostsResponse, QueryMarginResponse

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.report import bucket_cell, cells, query_of, report_options
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339
from inferbus_cli.timerange import time_range

# What is not written yet, and the minute in which the first meter began, are no gap.
_SAID_FROM = timedelta(minutes=2)


@click.command()
@report_options
@click.option("--line-items", is_flag=True, help="Split into input, output, calls, corrections; volume discounts.")
@json_option
@with_target
def cost(
    target: Target,
    since: datetime | None,
    until: datetime | None,
    by: tuple[str, ...] | None,
    bucket: str | None,
    line_items: bool,
    as_json: bool,
    **only: Any,
) -> None:
    """Show what was charged, corrections included, by tenant and project or by what --by and --bucket say.

    Volume discounts are in no charge: they are lines of their own with --line-items.
    """
    names = by if by is not None else ("tenant", "project")
    query = query_of(since, until, names, bucket, only) + ([("line_items", "true")] if line_items else [])
    with Edge(target) as edge:
        answer = edge.ask("GET", "/costs", QueryCostsResponse(), params=query, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    terminal().print(_table(answer, names, bucket) if answer.rows else "Nothing was charged in that time.")


def _table(answer: QueryCostsResponse, by: tuple[str, ...], bucket: str | None) -> Rows:
    """Charges from estimated tokens are rows of their own, and so are currencies."""
    split = any(row.line_item for row in answer.rows)
    mixed, timed = any(row.estimated for row in answer.rows), bucket not in (None, "all")
    table = Rows(
        *([Column(f"{bucket} (UTC)")] if timed else []),
        *(Column(name) for name in by),
        *([Column("line item"), Column("tokens", number=True, spare=1)] if split else []),
        Column("cost", number=True),
        *([Column("tokens are")] if mixed else []),
    )
    for row in answer.rows:
        table.add(
            *([bucket_cell(row.bucket_time.seconds, bucket)] if timed and bucket else []),
            *cells(row.group, by),
            *([row.line_item, count(row.quantity) if row.HasField("quantity") else ""] if split else []),
            f"{row.amount} {row.currency}",
            *(["estimated" if row.estimated else "counted"] if mixed else []),
        )
    return table


@click.command()
@time_range
@json_option
@with_target
def margin(target: Target, since: datetime | None, until: datetime | None, as_json: bool) -> None:
    """Show what each worker earned, and what its GPUs, idle or not, and its energy cost (needs an admin key)."""
    asked = {"start": since and rfc3339(since), "end": until and rfc3339(until)}
    with Edge(target) as edge:
        given = {name: value for name, value in asked.items() if value}
        answer = edge.ask("GET", "/margin", QueryMarginResponse(), params=given, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    terminal().print(_margins(answer) if answer.rows else "Nothing ran in that time.")
    unwatched = answer.unwatched.ToTimedelta()
    if unwatched >= _SAID_FROM:
        hours = f"{unwatched.total_seconds() / 3600:,.2f} h"
        terminal().print(f"No meter watched for {hours} of that time: GPU hours are at least these.")


def _margins(answer: QueryMarginResponse) -> Rows:
    table = Rows(
        *(Column("model"), Column("revision", spare=3), Column("worker"), Column("engine", spare=4)),
        *(Column("GPUs", number=True, spare=4), Column("output", number=True, spare=2)),
        *(Column("revenue", number=True), Column("GPU h", number=True), Column("busy", number=True)),
        *(Column("GPU cost", number=True), Column("energy Wh", number=True, spare=1)),
        *(Column("energy cost", number=True, spare=1), Column("margin", number=True)),
    )
    for row in answer.rows:
        revenue = ", ".join(f"{one.value} {one.currency}" for one in row.revenue)
        busy = f"{row.utilization:.1%}" if row.HasField("utilization") else f"{row.busy_gpu_hours:,.3f} h"
        energy = f"{row.energy_joules / 3600:,.1f}" if row.HasField("energy_joules") else "-"
        table.add(
            *(row.model, row.revision, row.worker, row.engine, count(row.gpus), count(row.output_tokens)),
            *(revenue or "-", f"{row.gpu_hours:,.3f}", busy, _money(row.gpu_cost, answer), energy),
            *(_money(row.energy_cost, answer), _money(row.margin, answer)),
        )
    return table


def _money(amount: str, answer: QueryMarginResponse) -> str:
    return f"{amount} {answer.currency}" if amount else "-"

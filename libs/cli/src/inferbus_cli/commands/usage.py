"""``inferbus usage``: what was used and what it cost."""

from datetime import datetime

import click
from google.protobuf.json_format import MessageToJson
from inferbus.meter.v1.meter_pb2 import GetUsageResponse

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339
from inferbus_cli.timerange import time_range


@click.command()
@time_range
@click.option("--tenant", help="Only this tenant's.")
@json_option
@with_target
def usage(target: Target, since: datetime | None, until: datetime | None, tenant: str | None, as_json: bool) -> None:
    """Show tokens and cost by tenant, project and model."""
    asked = {"start": since and rfc3339(since), "end": until and rfc3339(until), "tenant": tenant}
    with Edge(target) as edge:
        given = {name: value for name, value in asked.items() if value}
        answer = edge.ask("GET", "/usage", GetUsageResponse(), params=given, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    terminal().print(_table(answer) if answer.rows else "Nothing was used in that time.")


def _table(answer: GetUsageResponse) -> Rows:
    """Sums of estimated tokens are rows of their own; the column that says so is there if there are any."""
    mixed = any(row.estimated for row in answer.rows)
    table = Rows(
        *(Column("tenant"), Column("project"), Column("model"), Column("requests", number=True, spare=1)),
        *(Column("input", number=True), Column("cached input", number=True, spare=2), Column("output", number=True)),
        Column("cost", number=True),
        *([Column("tokens are")] if mixed else []),
    )
    for row in answer.rows:
        table.add(
            *(row.tenant_id, row.project_id, row.model, count(row.requests)),
            *(count(row.input_tokens), count(row.cached_input_tokens), count(row.output_tokens)),
            f"{row.cost} {row.currency}",
            *(["estimated" if row.estimated else "counted"] if mixed else []),
        )
    return table

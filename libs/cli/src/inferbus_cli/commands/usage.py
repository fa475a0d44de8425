"""``inferbus usage``: what was used and what it cost."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToJson
from inferbus.meter.v1.meter_pb2 import GetUsageResponse
from inferbus.meter.v1.usage_pb2 import QueryUsageResponse

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.report import bucket_cell, cells, query_of, report_options
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, rfc3339

_NOTHING = "Nothing was used in that time."


@click.command()
@report_options
@click.option("--csv", "as_csv", is_flag=True, help="All that can be told apart, with costs, as CSV.")
@click.option("--parquet", type=click.Path(dir_okay=False, path_type=Path), help="The same into this file, as Parquet.")
@json_option
@with_target
def usage(
    target: Target,
    since: datetime | None,
    until: datetime | None,
    by: tuple[str, ...] | None,
    bucket: str | None,
    as_csv: bool,
    parquet: Path | None,
    as_json: bool,
    **only: Any,
) -> None:
    """Show tokens and cost by tenant, project and model, or tokens by what --by and --bucket say."""
    if as_csv or parquet is not None:
        if as_json or (as_csv and parquet is not None) or by is not None:
            raise click.UsageError("--csv and --parquet go without each other, --json and --by: a file has everything")
        _export(target, query_of(since, until, (), bucket, only), parquet)
        return
    plain = by is None and bucket is None and not any(value for name, value in only.items() if name != "tenant")
    if plain:
        _by_model(target, since, until, only["tenant"], as_json)
        return
    names = by if by is not None else ("tenant", "project", "model")
    with Edge(target) as edge:
        query = query_of(since, until, names, bucket, only)
        answer = edge.ask("GET", "/usage/query", QueryUsageResponse(), params=query, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    terminal().print(_grouped(answer, names, bucket) if answer.rows else _NOTHING)


def _by_model(
    target: Target, since: datetime | None, until: datetime | None, tenant: str | None, as_json: bool
) -> None:
    asked = {"start": since and rfc3339(since), "end": until and rfc3339(until), "tenant": tenant}
    with Edge(target) as edge:
        given = {name: value for name, value in asked.items() if value}
        answer = edge.ask("GET", "/usage", GetUsageResponse(), params=given, patience=PATIENCE)
    if as_json:
        click.echo(MessageToJson(answer, preserving_proto_field_name=True, indent=None))
        return
    terminal().print(_table(answer) if answer.rows else _NOTHING)


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


def _grouped(answer: QueryUsageResponse, by: tuple[str, ...], bucket: str | None) -> Rows:
    """As :func:`_table`, for groups of any kind."""
    mixed, timed = any(row.estimated for row in answer.rows), bucket not in (None, "all")
    table = Rows(
        *([Column(f"{bucket} (UTC)")] if timed else []),
        *(Column(name) for name in by),
        *(Column("requests", number=True, spare=1), Column("errors", number=True, spare=3)),
        *(Column("input", number=True), Column("cached input", number=True, spare=2), Column("output", number=True)),
        *([Column("tokens are")] if mixed else []),
    )
    for row in answer.rows:
        table.add(
            *([bucket_cell(row.bucket_time.seconds, bucket)] if timed and bucket else []),
            *cells(row.group, by),
            *(count(row.requests), count(row.errors)),
            *(count(row.input_tokens), count(row.cached_input_tokens), count(row.output_tokens)),
            *(["estimated" if row.estimated else "counted"] if mixed else []),
        )
    return table


def _export(target: Target, query: list[tuple[str, str]], parquet: Path | None) -> None:
    """A file that is there is whole: it gets its name at its end."""
    with Edge(target) as edge:
        query.append(("format", "csv" if parquet is None else "parquet"))
        parts = edge.file("/usage/export", params=query, patience=PATIENCE)
        if parquet is None:
            for part in parts:
                click.echo(part, nl=False)
            return
        unfinished = parquet.with_name(f".{parquet.name}.part")
        try:
            with unfinished.open("wb") as file:
                for part in parts:
                    file.write(part)
            unfinished.replace(parquet)
        finally:
            unfinished.unlink(missing_ok=True)

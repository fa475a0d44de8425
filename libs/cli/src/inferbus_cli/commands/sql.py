"""``inferbus sql``: ask ClickHouse as the analyst, who can read every table and nothing else."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from inferbus_cli.clickhouse import Login, QueryFailed, ask
from inferbus_cli.tables import print_rows, terminal
from inferbus_cli.target import home_option, json_option, stack_at

# A row a line, as text, after a line of names and one of types: can be shown without holding the whole answer.
_ROWS = "JSONCompactStringsEachRowWithNamesAndTypes"
_NUMBERS = ("Int", "UInt", "Float", "Decimal")


@click.command()
@click.argument("query")
@click.option("--format", "output_format", help="Any of ClickHouse's formats instead of a table: CSV, Pretty, Parquet…")
@click.option("--max-rows", type=click.IntRange(min=1), default=1000, show_default=True, help="Rows shown in a table.")
@click.option("--clickhouse-url", envvar="INFERBUS_CLICKHOUSE_URL", show_envvar=True, help="A remote ClickHouse.")
@click.option("--user", envvar="INFERBUS_CLICKHOUSE_USER", show_envvar=True, help="Default: the local analyst.")
@click.option("--password", envvar="INFERBUS_CLICKHOUSE_PASSWORD", show_envvar=True)
@click.option("--database", help="Default: the stack's.")
@json_option
@home_option
def sql(
    query: str,
    output_format: str | None,
    max_rows: int,
    as_json: bool,
    home: Path,
    **login: str | None,
) -> None:
    """Run QUERY ("-": from standard input), such as: select * from requests order by end_time desc limit 5"""
    statement = sys.stdin.read() if query == "-" else query
    wanted = output_format or ("JSONEachRow" if as_json else _ROWS)
    with ask(_login(home, **login), statement, wanted) as (real_format, chunks):
        if real_format != _ROWS:
            _copy(chunks)
            return
        rows = (json.loads(line) for line in _lines(chunks))
        _print_table(rows, max_rows)


def _login(
    home: Path, clickhouse_url: str | None, user: str | None, password: str | None, database: str | None
) -> Login:
    if clickhouse_url is not None:
        return Login(clickhouse_url, user or "default", password or "", database or "inferbus")
    stack = stack_at(home)
    analyst = stack["analyst"]
    return Login(
        url=stack["clickhouse"]["url"],
        user=user or analyst["user"],
        password=password or analyst["password"],
        database=database or stack["clickhouse"]["database"],
    )


def _copy(chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest.strip():
        yield rest


def _print_table(rows: Iterator[Any], max_rows: int) -> None:
    names, types = next(rows, None), next(rows, None)
    if names is None or types is None:  # a statement without an answer
        return
    numeric = [_bare(kind).startswith(_NUMBERS) for kind in types]
    shown = [_cells(row) for row in itertools.islice(rows, max_rows)]
    print_rows(terminal(), names, numeric, shown)
    if next(rows, None) is not None:
        click.echo(f"More than {max_rows} rows: the rest is not shown (--max-rows, or --format).", err=True)


def _bare(kind: str) -> str:
    return kind.removeprefix("LowCardinality(").removeprefix("Nullable(")


def _cells(row: Any) -> list[str]:
    if not isinstance(row, list):  # a failure in the middle of the answer comes as its last line
        raise QueryFailed(json.dumps(row))
    return ["NULL" if value is None else str(value) for value in row]

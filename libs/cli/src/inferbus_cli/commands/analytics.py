"""``inferbus analytics``: how fast, how much, how well, over time and by group."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from google.protobuf.json_format import MessageToDict, MessageToJson
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1.analytics_pb2 import (
    AnalyticsColumn,
    AnalyticsGroup,
    AnalyticsRow,
    AnalyticsUnit,
    QueryAnalyticsResponse,
)
from inferbus_runtime import clock

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, moment, rate, rfc3339, seconds
from inferbus_cli.timerange import time_range

_LATENCIES = ("ttft", "itl", "tpot", "e2e", "queue")
_MEASURES = (
    "latency", *_LATENCIES, "requests", "tokens", "output", "goodput", "stalls", "cache", "errors", "interruptions",
    "cost", "in-flight", "billing-lag", "energy",
)  # fmt: skip
_SINCE = timedelta(hours=1)
# Names for --by, and how a group shows each.
_SHOWN: dict[str, Callable[[AnalyticsGroup], str]] = {
    "tenant": lambda group: group.tenant_id,
    "project": lambda group: group.project_id,
    "model": lambda group: group.model,
    "revision": lambda group: group.revision,
    "worker": lambda group: group.worker,
    "class": lambda group: _class_name(group.priority_class),
}
_CLASSES = ("interactive", "background", "batch")
_FILTERS = ("tenant", "project", "model", "revision", "worker", "class")
_TARGETS = ("ttft", "tpot", "e2e")


class Dimensions(click.ParamType[tuple[str, ...]]):
    """``model,worker``."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(filter(None, map(str.strip, str(value).split(","))))
        for name in names:
            if name not in _SHOWN:
                self.fail(f"'{name}' is none of {', '.join(_SHOWN)}", param, ctx)
        return tuple(dict.fromkeys(names))


def _options(command: Any) -> Any:
    for name in reversed(_TARGETS):
        command = click.option(f"--{name}-target", help="Of goodput, as 200ms.")(command)
    command = click.option("--class", "classes", type=click.Choice(_CLASSES), multiple=True)(command)
    for name in reversed(_FILTERS[:-1]):
        command = click.option(f"--{name}", f"{name}s", multiple=True, help="Only of this one; several times.")(command)
    command = click.option("--groups", type=click.IntRange(1, 1000), help="The largest groups only.")(command)
    command = click.option("--step", help="A row each so many minutes: 5m, 1h.")(command)
    return click.option("--by", type=Dimensions(), default=(), help=f"Apart by some of: {', '.join(_SHOWN)}.")(command)


@click.command()
@click.argument("measure", type=click.Choice(_MEASURES))
@time_range
@_options
@json_option
@with_target
def analytics(
    target: Target,
    measure: str,
    since: datetime | None,
    until: datetime | None,
    by: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Show latencies, load, errors, goodput, cost: the last hour, or as --since says (needs an admin key).

    "latency" is ttft, itl, tpot, e2e and queue together.
    """
    query = _query(since or clock.now() - _SINCE, until, by, given)
    measures = _latencies(by, given) if measure == "latency" else (measure.replace("-", "_"),)
    with Edge(target) as edge:
        answers = [
            edge.ask(
                "GET", "/analytics", QueryAnalyticsResponse(), params=[("measure", one), *query], patience=PATIENCE
            )
            for one in measures
        ]  # fmt: skip
    if as_json:
        click.echo(_json(measure, measures, answers))
        return
    if not any(answer.rows for answer in answers):
        click.echo("There is nothing of it in that time.")
        return
    names = measures if measure == "latency" else ()
    terminal().print(_table(names, answers, by, timed=given["step"] is not None))


def _latencies(by: Sequence[str], given: dict[str, Any]) -> tuple[str, ...]:
    """Without the gaps where the class is asked for, which a token does not know."""
    classed = "class" in by or given["classes"]
    return tuple(name for name in _LATENCIES if not (classed and name == "itl"))


def _query(since: datetime, until: datetime | None, by: Sequence[str], given: dict[str, Any]) -> list[tuple[str, str]]:
    query = [("start", rfc3339(since)), ("end", until and rfc3339(until)), ("by", ",".join(by))]
    query += [("step", given["step"]), ("groups", given["groups"] and str(given["groups"]))]
    for name in _FILTERS:
        query += [(name, value) for value in given["classes" if name == "class" else f"{name}s"]]
    query += [(f"{name}_target", given[f"{name}_target"]) for name in _TARGETS]
    return [(name, value) for name, value in query if value]


def _json(measure: str, measures: Sequence[str], answers: Sequence[QueryAnalyticsResponse]) -> str:
    if measure != "latency":
        return MessageToJson(answers[0], preserving_proto_field_name=True, indent=None)
    shown = (MessageToDict(answer, preserving_proto_field_name=True) for answer in answers)
    return json.dumps(dict(zip(measures, shown, strict=True)))


def _table(names: Sequence[str], answers: Sequence[QueryAnalyticsResponse], by: Sequence[str], *, timed: bool) -> Rows:
    """``names``: of the answers, if there are several, which then have the same columns."""
    rows = [row for answer in answers for row in answer.rows]
    columns = answers[0].columns
    failed = any(row.group.error_class or row.group.error_reason for row in rows)
    mixed = any(row.estimated for row in rows)
    table = Rows(
        *([Column("measure")] if names else []),
        *([Column("from (UTC)")] if timed else []),
        *(Column(name) for name in by),
        *([Column("class of error"), Column("reason")] if failed else []),
        *(Column(one.name.replace("_", " "), number=True, spare=at) for at, one in enumerate(columns)),
        *([Column("tokens are")] if mixed else []),
    )
    for at, answer in enumerate(answers):
        for row in answer.rows:
            table.add(
                *([names[at]] if names else []),
                *([moment(row.time)[:16]] if timed else []),
                *(_SHOWN[name](row.group) for name in by),
                *([row.group.error_class, row.group.error_reason] if failed else []),
                *(_cell(row, one) for one in columns),
                *(["estimated" if row.estimated else "counted"] if mixed else []),
            )
    return table


def _cell(row: AnalyticsRow, column: AnalyticsColumn) -> str:
    if column.unit == AnalyticsUnit.ANALYTICS_UNIT_AMOUNT:
        amount = row.amounts.get(column.name)
        return "-" if amount is None else f"{amount} {row.currency}"
    if column.name not in row.numbers:
        return "-"
    value = row.numbers[column.name]
    if column.unit == AnalyticsUnit.ANALYTICS_UNIT_SECONDS:
        return seconds(value)
    if column.unit == AnalyticsUnit.ANALYTICS_UNIT_SHARE:
        return f"{value:.1%}"
    if column.unit == AnalyticsUnit.ANALYTICS_UNIT_PER_SECOND:
        return f"{rate(value) if value >= 1 else f'{value:.3g}'}/s"
    if column.unit == AnalyticsUnit.ANALYTICS_UNIT_JOULES:
        return f"{value:,.3f} J"
    return count(value) if value == round(value) else f"{value:,.2f}"


def _class_name(value: PriorityClass.ValueType) -> str:
    name = PriorityClass.Name(value).removeprefix("PRIORITY_CLASS_").lower()
    return "" if name == "unspecified" else name

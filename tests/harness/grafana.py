"""Grafana's part in a query: variables and the macros of its ClickHouse data source, replaced as it does.

By the documentation of the data source (its pages "Query editor" and "Template variables", version 4).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ALL = ("$__all",)


@dataclass(frozen=True, slots=True)
class View:
    """What a viewer has chosen: Unix seconds, seconds a point, and the values of each variable (``ALL``: all)."""

    since: int
    until: int
    interval: int
    chosen: Mapping[str, tuple[str, ...]]


def replaced(sql: str, view: View) -> str:
    """The SQL that reaches ClickHouse. Raises ValueError if something of Grafana's is left in it."""
    sql = _conditions(sql, view)
    for name, values in view.chosen.items():
        quoted = ",".join("'" + value.replace("'", "\\'") + "'" for value in values)
        sql = sql.replace(f"${{{name}:singlequote}}", quoted)
        sql = re.sub(rf"\${name}\b|\${{{name}}}", ",".join(values), sql)
    since, until = f"toDateTime({view.since})", f"toDateTime({view.until})"
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= {since} AND \1 <= {until}", sql)
    sql = re.sub(
        r"\$__timeInterval\((\w+)\)", rf"toStartOfInterval(toDateTime(\1), INTERVAL {view.interval} second)", sql
    )
    for name, value in (("fromTime", since), ("toTime", until), ("interval_s", str(view.interval))):
        sql = sql.replace(f"$__{name}", value)
    if "$" in sql:
        raise ValueError(f"not replaced: {sql[sql.index('$') :][:60]}")
    return sql


def _conditions(sql: str, view: View) -> str:
    """``$__conditionalAll(condition, $variable)``: the condition, or 1=1 if the variable is at All."""
    while (start := sql.find("$__conditionalAll(")) >= 0:
        opened = start + len("$__conditionalAll")
        closed = _closing(sql, opened)
        condition, _, variable = sql[opened + 1 : closed].rpartition(",")
        everything = view.chosen[variable.strip().removeprefix("$")] == ALL
        sql = sql[:start] + ("1=1" if everything else condition) + sql[closed + 1 :]
    return sql


def _closing(sql: str, opened: int) -> int:
    depth = 0
    for position in range(opened, len(sql)):
        depth += {"(": 1, ")": -1}.get(sql[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"an open bracket: {sql[opened:][:60]}")


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(title, type, SQL) of every panel's query."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], panel["type"], target["rawSql"]


def variables(dashboard: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def at_first(dashboard: Mapping[str, Any], **values: str) -> dict[str, tuple[str, ...]]:
    """What is chosen when the dashboard opens; ``values`` for the variables that have no All."""
    chosen: dict[str, tuple[str, ...]] = {}
    for name, variable in variables(dashboard).items():
        if variable["type"] == "textbox":
            chosen[name] = (variable["current"]["value"],)
        else:
            chosen[name] = ALL if variable["includeAll"] else (values[name],)
    return chosen

"""The rollups by minute, worked out anew from the rows that they were made of, where they do not agree with them.

A rollup is a table that materialized views add to. What each view selects stands in the migration that made it, so it
is taken from there, and a view that comes later is seen to as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.replay import TIMES
from inferbus_meter.migrate import migrations

MINUTE_US = 60_000_000
# A minute is over so long after its end: what an ingest is inserting now belongs to later ones.
OPEN_US = 30_000_000
_VIEW = re.compile(r"^CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO (\w+) AS\s+([^;]+);", re.MULTILINE)
_SUMMED = re.compile(r"SimpleAggregateFunction\((sum|max), (\w+)\)")
_SYNC = " SETTINGS mutations_sync = 1"
# Sums of floating-point numbers depend on their order in the last digits.
_ALIKE = 1e-9


@dataclass(frozen=True, slots=True)
class _View:
    target: str
    columns: list[str]
    source: str
    select: str


@dataclass(frozen=True, slots=True)
class _Summed:
    """A column of a rollup. ``function``: by which rows of one key are one."""

    name: str
    function: str
    kind: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """Of a rollup."""

    keys: list[str]
    summed: list[_Summed]


class Rollups:
    """``store``: as a user who may delete, except for :meth:`unlike`. Every call raises one of STORE_ERRORS."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def unlike(self, low_us: int, high_us: int) -> dict[str, dict[datetime, list[str]]]:
        """Minutes of [low, high) (Unix microseconds, whole minutes) that are not what the rows say, in their order, and
        in which columns, by rollup."""
        found = {}
        views = await self._views()
        for target in sorted({view.target for view in views}):
            columns = await self._columns(target)
            into = [view for view in views if view.target == target]
            names = [column.name for column in columns.summed]
            rows = await self._store.rows(_compared(target, columns, into, low_us, high_us))
            if rows:
                found[target] = {
                    _utc(minute): [name for name, differs in zip(names, flags, strict=True) if differs]
                    for minute, *flags in rows
                }
        return found

    async def _columns(self, target: str) -> _Columns:
        kinds = {str(name): str(kind) for name, kind, *_ in await self._store.rows(f"DESCRIBE TABLE {target}")}
        # States of digests are left out: they depend on the order in which rows came.
        summed = [_Summed(name, *found.groups()) for name, kind in kinds.items() if (found := _SUMMED.match(kind))]
        return _Columns([name for name, kind in kinds.items() if "AggregateFunction(" not in kind], summed)

    async def make(self, target: str, minutes: list[datetime]) -> None:
        """Those minutes of a rollup anew. Rows that come into them at this very moment may be counted twice or not at
        all, so it is for minutes that are over."""
        stamps = ", ".join(f"toDateTime({round(minute.timestamp())}, 'UTC')" for minute in minutes)
        views = [view for view in await self._views() if view.target == target]
        await self._store.command(f"ALTER TABLE {target} DELETE WHERE minute IN ({stamps}){_SYNC}")
        for view in views:
            low, high = _us(minutes[0]), _us(minutes[-1]) + MINUTE_US
            column = TIMES[view.source]
            # Not toDateTime(): against whole seconds the index rounds a DateTime64, and a part whose rows are all in
            # the last half second before ``high`` is passed over (seen on ClickHouse 26.9).
            wanted = (
                f"{column} >= fromUnixTimestamp64Micro({low}) AND {column} < fromUnixTimestamp64Micro({high}) "
                f"AND toStartOfMinute({column}) IN ({stamps})"
            )
            escaped = wanted.replace("'", "\\'")
            await self._store.rows(
                f"INSERT INTO {target} ({', '.join(f'`{column}`' for column in view.columns)}) {view.select}",
                settings={"additional_table_filters": f"{{'{view.source}': '{escaped}'}}"},
            )

    async def _views(self) -> list[_View]:
        """All of them, as the migrations made them: the user who inserts may not ask the store for that."""
        made = {name: (target, select) for file in migrations() for name, target, select in _VIEW.findall(file.sql)}
        views = []
        for name, (target, select) in sorted(made.items()):
            source = next((one for one in TIMES if re.search(rf"FROM {one}\b", select)), "")
            if source:
                columns = [str(column) for column, *_ in await self._store.rows(f"DESCRIBE TABLE {name}")]
                views.append(_View(target, columns, source, select))
        return views


def _compared(target: str, columns: _Columns, views: Sequence[_View], low_us: int, high_us: int) -> str:
    """Asks for the minutes with differences, and for each column summed whether it is one that differs."""
    keys = ", ".join(f"`{name}`" for name in columns.keys)
    low, high = f"fromUnixTimestamp64Micro({low_us})", f"fromUnixTimestamp64Micro({high_us})"
    rolled = ", ".join(f"{one.function}(`{one.name}`) AS r_{one.name}, 0 AS s_{one.name}" for one in columns.summed)
    sides = [f"SELECT {keys}, {rolled} FROM {target} WHERE minute >= {low} AND minute < {high} GROUP BY {keys}"]  # noqa: S608
    for view in views:
        time = TIMES[view.source]
        rows = f"(SELECT * FROM {view.source} WHERE {time} >= {low} AND {time} < {high}) AS {view.source}"  # noqa: S608
        select = re.sub(rf"FROM {view.source}\b", f"FROM {rows}", view.select, count=1)
        there = (f"`{one.name}`" if one.name in view.columns else "0" for one in columns.summed)
        sums = ", ".join(f"0, {value}" for value in there)
        sides.append(f"SELECT {keys}, {sums} FROM ({select})")  # noqa: S608
    differ = ", ".join(f"{_differs(column)} AS d_{column.name}" for column in columns.summed)
    flags = ", ".join(f"max(d_{column.name})" for column in columns.summed)
    return (
        f"SELECT minute, {flags} FROM (SELECT {keys}, {differ} "  # noqa: S608 - names of the schema
        f"FROM ({' UNION ALL '.join(sides)}) GROUP BY {keys}) GROUP BY minute "
        f"HAVING {flags.replace(', ', ' OR ')} ORDER BY minute"
    )


def _differs(column: _Summed) -> str:
    rolled, counted = f"sum(r_{column.name})", f"sum(s_{column.name})"
    if column.kind.startswith("Float"):
        return f"abs({rolled} - {counted}) > {_ALIKE} * greatest(1, {rolled}, {counted})"
    return f"{rolled} != {counted}"


def _us(minute: datetime) -> int:
    return round(minute.timestamp()) * 1_000_000


def _utc(minute: datetime) -> datetime:
    return minute if minute.tzinfo is not None else minute.replace(tzinfo=UTC)

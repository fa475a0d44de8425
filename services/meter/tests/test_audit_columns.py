"""Whatever is changed by hand in a table that the audit answers for, it is named; real broker, real engine.

Every column of a table is changed in a request (a minute, an hour) of its own, all in one go.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.meter_pb2 import AuditDifference
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_meter.audit import Audit, AuditRange
from inferbus_meter.clickhouse import Store
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_meter.replay import Replay, ReplayRange
from inferbus_meter.rerate import RerateRange, Reratings
from inferbus_meter.usage_hours import UsageHours
from inferbus_rating import PriceBook
from inferbus_runtime import clock

LIMITS = FlushLimits(100_000, timedelta(milliseconds=50), timedelta(seconds=2))
HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000
REQUESTS = 48
V1 = PriceRecord(rate_version="v1", currency="USD", input_per_million="0.15", output_per_million="0.6")
V2 = PriceRecord(rate_version="v2", currency="USD", input_per_million="1", output_per_million="2")
V2.effective_time.FromMicroseconds(1)
V2.create_time.FromMicroseconds(clock.now_us())
BOOK, LATER = PriceBook.of([V1]), PriceBook.of([V1, V2])
# The rate in a row is what it is charged by, and labels may be erased: a replay leaves both as they are.
NOT_MENDED = {
    "currency", "rate_version", "input_per_million", "cached_input_per_million", "output_per_million",
    "reasoning_per_million", "per_call", "minimum", "factor", "end_user", "tags", "stream_epoch", "request_id",
}  # fmt: skip
# Such a row is one that is missing, and one that is too much.
ANOTHER_ROW = {"request_id", "stream_epoch"}
Changes = Mapping[str, tuple[str, str]]
"""By column: where, and what instead."""


class Tables:
    """Tables filled once; what is changed in them can be undone."""

    def __init__(self, bus: Bus, store: Store, ingest: Ingest, requests: list[tuple[bytes, int]]) -> None:
        self._bus = bus
        self.store = store
        self.ingest = ingest
        self.requests = requests

    def where(self, number: int) -> str:
        return f"t.request_id = '{UUID(bytes=self.requests[number][0])}'"

    async def columns(self, table: str) -> dict[str, str]:
        """Those that are written: of what the store works out from others nothing can be changed."""
        rows = await self.store.rows(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String} "
            "AND default_kind != 'MATERIALIZED' ORDER BY position",
            {"table": table},
        )
        return {str(name): str(kind) for name, kind in rows}

    @asynccontextmanager
    async def changed(self, table: str, changes: Changes) -> AsyncIterator[None]:
        """Past all views, as a hand on the disk would."""
        kept, other = f"kept_{table}", f"other_{table}"
        for name in (kept, other):
            await self.store.command(f"CREATE TABLE {name} AS {table}")
        await self._move(table, kept)
        replaced = [f"if({where}, {value}, t.`{name}`) AS `{name}`" for name, (where, value) in changes.items()]
        await self.store.command(f"INSERT INTO {other} SELECT t.* REPLACE ({', '.join(replaced)}) FROM {table} AS t")
        await self._move(other, table)
        try:
            yield
        finally:
            await self._move(kept, table)
            for name in (kept, other):
                await self.store.command(f"DROP TABLE {name} SYNC")

    async def _move(self, source: str, target: str) -> None:
        await self.store.command(f"TRUNCATE TABLE {target} SYNC")
        await self.add(source, target)

    async def add(self, source: str, target: str) -> None:
        rows = await self.store.rows(
            "SELECT DISTINCT partition_id FROM system.parts WHERE active AND database = currentDatabase() "
            "AND table = {table:String}",
            {"table": source},
        )
        for (partition,) in rows:
            await self.store.command(f"ALTER TABLE {target} ATTACH PARTITION ID '{partition}' FROM {source}")

    async def audit(self, book: PriceBook = BOOK) -> list[AuditDifference]:
        audit = Audit(AuditRange(None, None, 20.0), FrameLog(self._bus), self.store, self.ingest, book)
        return [event.difference async for event in audit.run() if event.HasField("difference")]

    async def replay(self) -> None:
        wanted = ReplayRange(None, None, dry_run=False, timeout=20.0)
        async for _ in Replay(wanted, FrameLog(self._bus), self.store, self.ingest, BOOK).run():
            pass


@pytest.fixture
async def tables(own_bus: Bus, store: Store, frame_log: Any, make: Any) -> AsyncIterator[Tables]:
    """Of the last 20 hours, each request in a minute of its own; some of two attempts."""
    now, requests = clock.now_us() // MINUTE_US * MINUTE_US, []
    for number in range(REQUESTS):
        at = now - (2 + number % 18) * HOUR_US - number * MINUTE_US
        request, of = make.request_id(at - 2_000_000), make.context("acme" if number % 2 else "umbrella")
        frame = Frame(time_us=at)
        make.tokens(frame, request, 0, [7, 8], of=of)
        make.tokens(frame, request, 2, [9], gap_us=1_500_000, of=of)
        make.close(frame, request, 3, of=of)
        close = frame.closes[0]
        close.labels.end_user, close.energy_joules = f"user-{number}", 0.5
        close.labels.tags["team"] = "a"
        close.error.error_class, close.error.reason = ErrorClass.ERROR_CLASS_CONFLICT, "because"
        requests.append((request, at))
        await frame_log.publish(frame)
    ingest = Ingest(FrameLog(own_bus), store, lambda: BOOK, LIMITS, f"m-{clock.now_us()}")
    task = asyncio.create_task(ingest.run())
    assert await ingest.reached(REQUESTS, 20)
    await UsageHours(store).roll(now - 24 * HOUR_US, now)
    try:
        yield Tables(own_bus, store, ingest, requests)
    finally:
        ingest.stop()
        await task


def other(name: str, kind: str) -> str:
    """Another value of that type."""
    if "String)" in kind and "Map" in kind:
        return "map('team', 'b')"
    if "String" in kind:
        return f"concat(t.`{name}`, '!')"
    if kind == "UUID":
        return "generateUUIDv4()"
    if kind.startswith("DateTime64"):
        return f"addMicroseconds(t.`{name}`, 1)"
    if kind == "Bool":
        return f"NOT t.`{name}`"
    return f"ifNull(t.`{name}`, 0) + 1"


def naming(found: Iterable[AuditDifference], request: bytes, column: str) -> bool:
    return any(one.request_id == request and (column in ANOTHER_ROW or column in one.detail) for one in found)


async def test_any_column_of_a_bill_that_is_changed_is_named_and_put_right(tables: Tables) -> None:
    assert await tables.audit() == []
    columns = await tables.columns("requests")
    assert len(columns) <= REQUESTS
    changes = {name: (tables.where(number), other(name, kind)) for number, (name, kind) in enumerate(columns.items())}
    async with tables.changed("requests", changes):
        found = await tables.audit()
    missed = [name for number, name in enumerate(columns) if not naming(found, tables.requests[number][0], name)]
    assert missed == []
    assert await tables.audit() == []
    async with tables.changed("requests", {name: one for name, one in changes.items() if name not in NOT_MENDED}):
        assert await tables.audit() != []
        await tables.replay()
        assert await tables.audit() == []


async def test_any_column_of_a_token_that_is_changed_is_named_and_put_right(tables: Tables) -> None:
    columns = await tables.columns("token_events")
    changes = {
        name: (f"{tables.where(number)} AND t.`index` = 1", other(name, kind))
        for number, (name, kind) in enumerate(columns.items())
    }
    async with tables.changed("token_events", changes):
        found = await tables.audit()
    missed = [name for number, name in enumerate(columns) if not naming(found, tables.requests[number][0], name)]
    assert missed == []
    async with tables.changed("token_events", {k: v for k, v in changes.items() if k not in ANOTHER_ROW}):
        await tables.replay()
        assert await tables.audit() == []


async def test_a_row_of_before_a_column_was_there_is_no_difference(tables: Tables) -> None:
    """Such a row does not name its stream, either."""
    old = {"placed_us": (tables.where(0), "NULL"), "stream_epoch": (tables.where(0), "0")}
    async with tables.changed("requests", old):
        assert await tables.audit() == []


async def test_a_row_of_when_a_queue_lasted_until_the_last_attempt_is_no_difference(
    tables: Tables, frame_log: Any, make: Any
) -> None:
    """Where the log does not say when an engine had it first. Another figure is one."""
    at, again = clock.now_us(), "t.attempt > 1"
    await frame_log.publish(make.close(Frame(time_us=at), make.request_id(at - 2_000_000), 0, attempt=2))
    assert await tables.ingest.reached(REQUESTS + 1, 20)
    assert await tables.store.rows("SELECT queue_us, started_us FROM bills WHERE attempt = 2") == [(None, 2000)]
    async with tables.changed("requests", {"queue_us": (again, "t.started_us")}):
        assert await tables.audit() == []
    async with tables.changed("requests", {"queue_us": (again, "t.started_us + 1")}):
        found = await tables.audit()
    assert [(one.reason, one.detail) for one in found] == [("column", "queue_us is 2001 instead of None")]


async def test_a_bill_that_is_there_twice_is_named_though_it_counts_once(tables: Tables) -> None:
    # It is there once as soon as its parts are merged.
    await tables.store.command("SYSTEM STOP MERGES requests")
    await tables.store.command("CREATE TABLE twice AS requests")
    await tables.store.command(f"INSERT INTO twice SELECT * FROM requests AS t WHERE {tables.where(3)}")
    await tables.add("twice", "requests")
    found = await tables.audit()
    assert {(one.request_id, one.reason) for one in found if one.request_id} == {
        (tables.requests[3][0], "duplicate_row")
    }
    await tables.store.command("SYSTEM START MERGES requests")
    await tables.replay()
    assert await tables.audit() == []


async def test_any_sum_that_is_changed_is_named_and_put_right(tables: Tables) -> None:
    wanted: list[tuple[str, str]] = []
    async with AsyncExitStack() as stack:
        for table in ("latency_minutes", "latency_counts", "token_minutes", "request_minutes"):
            # Digests are not compared: they are other ones with another order of rows.
            columns = {
                name: kind
                for name, kind in (await tables.columns(table)).items()
                if name != "minute" and not kind.startswith("AggregateFunction")
            }
            changes = {}
            for number, (name, kind) in enumerate(columns.items()):
                minute = datetime.fromtimestamp(tables.requests[number][1] // MINUTE_US * 60, UTC)
                changes[name] = (f"t.minute = toDateTime({round(minute.timestamp())}, 'UTC')", other(name, kind))
                # Under another key it is another sum.
                column = name if kind.startswith("Simple") else ""
                wanted.append((f"{table} differs from its rows at {minute:%Y-%m-%d %H:%M} in ", column))
            await stack.enter_async_context(tables.changed(table, changes))
        found = [one.detail for one in await tables.audit()]
        missed = [one for one in wanted if not any(text.startswith(one[0]) and one[1] in text for text in found)]
        assert missed == []
        await tables.replay()
        assert await tables.audit() == []


async def test_any_sum_of_an_hour_that_is_changed_removed_or_doubled_is_named_before_it_is_put_right(
    tables: Tables,
) -> None:
    columns = {
        name: kind for name, kind in (await tables.columns("usage_hours")).items() if name not in ("hour", "version")
    }
    names = list(columns)
    for some in (names[:17], names[17:]):
        changes = {}
        for number, name in enumerate(some):
            hour = tables.requests[number][1] // HOUR_US * 3600
            changes[name] = (f"t.hour = toDateTime({hour}, 'UTC')", other(name, columns[name]))
        async with tables.changed("usage_hours", changes):
            found = [one.detail for one in await tables.audit()]
            for number, name in enumerate(some):
                named = datetime.fromtimestamp(tables.requests[number][1] // HOUR_US * 3600, UTC)
                details = [one for one in found if f"usage_hours has for {named:%Y-%m-%d %H}:00" in one]
                assert any(name in one for one in details), (name, found)
            await tables.replay()
            assert await tables.audit() == []
    hours = [tables.requests[number][1] // HOUR_US * 3600 for number in (0, 1)]
    await tables.store.command(
        f"ALTER TABLE usage_hours DELETE WHERE hour = toDateTime({hours[0]}, 'UTC') SETTINGS mutations_sync = 1"
    )
    await tables.store.command("CREATE TABLE twice AS usage_hours")
    await tables.store.command(
        f"INSERT INTO twice SELECT * FROM usage_hours WHERE hour = toDateTime({hours[1]}, 'UTC')"
    )
    await tables.add("twice", "usage_hours")
    found = [one.detail for one in await tables.audit()]
    assert len(found) == 2
    assert any("in bills only" in one for one in found)


async def test_any_column_of_a_correction_that_is_changed_is_named(tables: Tables) -> None:
    async for _ in Reratings(tables.store).run(RerateRange(0, clock.now_us(), ""), LATER, apply=True, reason="a test"):
        pass
    assert await tables.audit(LATER) == []
    gone = await tables.audit(BOOK)
    assert {one.reason for one in gone} == {"adjustment"}
    assert all("'v2' is not in" in one.detail for one in gone)
    said = {"request_id", "rerate_id", "created_time", "reason"}  # nothing says what these must be
    columns = {name: kind for name, kind in (await tables.columns("adjustments")).items() if name not in said}
    changes = {name: (tables.where(number), other(name, kind)) for number, (name, kind) in enumerate(columns.items())}
    async with tables.changed("adjustments", changes):
        found = await tables.audit(LATER)
    missed = [name for number, name in enumerate(columns) if not naming(found, tables.requests[number][0], name)]
    assert missed == []


async def test_what_is_charged_by_nothing_or_by_a_price_that_was_not_in_force_is_named(tables: Tables) -> None:
    zero = "toDecimal128(0, 12)"
    free = {name: (tables.where(0), zero) for name in ("cost", "output_per_million", "input_per_million",
            "cached_input_per_million", "reasoning_per_million")}  # fmt: skip
    free |= {name: (tables.where(0), "''") for name in ("rate_version", "currency")}
    async with tables.changed("requests", free):
        (found,) = [one for one in await tables.audit() if one.request_id]
        assert (found.request_id, found.reason) == (tables.requests[0][0], "rate")
        assert found.detail == "rate_version: charged by nothing, while 'v1' was in force"
    dearer = {name: (tables.where(0), f"t.{name} * 10") for name in ("cost", "output_per_million", "input_per_million",
              "cached_input_per_million", "reasoning_per_million")}  # fmt: skip
    async with tables.changed("requests", {**dearer, "rate_version": (tables.where(0), "'v9'")}):
        (found,) = [one for one in await tables.audit() if one.request_id]
        assert (found.request_id, found.detail) == (tables.requests[0][0], "rate_version 'v9' is not in the price book")
    # A price that was made later, with an earlier date, is for re-rating to apply.
    assert await tables.audit(LATER) == []

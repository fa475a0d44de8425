"""A replay makes the tables what the stream says, whatever had happened to them; real broker, real engine."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.delivery_pb2 import Deliveries, DeliveryEnd
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.meter.v1.meter_pb2 import AuditDifference, AuditSummary
from inferbus.meter.v1.replay_pb2 import ReplayRequest, ReplaySummary
from inferbus_bus.connection import Bus
from inferbus_bus.lease import hold
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_meter.audit import Audit, AuditRange
from inferbus_meter.clickhouse import Store, open_store
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.replay import LEASE, MOST_NAMED, Chunk, unlike_frames, unlike_requests
from inferbus_meter.core.rows import charge_of, rate_named, request_rows
from inferbus_meter.deliveries import DeliveryIngest
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_meter.migrate import migrations, statements
from inferbus_meter.replay import Replay, ReplayRange
from inferbus_meter.replay_servicer import ReplayServicer
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

LIMITS = FlushLimits(100_000, timedelta(milliseconds=50), timedelta(seconds=2))
RECORDS = [PriceRecord(rate_version="v1", currency="USD", input_per_million="0.15", output_per_million="0.6")]
BOOK = PriceBook.of(RECORDS)
ONLY = Epoch(0, 0)
TABLES = ("token_events", "requests", "latency_minutes", "latency_counts", "token_minutes", "request_minutes")
# All that is money or tokens, in every column and in one order.
EXPORT = "SELECT * FROM {} ORDER BY ALL"
MINUTE_US, TEN_MINUTES = 60_000_000, 600_000_000


@asynccontextmanager
async def ingesting(bus: Bus, store: Store, book: PriceBook = BOOK) -> AsyncIterator[Ingest]:
    ingest = Ingest(FrameLog(bus), store, lambda: book, LIMITS, f"m-{clock.now_us()}")
    task = asyncio.create_task(ingest.run())
    try:
        yield ingest
    finally:
        ingest.stop()
        await task


async def replay(bus: Bus, store: Store, ingest: Ingest, *, book: PriceBook = BOOK, **wanted: Any) -> ReplaySummary:
    wanted = {"start_us": None, "end_us": None, "dry_run": False, "timeout": 20.0, **wanted}
    last = None
    async for event in Replay(ReplayRange(**wanted), FrameLog(bus), store, ingest, book).run():
        last = event
    assert last is not None
    return last.summary


async def audit(
    bus: Bus, store: Store, ingest: Ingest, book: PriceBook = BOOK
) -> tuple[list[AuditDifference], AuditSummary]:
    found = []
    async for event in Audit(AuditRange(None, None, 20.0), FrameLog(bus), store, ingest, book).run():
        if event.HasField("difference"):
            found.append(event.difference)
    return found, event.summary


async def traffic(log: Any, make: Any, requests: int = 6) -> list[bytes]:
    """Requests of ten minutes ago: two tenants, one of two attempts, one that runs on. All are in the last half second
    of their minute, which is where a comparison by whole seconds goes wrong."""
    at = (clock.now_us() - TEN_MINUTES) // MINUTE_US * MINUTE_US + MINUTE_US - 200_000
    ids = [make.request_id(at + number) for number in range(requests)]
    for number, request in enumerate(ids):
        of = make.context("acme" if number % 2 else "umbrella")
        for index in range(5):
            await log.publish(make.tokens(Frame(time_us=at + 1000 * index), request, index, [100 + index], of=of))
        if number == 1:
            for index in range(3, 6):
                await log.publish(make.tokens(Frame(time_us=at + 9000), request, index, [200], attempt=2, of=of))
        if number < requests - 1:
            attempt, tokens = (2, 6) if number == 1 else (1, 5)
            await log.publish(make.close(Frame(time_us=at + 9500), request, tokens, attempt=attempt, of=of))
    return ids


async def state(store: Store) -> dict[str, list[Any]]:
    """Everything, as far as it is not by its nature another each time (states of digests)."""
    names = (
        "tokens",
        "charges",
        "usage_by_hour",
        "token_minutes FINAL",
        "latency_counts FINAL",
        "request_minutes FINAL",
    )
    found = {name: list(await store.rows(EXPORT.format(name))) for name in names}
    query = "SELECT minute, tokens, requests, errors FROM latency_by_minute ORDER BY ALL"
    return {**found, "latency": list(await store.rows(query))}


async def add(store: Store, table: str, condition: str) -> None:
    """A row once more, past the ingest; through the rollups, too, as any insert."""
    token = f"by-hand-{clock.now_us()}"
    await store.rows(
        f"INSERT INTO {table} SELECT * FROM {table} WHERE {condition}", settings={"insert_deduplication_token": token}
    )


async def remove(store: Store, table: str, condition: str) -> None:
    await store.command(f"ALTER TABLE {table} DELETE WHERE {condition} SETTINGS mutations_sync = 1")


def row(request: bytes) -> str:
    return f"request_id = '{UUID(bytes=request)}'"


async def test_one_row_removed_and_one_doubled_are_named_and_put_right(own_bus, store, frame_log, make) -> None:
    ids = await traffic(frame_log, make)
    async with ingesting(own_bus, store) as ingest:
        found, _ = await audit(own_bus, store, ingest)
        assert found == []
        before = await state(store)
        await remove(store, "token_events", f"{row(ids[0])} AND `index` = 2")
        await add(store, "token_events", f"{row(ids[3])} AND `index` = 1")
        await remove(store, "requests", row(ids[4]))
        found, _ = await audit(own_bus, store, ingest)
        assert {(one.request_id, one.reason) for one in found} == {
            (ids[0], "missing_row"), (ids[3], "duplicate_row"), (ids[4], "missing_row"), (b"", "rollup")
        }  # fmt: skip
        damaged = await state(store)
        dry = await replay(own_bus, store, ingest, dry_run=True)
        assert await state(store) == damaged
        done = await replay(own_bus, store, ingest)
        for summary in (dry, done):
            assert (summary.tokens_before, summary.tokens_after) == (2, 2)  # none and one; two and one
            assert (summary.requests_before, summary.requests_after) == (0, 1)
            assert [(one.currency, one.before, one.after) for one in summary.charges] == [("USD", "0", "0.0000045")]
        assert done.minutes == 1  # the doubled row went through the views, too
        assert await state(store) == before
        assert (await audit(own_bus, store, ingest))[0] == []
        again = await replay(own_bus, store, ingest)
        assert (again.tokens_before, again.tokens_after, again.requests_after, again.minutes) == (0, 0, 0, 0)


async def test_tables_dropped_and_replayed_say_the_same_beside_a_running_ingest(
    own_bus, store, frame_log, make
) -> None:
    await traffic(frame_log, make)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        before = await state(store)
        for table in TABLES:
            await store.command(f"DROP TABLE {table} SYNC")
        views = await store.rows(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'MaterializedView'"
        )
        for (view,) in views:
            await store.command(f"DROP TABLE {view} SYNC")
        for file in migrations():
            for statement in statements(file.sql):
                await store.command(statement)
        assert (await store.rows("SELECT count() FROM token_events"))[0][0] == 0
        running = asyncio.create_task(frame_log.request(20, tenant="later"))
        summary = await replay(own_bus, store, ingest)
        await running
        assert (summary.tokens_before, summary.requests_before, summary.not_held) == (0, 0, "")
        assert summary.minutes > 0
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        assert (await audit(own_bus, store, ingest))[0] == []
        after = await state(store)
        of_before = {name: [one for one in rows if "later" not in one] for name, rows in after.items()}
        minute = max(one[0] for one in before["latency"])
        of_before["latency"] = [one for one in of_before["latency"] if one[0] <= minute]
        assert of_before == before
    # A meter that starts again finds everything done.
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        assert (await audit(own_bus, store, ingest))[0] == []


async def test_what_has_aged_out_of_the_stream_is_not_touched(own_bus, store, frame_log, make) -> None:
    old = await frame_log.request(5)
    border = (await FrameLog(own_bus).bounds())[1]
    new = await frame_log.request(5)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        before = await state(store)
        await own_bus.api("STREAM.PURGE.TOKENS", {"seq": border + 1})
        await remove(store, "token_events", row(new))
        summary = await replay(own_bus, store, ingest)
        assert f"begins at sequence {border + 1}" in summary.not_held
        after = await state(store)
        assert (after["tokens"], after["charges"]) == (before["tokens"], before["charges"])
        assert any(UUID(bytes=old) in one for one in after["tokens"])


async def test_a_charge_is_made_again_as_it_was(own_bus, store, frame_log, make) -> None:
    """A price that came later with an earlier date is for re-rating to apply; corrections are kept."""
    ids = await traffic(frame_log, make, 4)
    dearer = PriceRecord(rate_version="v2", currency="USD", input_per_million="1", output_per_million="1")
    dearer.effective_time.FromMicroseconds(1)
    later = PriceBook.of([*RECORDS, dearer])
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        await store.rows(
            "INSERT INTO adjustments SELECT request_id, 1, tenant_id, project_id, key_id, model, revision, end_time, "
            f"toDecimal128('0.5', 12), 'USD', 'v1', 'v2', 'r', now64(6), 'test' FROM bills WHERE {row(ids[0])}"
        )
        before = await state(store)
        await remove(store, "requests", row(ids[0]))  # only its correction still says what it was charged by
        await store.command(f"ALTER TABLE requests UPDATE cost = 9 WHERE {row(ids[1])} SETTINGS mutations_sync = 1")
        assert {one.reason for one in (await audit(own_bus, store, ingest))[0]} == {"missing_row", "cost", "rollup"}
        summary = await replay(own_bus, store, ingest, book=later)
        assert summary.requests_after == 2
        assert await state(store) == before
        assert before["charges"][0]


@pytest.mark.parametrize("known", [True, False])
async def test_rows_of_an_earlier_stream_are_not_touched(own_bus, store, frame_log, make, known: bool) -> None:
    """The new one has the same sequences. ``known``: else the rows were written before they named their stream."""
    day_us = 86_400_000_000
    at = clock.now_us() - day_us // 2
    for request in [make.request_id(at + number) for number in range(3)]:
        await frame_log.publish(*(make.tokens(Frame(time_us=at), request, index, [7]) for index in range(5)))
        await frame_log.publish(make.close(Frame(time_us=at), request, 5))
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(18, 20)
    await own_bus.api("STREAM.DELETE.TOKENS")
    await ensure_streams(own_bus)
    new = [await frame_log.request(5) for _ in range(4)]
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(24, 20)
        if not known:
            await forget_streams(store)
        before = await state(store)
        assert (len(before["tokens"]), len(before["charges"])) == (35, 7)
        assert (await audit(own_bus, store, ingest))[0] == []
        assert (await replay(own_bus, store, ingest)).requests_after == 0
        assert await state(store) == before
        await remove(store, "requests", row(new[0]))
        await remove(store, "token_events", row(new[1]))
        assert {one.request_id for one in (await audit(own_bus, store, ingest))[0]} == {new[0], new[1]}
        await replay(own_bus, store, ingest)
        if not known:
            await forget_streams(store)  # the new rows have it
        assert await state(store) == before
        assert (await audit(own_bus, store, ingest))[0] == []


async def test_rows_of_before_a_column_was_there_are_no_difference(own_bus, store, frame_log) -> None:
    """Else a replay of the first days after an upgrade would write every request again."""
    for _ in range(2):
        await frame_log.request(5)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(12, 20)
        await forget_streams(store)
        await store.command("ALTER TABLE requests UPDATE placed_us = NULL WHERE 1 SETTINGS mutations_sync = 1")
        assert (await audit(own_bus, store, ingest))[0] == []
        assert (await replay(own_bus, store, ingest)).requests_after == 0
        await store.command(
            "ALTER TABLE requests UPDATE placed_us = 9 WHERE stream_seq = 6 SETTINGS mutations_sync = 1"
        )
        assert (await replay(own_bus, store, ingest)).requests_after == 1
        found = await store.rows("SELECT stream_seq, placed_us FROM bills ORDER BY ALL")
        assert found == [(6, 1000), (12, None)]


async def forget_streams(store: Store) -> None:
    """Written past the rollups: what a row's version is made of cannot be changed in its place."""
    for table in ("token_events", "requests"):
        await store.command(f"CREATE TABLE old_{table} AS {table}")
        await store.command(f"INSERT INTO old_{table} SELECT * REPLACE (0 AS stream_epoch) FROM {table}")
        await store.command(f"TRUNCATE TABLE {table} SYNC")
        await store.command(f"ALTER TABLE {table} ATTACH PARTITION ALL FROM old_{table}")
        await store.command(f"DROP TABLE old_{table} SYNC")


@pytest.mark.parametrize("records", [[], [PriceRecord(rate_version="v1", currency="EUR", output_per_million="7")]])
async def test_a_charge_is_made_again_from_its_row_when_its_price_is_gone_or_changed(
    own_bus, store, frame_log, make, records: list[PriceRecord]
) -> None:
    ids = await traffic(frame_log, make, 3)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        before = await state(store)
        await store.command(f"ALTER TABLE requests UPDATE cost = 9 WHERE {row(ids[1])} SETTINGS mutations_sync = 1")
        summary = await replay(own_bus, store, ingest, book=PriceBook.of(records))
        assert summary.requests_after == 1
        assert await state(store) == before


async def test_a_later_end_is_charged_by_its_own_price_and_not_by_the_corrected_one(
    own_bus, store, frame_log, make
) -> None:
    dearer = PriceRecord(rate_version="v2", currency="USD", input_per_million="1", output_per_million="1")
    dearer.effective_time.FromMicroseconds(1)
    later = PriceBook.of([*RECORDS, dearer])
    request = await frame_log.request(5)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(6, 20)
        await store.rows(
            "INSERT INTO adjustments SELECT request_id, 1, tenant_id, project_id, key_id, model, revision, end_time, "
            "toDecimal128('0.0000105', 12), 'USD', 'v1', 'v2', 'r', now64(6), 'test' FROM bills"
        )
    await frame_log.publish(make.tokens(Frame(), request, 5, [7], attempt=2))
    await frame_log.publish(make.close(Frame(), request, 6, attempt=2))
    async with ingesting(own_bus, store, later) as ingest:
        assert await ingest.reached(8, 20)
        before = await state(store)
        assert (await replay(own_bus, store, ingest, book=later)).requests_after == 0
        assert await state(store) == before


async def test_of_two_ends_of_an_attempt_the_later_one_counts_however_they_were_inserted(
    own_bus, store, frame_log, make
) -> None:
    """Two claims may be inserted in the other order: tables, audit and replay say the same, also after a merge."""
    request = make.request_id()
    await frame_log.publish(*(make.tokens(Frame(), request, index, [7]) for index in range(5)))
    for tokens in (3, 5):
        await frame_log.publish(make.close(Frame(), request, tokens))

    async def insert_again(sequence: int) -> None:
        gather = FrameGather()
        async for stored in FrameLog(own_bus).read(sequence, sequence):
            assert all(gather.add(*frame) for frame in stored)
        rows = request_rows(gather.finish(), BOOK, epoch=ONLY)
        await store.insert("requests", rows.data, f"late-{clock.now_us()}")

    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(7, 20)
        await insert_again(6)
        for _ in range(2):
            assert await store.rows("SELECT output_tokens, stream_seq, charge FROM charges") == [
                (5, 7, Decimal("0.0000045"))
            ]
            assert await store.rows("SELECT output_tokens, stream_seq FROM bills") == [(5, 7)]
            found, _ = await audit(own_bus, store, ingest)
            assert {one.reason for one in found} <= {"duplicate_end", "rollup"}
            assert (await replay(own_bus, store, ingest, dry_run=True)).requests_after == 0
            await store.command("OPTIMIZE TABLE requests FINAL")

        # The later one is lost.
        await store.command("TRUNCATE TABLE requests SYNC")
        await insert_again(6)
        assert await store.rows("SELECT output_tokens, stream_seq FROM bills") == [(3, 6)]
        last = [frame async for batch in FrameLog(own_bus).read(7, 7) for frame in batch]
        await replay(own_bus, store, ingest, start_us=last[0][1])  # of the later one only
        assert await store.rows("SELECT output_tokens, stream_seq FROM bills") == [(5, 7)]
        assert (await replay(own_bus, store, ingest)).requests_after == 0


async def test_charges_are_never_short_of_a_request_while_it_is_replaced(
    own_bus, store, frame_log, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else hard budgets would open, for good if the replay is killed then."""
    ids = await traffic(frame_log, make, 6)
    done, sums = Store.command, []

    async def command(self: Store, statement: str, **options: Any) -> None:
        await done(self, statement, **options)
        sums.append((await store.rows("SELECT count(), sum(charge) FROM charges"))[0])

    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        before = await state(store)
        right = (await store.rows("SELECT count(), sum(charge) FROM charges"))[0]
        await store.command("ALTER TABLE requests UPDATE edge = 'x' WHERE 1 SETTINGS mutations_sync = 1")
        await store.rows(
            f"INSERT INTO requests SELECT * REPLACE (toUInt16(9) AS attempt) FROM bills WHERE {row(ids[2])}"
        )
        with monkeypatch.context() as patched:
            patched.setattr(Store, "command", command)
            assert (await replay(own_bus, store, ingest)).requests_after == 5
        assert set(sums) == {right}
        assert await state(store) == before


async def test_a_backup_that_is_put_back_is_made_whole_by_the_log(
    own_bus, clickhouse, store, frame_log, make, tmp_path
) -> None:
    """The way of docs/operations.md. Also of one whose tables are of different moments, as with meters that ran."""
    ((name,),) = await store.rows("SELECT currentDatabase()")
    copy = f"File('{tmp_path.name}')"
    async with open_store(clickhouse.config("admin", "")) as admin:

        async def restore() -> None:
            await admin.command(f"DROP DATABASE {name} SYNC", use_database=False)
            await admin.command(f"RESTORE DATABASE {name} FROM {copy}", use_database=False)

        await traffic(frame_log, make, 4)
        async with ingesting(own_bus, store) as ingest:
            assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
        await admin.command(f"BACKUP DATABASE {name} TO {copy}", use_database=False)
        await traffic(frame_log, make, 4)
        async with ingesting(own_bus, store) as ingest:
            assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
            before = await state(store)

        await restore()
        assert await state(store) != before
        async with ingesting(own_bus, store) as ingest:
            assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
            assert (await audit(own_bus, store, ingest))[0] == []
            assert await state(store) == before

        # Tokens of claims that nobody knows to be done.
        await restore()
        for table in ("ingest_batches", "requests"):
            await store.command(f"TRUNCATE TABLE {table} SYNC")
        async with ingesting(own_bus, store) as ingest:
            assert await ingest.reached((await FrameLog(own_bus).bounds())[1], 20)
            assert {one.reason for one in (await audit(own_bus, store, ingest))[0]} == {"duplicate_row", "rollup"}
            await replay(own_bus, store, ingest)
            assert (await audit(own_bus, store, ingest))[0] == []
            assert await state(store) == before


async def told(bus: Bus, *entries: tuple[bytes, int, Any]) -> None:
    """As an edge says it."""
    publisher = Publisher(bus)
    await publisher.start()
    message = Deliveries(edge="edge-0", boot=clock.now_us(), sequence=1)
    message.contexts.append(RequestContext(tenant_id="acme", project_id="acme-p", key_id="acme-k"))
    for request, tokens, end in entries:
        message.request_ids += request
        message.context_index.append(0)
        message.tokens.append(tokens)
        message.end.append(end)
        message.time_us.append(clock.now_us())
    await publisher.publish(message)


async def test_deliveries_of_a_stream_made_anew_are_brought(own_bus, store) -> None:
    """It counts from 1 again: neither its sequences nor its insert tokens are those of the one before."""
    complete = DeliveryEnd.DELIVERY_END_COMPLETE

    async def tell(count: int) -> set[UUID]:
        ids = [uuid7(clock.now_us() // 1000, os.urandom(10)) for _ in range(count)]
        for one in ids:
            await told(own_bus, (one, 5, complete))
        return {UUID(bytes=one) for one in ids}

    async def brought() -> set[UUID]:
        return {one for (one,) in await store.rows("SELECT request_id FROM deliveries")}

    wanted: set[UUID] = set()
    for count in (1, 1, 3):  # as many as of the old one, and more
        wanted |= await tell(count)
        deliveries = DeliveryIngest(FrameLog(own_bus, "DELIVERIES"), store)
        task = asyncio.create_task(deliveries.run())
        async with asyncio.timeout(30):
            while deliveries.position < count:
                await asyncio.sleep(0.02)
        assert await brought() == wanted
        await own_bus.api("STREAM.DELETE.DELIVERIES")
        await ensure_streams(own_bus)
        async with asyncio.timeout(30):
            await task  # it has noticed
    assert len(wanted) == 5


async def test_deliveries_are_compared_and_a_count_changed_by_hand_is_named(own_bus, store, frame_log, make) -> None:
    whole, left, both, unknown = [await frame_log.request(5) for _ in range(4)]
    complete, gone = DeliveryEnd.DELIVERY_END_COMPLETE, DeliveryEnd.DELIVERY_END_CLIENT_GONE
    await told(own_bus, (whole, 5, complete), (left, 2, gone), (both, 3, gone))
    await told(own_bus, (both, 5, complete))
    await own_bus.nc.jetstream().publish("dlv.edge-0", b"\xff no message")
    messages = FrameLog(own_bus, "DELIVERIES")
    async with ingesting(own_bus, store) as ingest:
        for _ in range(2):  # the second one goes on where the table ends
            deliveries = DeliveryIngest(messages, store)
            task = asyncio.create_task(deliveries.run())
            async with asyncio.timeout(30):
                while deliveries.position < 2:
                    await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await store.rows("SELECT count(), uniqExact(request_id) FROM deliveries"))[0] == (4, 3)
        found, summary = await audit(own_bus, store, ingest)
        assert found == []
        assert (summary.delivered_tokens, summary.undelivered_requests, summary.undelivered_tokens) == (12, 1, 3)
        assert summary.unknown_deliveries == 1
        assert (await store.rows(f"SELECT count() FROM deliveries WHERE {row(unknown)}"))[0][0] == 0
        for request, tokens in ((whole, 4), (left, 6)):
            await store.command(
                f"ALTER TABLE deliveries UPDATE tokens = {tokens} WHERE {row(request)} SETTINGS mutations_sync = 1"
            )
        found, _ = await audit(own_bus, store, ingest)
        assert {(one.request_id, one.reason, one.delivered_tokens) for one in found} == {
            (whole, "delivered", 4), (left, "delivered", 6)
        }  # fmt: skip
        assert {one.detail for one in found} == {
            "an edge delivered 4 tokens as the whole answer, the log has 5",
            "edge-0 delivered 6 tokens, the log has 5",
        }


@given(st.lists(st.tuples(st.integers(5, 9000), st.integers(0, 9), st.integers(0, 9)), unique_by=lambda row: row[0]))
def test_just_the_frames_that_differ_are_named(found: list[tuple[int, int, int]]) -> None:
    unlike = unlike_frames(Chunk(ONLY, 5, 9000), found)
    assert (unlike.before, unlike.after) == (sum(row[1] for row in found), sum(row[2] for row in found))
    assert bool(unlike.condition) == bool(found)
    if 0 < len(found) <= MOST_NAMED:
        assert all(str(row[0]) in unlike.condition for row in found)


def test_a_request_whose_end_was_replaced_outside_of_the_chunk_is_not_missing() -> None:
    one, two = UUID(int=1), UUID(int=2)
    chunk = Chunk(ONLY, 1, 9)
    assert unlike_requests(chunk, [(one, 0, 1)], [one]).condition == ""
    unlike = unlike_requests(chunk, [(one, 1, 1), (two, 0, 1)], [one])
    assert (unlike.before, unlike.after) == (1, 2)
    many = [(UUID(int=number), 0, 1) for number in range(MOST_NAMED + 1)]
    assert unlike_requests(chunk, many, []).condition == chunk.condition("requests")


@pytest.mark.parametrize("version", ["v1", "", "gone"])
def test_a_request_is_charged_by_the_version_of_that_name(make: Any, version: str) -> None:
    other = PriceRecord(rate_version="v2", currency="USD", input_per_million="1", output_per_million="1")
    other.effective_time.FromMicroseconds(1)
    gather, frame = FrameGather(), make.close(Frame(time_us=clock.now_us()), make.request_id(), 5)
    gather.add(1, frame.time_us, frame.SerializeToString())
    (item,) = gather.finish().closes
    rate = rate_named(item, PriceBook.of([*RECORDS, other]), version)
    expected = {"v1": Decimal("0.0000045"), "": Decimal(0), "gone": None}
    assert (None if rate is None else charge_of(item.close, rate)) == expected[version]


async def test_a_replay_whose_caller_has_left_is_over_before_another_may_begin(own_bus, store, frame_log) -> None:
    """Else it would drop the tables of the other one."""
    await frame_log.request(2)
    async with ingesting(own_bus, store) as ingest:
        servicer = ReplayServicer(own_bus, FrameLog(own_bus), store, ingest, SimpleNamespace(book=BOOK), "m")  # type: ignore[arg-type]
        events: Any = servicer.Replay(ReplayRequest(), None)  # type: ignore[arg-type]
        assert (await anext(events)).HasField("progress")
        await events.aclose()
    left = "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'replay_')"
    assert await store.rows(left) == []


async def test_a_meter_that_may_only_insert_says_so_and_a_second_replay_waits_its_turn(own_bus, store) -> None:
    ingest = Ingest(FrameLog(own_bus), store, lambda: BOOK, LIMITS, "m-1")

    async def ask(may: Store | None, timeout: timedelta = timedelta(seconds=20)) -> str:
        servicer = ReplayServicer(own_bus, FrameLog(own_bus), may, ingest, SimpleNamespace(book=BOOK), "m")  # type: ignore[arg-type]
        request = ReplayRequest()
        request.timeout.FromTimedelta(timeout)
        try:
            events = [event async for event in servicer.Replay(request, None)]  # type: ignore[arg-type]
        except InferBusError as error:
            return error.reason
        return events[-1].summary.not_held

    assert await ask(None) == "replay_not_configured"
    async with hold(own_bus, LEASE, "another", timedelta(seconds=30)):
        assert await ask(store, timedelta(milliseconds=300)) == "replay_running"
    assert await ask(store) == "the stream is empty: nothing was touched"

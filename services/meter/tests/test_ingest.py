"""TOKENS into the tables exactly once, with a real broker and a real engine, crashed between any two steps."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog, Stored
from inferbus_bus.streams import ensure_streams
from inferbus_meter.bringing import insert_token
from inferbus_meter.claims import Brought, Claims
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.claims import Claim, taken_over
from inferbus_meter.core.frames import FrameBatch, FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_rating import PriceBook

MINUTES_FROM_TOKENS = (
    "SELECT toStartOfMinute(time) AS minute, tenant_id, model, count() AS tokens "
    "FROM token_events GROUP BY minute, tenant_id, model"
)
LIMITS = FlushLimits(100_000, timedelta(milliseconds=50), timedelta(milliseconds=300))
SMALL = FlushLimits(10, timedelta(milliseconds=50), timedelta(milliseconds=300))
NO_PRICES = PriceBook.of([])


def new_ingest(bus: Bus, store: Store, holder: str = "m", limits: FlushLimits = LIMITS) -> Ingest:
    return Ingest(FrameLog(bus), store, lambda: NO_PRICES, limits, holder)


@asynccontextmanager
async def ingesting(ingest: Ingest) -> AsyncIterator[Ingest]:
    task = asyncio.create_task(ingest.run())
    try:
        yield ingest
    finally:
        ingest.stop()
        await task


async def ingest_all(bus: Bus, store: Store, last: int, holder: str = "m", limits: FlushLimits = LIMITS) -> None:
    async with ingesting(new_ingest(bus, store, holder, limits)) as ingest:
        assert await ingest.reached(last, 60)


async def counts(store: Store) -> dict[str, int]:
    """Tokens and requests, in the tables and as each view has them."""
    queries = {
        "token_events": "SELECT count() FROM token_events",
        "distinct": "SELECT uniqExact(request_id, attempt, index) FROM token_events",
        "tokens": "SELECT count() FROM tokens",
        "tokens_by_minute": "SELECT sum(tokens) FROM latency_by_minute",
        "requests": "SELECT count() FROM requests",
        "requests_by_minute": "SELECT sum(requests) FROM latency_by_minute_and_tenant",
        "output_tokens": "SELECT sum(output_tokens) FROM usage_by_hour",
    }
    return {name: int((await store.rows(query))[0][0]) for name, query in queries.items()}


def all_are(found: dict[str, int], tokens: int, requests: int) -> bool:
    wanted = {name: requests if name.startswith("requests") else tokens for name in found}
    assert found == wanted
    return True


async def last_sequence(bus: Bus) -> int:
    return (await FrameLog(bus).bounds())[1]


async def read(bus: Bus, first: int, last: int) -> FrameBatch:
    gather = FrameGather()
    async for stored in FrameLog(bus).read(first, last):
        for frame in stored:
            assert gather.add(*frame)
    return gather.finish()


async def insert(store: Store, batch: FrameBatch, first: int, last: int, *, requests: bool = True) -> None:
    """One block, as a meter inserts it."""
    rows = [token_rows(batch), *([request_rows(batch, NO_PRICES)] if requests else [])]
    for one in rows:
        await store.insert(one.table, one.data, insert_token(one.table, 0, first, last))


async def open_claims(store: Store) -> list[Claim]:
    claims = Claims(store)
    await claims.read()
    return claims.ledger.open


async def test_every_token_and_request_once_in_tables_and_views(own_bus, store, frame_log) -> None:
    for _ in range(4):
        await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 20, 4)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 25, 5)
    assert await open_claims(store) == []


async def test_a_claim_is_cut_into_blocks_and_the_table_says_what_it_held(own_bus, store, frame_log) -> None:
    for _ in range(6):
        await frame_log.request(10)
    last = await last_sequence(own_bus)
    await ingest_all(own_bus, store, last, limits=SMALL)
    assert all_are(await counts(store), 60, 6)
    done = await store.rows("SELECT first_seq, last_seq, tokens, requests FROM ingest_batches WHERE done ORDER BY 1")
    assert [first for first, *_ in done] == [1, *(last + 1 for _, last, *_ in done[:-1])]
    assert (done[-1][1], sum(row[2] for row in done), sum(row[3] for row in done)) == (last, 60, 6)
    parts = await store.rows("SELECT max(rows) FROM system.parts WHERE database = currentDatabase() AND level = 0 "
                             "AND table = 'token_events'")  # fmt: skip
    assert parts[0][0] <= SMALL.tokens


@pytest.mark.parametrize("reached", ["claim", "tokens", "requests"])
async def test_killed_after_any_step(own_bus, store, frame_log, reached: str) -> None:
    for _ in range(3):
        await frame_log.request(5)
    last = await last_sequence(own_bus)
    await Claims(store).write(Claim(0, 0, 1, last, 1, "killed", 100))
    if reached != "claim":
        await insert(store, await read(own_bus, 1, last), 1, last, requests=reached != "tokens")
    await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus), "successor")
    assert all_are(await counts(store), 20, 4)


async def test_killed_between_the_blocks_of_a_claim(own_bus, store, frame_log) -> None:
    """Whatever the successor's own settings are, it cuts the claim as it was begun."""
    for _ in range(3):
        await frame_log.request(5)
    await Claims(store).write(Claim(0, 0, 1, 18, 1, "killed", 6))
    for first in (1, 7):  # five tokens and an end are six; the second block's end is missing
        await insert(store, await read(own_bus, first, first + 5), first, first + 5, requests=first == 1)
    await ingest_all(own_bus, store, await last_sequence(own_bus), "successor", SMALL)
    assert all_are(await counts(store), 15, 3)


async def test_a_table_of_a_single_meters_times_is_gone_on_with(own_bus, store, frame_log) -> None:
    """Its batches follow one another; the last one may be in the tables only in part."""
    for _ in range(3):
        await frame_log.request(5)
    batches = ((1, 6), (7, 12))
    for first, last in batches:
        await store.command(
            "INSERT INTO ingest_batches (stream, epoch, first_seq, last_seq, holder, intent_time) "
            f"VALUES ('TOKENS', 0, {first}, {last}, 'meter-1', now64(6))"
        )
        await insert(store, await read(own_bus, first, last), first, last, requests=last < 12)
    assert [claim.first for claim in await open_claims(store)] == [7]
    await ingest_all(own_bus, store, await last_sequence(own_bus), "successor", SMALL)
    assert all_are(await counts(store), 15, 3)


async def test_a_view_that_a_crash_left_out_is_filled(own_bus, store, frame_log) -> None:
    await frame_log.request(5)
    last = await last_sequence(own_bus)
    # The insert dies between the table and its view: the view cannot take the block.
    broken = MINUTES_FROM_TOKENS.replace("count() AS", "count() + sum(throwIf(attempt = 1)) AS")
    await store.command(f"ALTER TABLE latency_minutes_from_tokens MODIFY QUERY {broken}")
    ingest = new_ingest(own_bus, store)
    task = asyncio.create_task(ingest.run())
    while (await store.rows("SELECT count() FROM token_events"))[0][0] != 5:
        await asyncio.sleep(0.02)
    assert not await ingest.reached(last, 0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await store.rows("SELECT sum(tokens) FROM latency_by_minute"))[0][0] == 0
    await store.command(f"ALTER TABLE latency_minutes_from_tokens MODIFY QUERY {MINUTES_FROM_TOKENS}")
    await ingest_all(own_bus, store, last, "successor")
    assert all_are(await counts(store), 5, 1)


async def test_meters_share_the_stream_and_come_and_go_while_it_flows(own_bus, store, frame_log) -> None:
    meters = {
        name: new_ingest(own_bus, store, f"{name}-1", replace(SMALL, tokens=30)) for name in ("one", "two", "three")
    }
    tasks = {}
    for name, meter in meters.items():
        tasks[name] = asyncio.create_task(meter.run())
        for _ in range(10):
            await frame_log.request(5)
    tasks["one"].cancel()  # dies
    meters["two"].stop()  # leaves
    for _ in range(10):
        await frame_log.request(5)
    last = await last_sequence(own_bus)
    assert await meters["three"].reached(last, 60)
    meters["three"].stop()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert all_are(await counts(store), 200, 40)
    assert await open_claims(store) == []


async def test_of_claims_that_begin_at_one_sequence_the_store_keeps_one(store) -> None:
    rivals = [Claim(0, 0, 1, 10 + number, 1, f"meter-{number}", 100) for number in range(8)]
    meters = [Claims(store) for _ in rivals]
    for _ in range(3):  # also when each says it again
        await asyncio.gather(*(meter.write(rival) for meter, rival in zip(meters, rivals, strict=True)))
    for meter in meters:
        await meter.read()
    [winner] = meters[0].ledger.open
    assert all(meter.ledger.open == [winner] for meter in meters)
    assert winner in rivals


class SlowLog(FrameLog):
    """Reads no frame before it may."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def read(self, *arguments: Any, **named: Any) -> AsyncGenerator[list[Stored], None]:
        self.asked.set()
        await self.may.wait()
        async for stored in super().read(*arguments, **named):
            yield stored


async def test_a_slow_meter_keeps_its_claim_as_long_as_it_lives(own_bus, store, frame_log) -> None:
    await frame_log.request(5)
    slow, limits = SlowLog(own_bus), replace(LIMITS, lease=timedelta(seconds=6))
    async with ingesting(Ingest(slow, store, lambda: NO_PRICES, limits, "slow-1")) as first:
        await slow.asked.wait()
        async with ingesting(new_ingest(own_bus, store, "other-1", limits)) as other:
            await frame_log.request(5)
            attempt = 1
            while attempt < 5:  # a sign of life each third of the lease
                claim = (await open_claims(store))[0]
                assert (claim.first, claim.holder) == (1, "slow-1")
                attempt = claim.attempt
                await asyncio.sleep(0.1)
            assert other.position == 0
            slow.may.set()
            assert await other.reached(12, 60)
        assert await first.reached(12, 60)
    assert all_are(await counts(store), 10, 2)


async def test_what_others_did_meanwhile_is_left_out_even_if_the_store_has_forgotten_it(
    own_bus, store, frame_log
) -> None:
    await frame_log.request(5)
    slow = SlowLog(own_bus)
    async with ingesting(Ingest(slow, store, lambda: NO_PRICES, LIMITS, "slow-1")) as meter:
        await slow.asked.wait()
        [claim] = await open_claims(store)
        await insert(store, await read(own_bus, claim.first, claim.last), claim.first, claim.last)
        await Claims(store).finish(claim, Brought(5, 1))
        for table in ("token_events", "requests", "latency_minutes"):
            await store.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
        assert await meter.reached(claim.last, 60)
        slow.may.set()
    assert all_are(await counts(store), 5, 1)


async def test_a_meter_that_was_taken_for_dead_and_comes_back_adds_nothing(own_bus, store, frame_log) -> None:
    """It goes on where it was stopped: between reading its frames and inserting them."""
    for _ in range(2):
        await frame_log.request(5)
    claims, claim = Claims(store), Claim(0, 0, 1, 12, 1, "stopped-1", 100)
    await claims.write(claim)
    batch = await read(own_bus, 1, 12)
    await ingest_all(own_bus, store, 12, "other-1")
    assert all_are(await counts(store), 10, 2)
    await insert(store, batch, 1, 12)
    await claims.finish(claim, Brought(10, 2))
    await claims.write(taken_over(claim, "stopped-1"))
    await frame_log.request(5)
    await ingest_all(own_bus, store, 18, "third-1")
    assert all_are(await counts(store), 15, 3)


async def test_malformed_frames_stop_nothing(own_bus, store, frame_log, caplog) -> None:
    await frame_log.request(2)
    await own_bus.nc.jetstream().publish("tok.edge-0.worker-0", b"\xff no frame")
    await frame_log.request(2)
    with caplog.at_level(logging.ERROR):
        await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert [record.sequence for record in caplog.records if "malformed" in record.message] == [4]
    assert all_are(await counts(store), 4, 2)


async def test_a_batch_of_malformed_frames_alone_moves_on(own_bus, store, frame_log) -> None:
    await own_bus.nc.jetstream().publish("tok.edge-0.worker-0", b"\xff")
    await ingest_all(own_bus, store, 1)
    await frame_log.request(2)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 2, 1)


async def test_frames_on_both_sides_of_a_month_go_into_two_batches(own_bus, store, frame_log, make) -> None:
    midnight = 1_796_083_200_000_000
    now = make.request_id()
    frames = [
        make.tokens(Frame(time_us=midnight + shift), now, index, [1]) for index, shift in enumerate((-2, -1, 0, 1))
    ]
    gather, batches = FrameGather(), []
    for sequence, frame in enumerate(frames, start=1):
        data = frame.SerializeToString()
        if not gather.add(sequence, midnight, data):
            batches.append(gather.finish())
            gather = FrameGather()
            assert gather.add(sequence, midnight, data)
    for number, batch in enumerate([*batches, gather.finish()]):
        rows = token_rows(batch)
        await store.insert(rows.table, rows.data, f"month-{number}")
    parts = await store.rows(
        "SELECT partition, sum(rows) FROM system.parts WHERE active AND database = currentDatabase() "
        "AND table = 'token_events' GROUP BY partition ORDER BY partition"
    )
    assert [(str(partition), int(rows)) for partition, rows in parts] == [("202611", 2), ("202612", 2)]


async def test_frames_that_aged_out_before_they_were_surely_inserted_are_named(
    own_bus, store, frame_log, caplog
) -> None:
    await frame_log.request(5)
    last = await last_sequence(own_bus)
    await Claims(store).write(Claim(0, 0, 1, last, 1, "killed", 100))
    await own_bus.api("STREAM.PURGE.TOKENS", {"seq": 4})  # keeps 4 and later
    await frame_log.request(5)
    with caplog.at_level(logging.ERROR):
        await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert [(r.first_sequence, r.last_sequence) for r in caplog.records if "aged out" in r.message] == [(1, 3)]
    found = await counts(store)
    assert (found["token_events"], found["requests"]) == (2 + 5, 2)


async def test_a_stream_whose_beginning_has_aged_out_is_begun_where_it_begins(own_bus, store, frame_log) -> None:
    for _ in range(4):
        await frame_log.request(10)
    await own_bus.api("STREAM.PURGE.TOKENS", {"seq": 34})
    await ingest_all(own_bus, store, await last_sequence(own_bus), limits=SMALL)
    assert all_are(await counts(store), 10, 1)


async def test_a_stream_made_anew_is_read_from_its_beginning(own_bus, store, frame_log) -> None:
    await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    await own_bus.api("STREAM.DELETE.TOKENS")
    await ensure_streams(own_bus)
    await frame_log.request(2)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    await frame_log.request(5)  # the same sequences as in the first stream, in the end
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 12, 3)


async def test_a_claim_whose_frames_are_gone_with_their_stream_is_not_done_with_those_of_the_next(
    own_bus, store, frame_log
) -> None:
    await frame_log.request(5)
    slow = SlowLog(own_bus)
    task = asyncio.create_task(Ingest(slow, store, lambda: NO_PRICES, LIMITS, "slow-1").run())
    await slow.asked.wait()
    task.cancel()  # dies with its claim
    await asyncio.gather(task, return_exceptions=True)
    await own_bus.api("STREAM.DELETE.TOKENS")
    await ensure_streams(own_bus)
    for _ in range(2):
        await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus), "other-1")
    assert all_are(await counts(store), 10, 2)


async def test_the_store_being_away_is_waited_out_with_bounded_memory(own_bus, tmp_path, frame_log, make) -> None:
    server = make.ClickHouseServer(tmp_path)
    await server.start()
    try:
        async with make.fresh_database(server) as store:
            await frame_log.request(5)
            async with ingesting(new_ingest(own_bus, store, limits=SMALL)) as ingest:
                last = await last_sequence(own_bus)
                assert await ingest.reached(last, 60)
                await server.kill()
                for _ in range(20):
                    await frame_log.request(5)
                assert ingest.position == last
                assert ingest.waiting_tokens <= 2 * SMALL.tokens
                await server.start()
                assert await ingest.reached(await last_sequence(own_bus), 60)
            assert all_are(await counts(store), 105, 21)
    finally:
        await server.kill()


async def test_told_to_stop_while_the_store_is_away_it_stops(own_bus, tmp_path, frame_log, make) -> None:
    server = make.ClickHouseServer(tmp_path)  # never started
    store = Store(server.config("writer", "inferbus"))
    ingest = new_ingest(own_bus, store)
    task = asyncio.create_task(ingest.run())
    await asyncio.sleep(0.2)
    ingest.stop()
    async with asyncio.timeout(30):
        await task

"""TOKENS into the tables exactly once, with a real broker and a real engine, crashed between any two steps."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_bus.streams import ensure_streams
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.ingest import FlushLimits, Ingest, Intent, NotAloneError, insert_token, intent_rows

MINUTES_FROM_TOKENS = (
    "SELECT toStartOfMinute(time) AS minute, tenant_id, model, count() AS tokens "
    "FROM token_events GROUP BY minute, tenant_id, model"
)
LIMITS = FlushLimits(100_000, timedelta(milliseconds=50))


def new_ingest(bus: Bus, store: Store, holder: str = "m", limits: FlushLimits = LIMITS) -> Ingest:
    return Ingest(FrameLog(bus), store, dict, limits, holder)


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
        assert await ingest.reached(last, 20)


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


async def test_every_token_and_request_once_in_tables_and_views(own_bus, store, frame_log) -> None:
    for _ in range(4):
        await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 20, 4)
    await ingest_all(own_bus, store, await last_sequence(own_bus))  # a clean restart does the last batch again
    await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 25, 5)


async def test_batches_end_at_the_wanted_size(own_bus, store, frame_log) -> None:
    for _ in range(6):
        await frame_log.request(10)
    small = FlushLimits(20, timedelta(seconds=30))  # by size alone: the last frames wait for the interval
    async with ingesting(new_ingest(own_bus, store, limits=small)) as ingest:
        assert await ingest.reached(await last_sequence(own_bus) - 11, 20)
    sizes = [int(n) for (n,) in await store.rows("SELECT tokens FROM ingest_batches ORDER BY first_seq")]
    assert sizes == [20] * len(sizes)
    await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert all_are(await counts(store), 60, 6)


@pytest.mark.parametrize("reached", ["intent", "tokens", "requests"])
async def test_killed_after_any_step(own_bus, store, frame_log, reached: str) -> None:
    for _ in range(3):
        await frame_log.request(5)
    last = await last_sequence(own_bus)
    intent = Intent(0, 1, last)
    gather = FrameGather()
    async for stored in FrameLog(own_bus).read(1, last):
        for frame in stored:
            gather.add(*frame)
    batch = gather.finish()
    steps = {
        "intent": intent_rows(intent, batch, "killed"),
        "tokens": token_rows(batch),
        "requests": request_rows(batch, {}),
    }
    for name, rows in steps.items():
        token = "TOKENS-intent-0-1" if name == "intent" else insert_token(rows.table, intent)
        await store.insert(rows.table, rows.data, token)
        if name == reached:
            break
    await frame_log.request(5)
    await ingest_all(own_bus, store, await last_sequence(own_bus), "successor")
    assert all_are(await counts(store), 20, 4)


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


async def test_two_meters_at_once_insert_each_frame_once_and_one_stops(own_bus, store, frame_log) -> None:
    for _ in range(3):
        await frame_log.request(5)
    meters = [new_ingest(own_bus, store, holder) for holder in ("one", "two")]
    tasks = [asyncio.create_task(meter.run()) for meter in meters]
    for _ in range(3):
        await frame_log.request(5)
    done, rest = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(NotAloneError):
        done.pop().result()
    winner = meters[tasks.index(rest.pop())]
    await frame_log.request(5)
    assert await winner.reached(await last_sequence(own_bus), 20)
    winner.stop()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all_are(await counts(store), 35, 7)


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
    intent = Intent(0, 1, last)
    rows = intent_rows(intent, FrameGather().finish(), "killed")
    await store.insert(rows.table, rows.data, "TOKENS-intent-0-1")
    await own_bus.api("STREAM.PURGE.TOKENS", {"seq": 4})  # keeps 4 and later
    await frame_log.request(5)
    with caplog.at_level(logging.ERROR):
        await ingest_all(own_bus, store, await last_sequence(own_bus))
    assert [(r.first_sequence, r.last_sequence) for r in caplog.records if "aged out" in r.message] == [(1, 3)]
    found = await counts(store)
    assert (found["token_events"], found["requests"]) == (2 + 5, 2)


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


async def test_the_store_being_away_is_waited_out_with_bounded_memory(own_bus, tmp_path, frame_log, make) -> None:
    server = make.ClickHouseServer(tmp_path)
    await server.start()
    try:
        async with make.fresh_database(server) as store:
            await frame_log.request(5)
            small = FlushLimits(10, timedelta(milliseconds=50))
            async with ingesting(new_ingest(own_bus, store, limits=small)) as ingest:
                assert await ingest.reached(await last_sequence(own_bus), 20)
                position = ingest.position
                await server.kill()
                for _ in range(20):
                    await frame_log.request(5)
                assert ingest.position <= position + 17  # at most what was on its way
                assert ingest.waiting_tokens <= 10 + 1
                await server.start()
                assert await ingest.reached(await last_sequence(own_bus), 30)
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
    async with asyncio.timeout(10):
        await task

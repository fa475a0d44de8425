"""How long workers are up: looked at, written by several meters, and counted in the margin."""

import asyncio
import json
import uuid
from collections import Counter, defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_meter import usage
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.margin import OperatingPrices
from inferbus_meter.core.up_queries import unwatched_us
from inferbus_meter.core.worker_time import GAP_US, KEPT_US, MINUTE_US, WorkerTime, worker_rows
from inferbus_meter.worker_minutes import WorkerMinutes

HOUR = 60 * MINUTE_US
BEGIN = 1_790_000_000 // 3600 * HOUR
SECOND = 1_000_000
PRICES = OperatingPrices(Decimal("3.60"), None, "USD", 1)


def record(worker: str, boot: int = 1, gpus: int = 0, names: str = "", model: str = "m") -> WorkerRecord:
    return WorkerRecord(
        worker=worker, boot=boot, model=model, revision="r1", engine="llama_cpp", gpus=gpus, gpu_names=names
    )


def watched(span: tuple[int, int], *workers: WorkerRecord, every: int = SECOND) -> WorkerTime:
    seen = WorkerTime()
    for at in range(span[0], span[1] + 1, every):
        seen.look(at, workers)
    return seen


async def put(store: Store, seen: WorkerTime) -> None:
    for rows in worker_rows(seen.minutes, seen.workers):
        await store.insert(rows.table, rows.data, uuid.uuid4().hex)


async def earn(store: Store, worker: str, end_us: int, spent_us: int) -> None:
    """By one request, that long in the engine."""
    row = {
        "request_id": f"00000000-0000-7000-8000-{end_us // 1000:012x}", "tenant_id": "acme", "model": "m",
        "revision": "r1", "engine": "llama_cpp", "worker": worker, "attempt": 1, "queue_us": 0, "e2e_us": spent_us,
        "accepted_time": (end_us - spent_us) / 1e6, "end_time": end_us / 1e6, "cost": "5", "currency": "USD",
        "finish_reason": "stop", "output_tokens": 10,
    }  # fmt: skip
    client = await store._connected()
    await client.raw_insert("requests", insert_block=json.dumps(row), fmt="JSONEachRow")


LOOKS = st.lists(
    st.tuples(
        st.integers(-3 * SECOND, GAP_US + 5 * SECOND),
        st.one_of(st.none(), st.frozensets(st.integers(0, 3), max_size=3)),
    ),
    max_size=60,
)


@given(st.integers(0, 2 * MINUTE_US), LOOKS)
def test_a_worker_was_up_since_the_look_before_if_that_was_not_long_ago(
    start: int, looks: list[tuple[int, frozenset[int] | None]]
) -> None:
    """Against sums by minute of what lies between two looks."""
    seen, now, before = WorkerTime(), BEGIN + start, 0
    watched_at: dict[int, Counter[int]] = defaultdict(Counter)
    for step, workers in looks:
        now += step // 1000 * 1000
        if workers is None:
            seen.look_away()
            before = 0
            continue
        seen.look(now, [record(f"w{one}") for one in workers])
        if before and before < now <= before + GAP_US:
            at = before
            while at < now:
                until = min(now, (at // MINUTE_US + 1) * MINUTE_US)
                for one in (-1, *workers):
                    watched_at[at // MINUTE_US * MINUTE_US][one] += until - at
                at = until
        before = now
    wanted = {
        begin: {one: min(MINUTE_US, us) for one, us in sums.items()}
        for begin, sums in watched_at.items()
    }  # fmt: skip
    found = {
        begin: {-1: one.watched_us, **{int(name[1:]): us for (name, _), us in one.up_us.items()}}
        for begin, one in seen.minutes.items()
    }
    assert found == wanted
    assert all(us <= one.watched_us <= MINUTE_US for one in seen.minutes.values() for us in one.up_us.values())


def test_what_is_kept_in_memory_is_an_hour() -> None:
    seen = watched((BEGIN, BEGIN + 2 * KEPT_US), record("w"), every=5 * SECOND)
    assert len(seen.minutes) == KEPT_US // MINUTE_US
    seen = WorkerTime()
    for boot in range(500):
        seen.look(BEGIN + boot * MINUTE_US // 12, [record("w", boot)])
    for after in range(2 * 60 * 12):
        seen.look(BEGIN + (500 + after) * MINUTE_US // 12, [])
    assert not seen.workers


async def test_several_meters_and_a_second_writing_change_nothing(store: Store) -> None:
    """One has seen a minute whole, one a part of it: the whole counts, whoever writes last."""
    whole = watched((BEGIN, BEGIN + 2 * MINUTE_US), record("w", gpus=2, names="H100"))
    late = watched((BEGIN + MINUTE_US // 2, BEGIN + 2 * MINUTE_US), record("w", gpus=2, names="H100"))
    for seen in (late, whole, late, whole, late):
        await put(store, seen)
    answer = await usage.margin(store, BEGIN, BEGIN + HOUR, PRICES)
    (row,) = answer.rows
    assert (row.worker, row.gpus, row.gpu_names, row.choices) == ("w", 2, "H100", 0)
    assert row.up.ToMicroseconds() == 2 * MINUTE_US
    assert answer.watched.ToMicroseconds() == 2 * MINUTE_US
    assert answer.unwatched.ToMicroseconds() == 58 * MINUTE_US


async def test_a_gpu_costs_while_it_idles(store: Store) -> None:
    """An hour up with two GPUs at 3.60 an hour each, half of it busy; and a worker that earned nothing."""
    workers = record("w", gpus=2, names="H100"), record("idle", model="other")
    await put(store, watched((BEGIN, BEGIN + HOUR), *workers))
    await earn(store, "w", BEGIN + HOUR - SECOND, HOUR // 2)
    answer = await usage.margin(store, BEGIN, BEGIN + HOUR, PRICES)
    w, idle = answer.rows
    assert (w.gpu_hours, w.busy_gpu_hours, w.utilization) == (2.0, 1.0, 0.5)
    assert (Decimal(w.gpu_cost), Decimal(w.margin)) == (Decimal("7.20"), Decimal("-2.20"))
    assert (idle.model, idle.gpus, idle.gpu_hours, idle.utilization, idle.output_tokens) == ("other", 1, 1.0, 0.0, 0)
    assert (Decimal(idle.gpu_cost), Decimal(idle.margin), list(idle.revenue)) == (Decimal("3.6"), Decimal("-3.6"), [])
    assert answer.unwatched.ToMicroseconds() == 0


async def test_what_no_meter_watched_is_said_and_not_guessed(store: Store) -> None:
    """Busy for half an hour, of which a meter saw ten minutes."""
    await put(store, watched((BEGIN, BEGIN + 10 * MINUTE_US), record("w")))
    await earn(store, "w", BEGIN + HOUR // 2, HOUR // 2)
    answer = await usage.margin(store, BEGIN, BEGIN + HOUR, PRICES)
    (row,) = answer.rows
    assert row.up.ToMicroseconds() == 10 * MINUTE_US
    assert (row.gpu_hours, row.busy_gpu_hours) == (0.5, 0.5)  # what it was busy it was up
    assert answer.unwatched.ToMicroseconds() == 50 * MINUTE_US
    (before,) = (await usage.margin(store, BEGIN + 20 * MINUTE_US, BEGIN + HOUR, PRICES)).rows
    assert not before.HasField("up")
    assert not before.HasField("utilization")
    assert before.busy_gpu_hours == before.gpu_hours == 0.5
    # Without a start: since there is anything.
    assert (await usage.margin(store, 0, BEGIN + HOUR, PRICES)).unwatched.ToMicroseconds() == 50 * MINUTE_US
    # Whatever somebody asks for: all that a Timestamp can say.
    ages = await usage.margin(store, -62_135_596_800_000_000, 253_402_300_799_000_000, PRICES)
    assert ages.watched.ToMicroseconds() == 10 * MINUTE_US


async def test_a_restart_with_other_gpus_is_counted_with_each(store: Store) -> None:
    """Half an hour with one GPU, half with three, busy for a quarter of the hour."""
    await put(store, watched((BEGIN, BEGIN + HOUR // 2), record("w", 1, gpus=1, names="L4")))
    await put(store, watched((BEGIN + HOUR // 2, BEGIN + HOUR), record("w", 2, gpus=3, names="L4")))
    await earn(store, "w", BEGIN + HOUR - SECOND, HOUR // 4)
    (row,) = (await usage.margin(store, BEGIN, BEGIN + HOUR, PRICES)).rows
    assert (row.gpus, row.gpu_hours, row.busy_gpu_hours, row.utilization) == (3, 2.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("start", "row", "wanted"),
    [
        (BEGIN, (0, 0, 0), HOUR),
        (BEGIN, (HOUR, BEGIN, 0), 0),
        (BEGIN + 1, (0, 0, 0), HOUR - MINUTE_US),
        (0, (0, 0, 0), 0),
        (0, (10 * MINUTE_US, BEGIN + HOUR // 2, BEGIN + 61 * SECOND), HOUR - 11 * MINUTE_US),
        (BEGIN, (2 * HOUR, BEGIN, BEGIN), 0),
    ],
)
def test_unwatched_is_the_rest_of_the_range(start: int, row: tuple[int, int, int], wanted: int) -> None:
    assert unwatched_us(start, BEGIN + HOUR, BEGIN + 9 * HOUR, row) == wanted
    assert unwatched_us(start, BEGIN + 9 * HOUR, BEGIN + HOUR, row) == wanted  # nothing is due of what is to come


async def test_the_lease_of_a_worker_is_its_time(own_bus: Bus, store: Store) -> None:
    """A real bucket: a worker comes, is seen, goes and is not seen any more; nothing is seen while the bus is away."""
    fleet, minutes = Registry(own_bus, "fleet", WorkerRecord), WorkerMinutes(own_bus, store)
    await fleet.start()
    watching = asyncio.create_task(minutes.watch())
    try:
        await fleet.put("w", record("w", 7, gpus=4, names="H100"), timedelta(seconds=60))
        row = await up_for(minutes, store)
        assert row == ("w", 7, "m", "r1", "llama_cpp", 4, "H100")
        await fleet.delete("w")
        while fleet.items():
            await asyncio.sleep(0.01)
        await no_more_of_it(minutes, store)
    finally:
        watching.cancel()
        await fleet.stop()


async def up_for(minutes: WorkerMinutes, store: Store) -> Any:
    query = "SELECT worker, boot, model, revision, engine, gpus, gpu_names FROM worker_minutes FINAL"
    async with asyncio.timeout(20):
        while True:
            await minutes.write()
            if rows := await store.rows(query):
                return tuple(rows[0])
            await asyncio.sleep(0.1)


async def no_more_of_it(minutes: WorkerMinutes, store: Store) -> None:
    """The fleet is looked at, and nobody is up."""
    async with asyncio.timeout(60):
        up, seen = await sums(minutes, store)
        while True:
            await asyncio.sleep(0.2)
            up_now, seen_now = await sums(minutes, store)
            if up_now > up:
                up, seen = up_now, seen_now
            elif seen_now > seen + 2 * SECOND:
                return


async def sums(minutes: WorkerMinutes, store: Store) -> tuple[int, int]:
    """Microseconds up, and watched."""
    await minutes.write()
    rows = await store.rows(
        "SELECT (SELECT sum(up_us) FROM worker_minutes FINAL), (SELECT sum(watched_us) FROM watched_minutes FINAL)"
    )
    return int(rows[0][0]), int(rows[0][1])

"""Migration 0021 makes the table ``requests`` anew: meters run beside it, it may be killed anywhere, no row is lost."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest_asyncio
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows
from inferbus_meter.migrate import migrate, migrations, schema, statements
from inferbus_rating import PriceBook
from inferbus_runtime import clock

OWN = next(file for file in migrations() if file.name.endswith("_requests_by_position.sql"))
SUMS = (
    "SELECT count() FROM bills",
    "SELECT sum(requests) FROM request_minutes",
    "SELECT sum(n) FROM latency_counts WHERE measure = 'e2e'",
)


@pytest_asyncio.fixture
async def before(store: Store) -> Store:
    """As the schema was before it."""
    ((name,),) = await store.rows("SELECT currentDatabase()")
    tables = await store.rows(
        "SELECT name FROM system.tables WHERE database = currentDatabase() ORDER BY endsWith(engine, 'MergeTree')"
    )
    for (table,) in tables:
        await store.command(f"DROP TABLE `{table}` SYNC")
    await migrate(store, name, migrations()[: OWN.version - 1])
    return store


class Claim:
    """What a meter inserts, until it is told that it is done."""

    def __init__(self, make: Any, request: bytes, output_tokens: int, sequence: int) -> None:
        frame = make.close(Frame(time_us=clock.now_us()), request, output_tokens)
        gather = FrameGather()
        assert gather.add(sequence, frame.time_us, frame.SerializeToString())
        self._data = request_rows(gather.finish(), PriceBook.of([])).data
        self._token = f"claim-{sequence}"

    async def insert(self, store: Store) -> None:
        await store.insert("requests", self._data, self._token)

    async def insert_at_last(self, store: Store) -> None:
        is_done = False
        while not is_done:
            with suppress(*STORE_ERRORS):
                await self.insert(store)
                is_done = True


async def sums(store: Store) -> list[int]:
    return [int((await store.rows(query))[0][0]) for query in SUMS]


async def test_the_later_end_counts_whichever_came_first_also_of_rows_of_before(before: Store, make: Any) -> None:
    store = before
    old, new = make.request_id(), make.request_id()
    await Claim(make, old, 20, 2).insert(store)
    await Claim(make, old, 10, 1).insert(store)
    assert await store.rows("SELECT output_tokens FROM bills") == [(10,)]  # the fault
    ((name,),) = await store.rows("SELECT currentDatabase()")
    assert (await migrate(store, name, migrations()))[0] == OWN.name
    assert await store.rows("SELECT output_tokens FROM bills") == [(20,)]
    await Claim(make, new, 40, 4).insert(store)
    await Claim(make, new, 30, 3).insert(store)
    for _ in range(2):
        assert await store.rows("SELECT output_tokens FROM bills ORDER BY ALL") == [(20,), (40,)]
        assert await store.rows("SELECT output_tokens FROM charges ORDER BY ALL") == [(20,), (40,)]
        await store.command("OPTIMIZE TABLE requests FINAL")


async def test_killed_after_any_statement_beside_a_meter_that_inserts(before: Store, make: Any) -> None:
    store, steps = before, statements(OWN.sql)
    inserted, stop = 0, False

    async def meter() -> None:
        nonlocal inserted
        while not stop:
            claim = Claim(make, make.request_id(), 3, inserted + 1)
            for _ in range(2):  # an answer may be lost, and it is tried again
                await claim.insert_at_last(store)
            inserted += 1

    running = asyncio.create_task(meter())
    for reached in range(1, len(steps) + 1):
        for step in (*steps[:reached], *steps):
            await store.command(step)
    stop = True
    await running
    assert inserted
    assert await sums(store) == [inserted] * 3
    ((name,),) = await store.rows("SELECT currentDatabase()")
    left = await store.rows(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'requests%'"
    )
    assert left == [("requests",)]
    await migrate(store, name, migrations())
    assert "ReplacingMergeTree(version)" in await schema(store, name)

"""A stream that lost its tail, a meter that was cut off, a frame that lies: nothing is doubled or lost besides."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.meter.v1.replay_pb2 import ReplaySummary
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.log import FrameLog
from inferbus_meter.audit import Audit, AuditRange
from inferbus_meter.bringing import insert_token
from inferbus_meter.claims import Brought, Claims
from inferbus_meter.clickhouse import Store, StoreConfig
from inferbus_meter.core.claims import Claim
from inferbus_meter.core.epochs import UNKNOWN, Epoch
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_meter.replay import Replay, ReplayRange
from inferbus_rating import PriceBook
from inferbus_stack.nats import NatsServer

LIMITS = FlushLimits(100_000, timedelta(milliseconds=50), timedelta(milliseconds=300))
BOOK = PriceBook.of([])
# Each token row once in the table, and as each view and rollup has it.
TOKENS = (
    "SELECT count() FROM token_events",
    "SELECT uniqExact(request_id, attempt, index) FROM token_events",
    "SELECT count() FROM tokens",
    "SELECT sum(tokens) FROM token_minutes",
)
REQUESTS = ("SELECT count() FROM requests", "SELECT count() FROM bills", "SELECT sum(requests) FROM request_minutes")


def new_ingest(bus: Bus, store: Store, name: str = "m") -> Ingest:
    return Ingest(FrameLog(bus), store, lambda: BOOK, LIMITS, f"{name}-1")


@asynccontextmanager
async def ingesting(bus: Bus, store: Store, name: str = "m") -> AsyncIterator[Ingest]:
    ingest = new_ingest(bus, store, name)
    task = asyncio.create_task(ingest.run())
    try:
        yield ingest
    finally:
        ingest.stop()
        await task


async def last_of(bus: Bus) -> int:
    return (await FrameLog(bus).bounds())[1]


async def counted(store: Store) -> tuple[set[int], set[int]]:
    """All that the tables and views say of how many tokens, and of how many requests: one number each."""
    found = []
    for queries in (TOKENS, REQUESTS):
        found.append({int((await store.rows(query))[0][0]) for query in queries})
    return found[0], found[1]


async def differences(bus: Bus, store: Store, ingest: Ingest) -> set[str]:
    events = Audit(AuditRange(None, None, 20.0), FrameLog(bus), store, ingest, BOOK).run()
    return {event.difference.reason async for event in events if event.HasField("difference")}


async def replay(bus: Bus, store: Store, ingest: Ingest) -> ReplaySummary:
    last = None
    async for event in Replay(ReplayRange(None, None, False, 20.0), FrameLog(bus), store, ingest, BOOK).run():
        last = event
    assert last is not None
    return last.summary


async def brought(bus: Bus, store: Store, epoch: int, *, name: str = "m") -> Ingest:
    """A meter that has been at it until it stands at the stream's end, in that epoch. Stopped."""
    async with ingesting(bus, store, name) as ingest:
        async with asyncio.timeout(20):
            while ingest.epoch.number != epoch or ingest.position < await last_of(bus):
                await asyncio.sleep(0.02)
    return ingest


class Disk:
    """The broker's folder: kept, and put back as it was, over a kill."""

    def __init__(self, server: NatsServer, saved: Path) -> None:
        self._server = server
        self._folder = server.folder / "jetstream"
        self._saved = saved

    async def keep(self) -> None:
        await self._server.stop()
        shutil.copytree(self._folder, self._saved)
        await self._server.start()

    async def put_back(self) -> None:
        await self._server.kill()
        shutil.rmtree(self._folder)
        shutil.copytree(self._saved, self._folder)
        await self._server.start()


@pytest.fixture
def disk(own_nats: NatsServer, tmp_path: Path) -> Disk:
    return Disk(own_nats, tmp_path / "saved")


@pytest.mark.parametrize("later", [0, 3], ids=["it ends before", "it has grown past its former end"])
async def test_a_stream_that_lost_its_tail_doubles_and_loses_nothing(
    own_nats, store, make, disk: Disk, later: int
) -> None:
    async with connect(BusConfig(own_nats.url, "one")) as bus:
        for _ in range(2):
            await make.Log(bus).request(5)
    await disk.keep()
    async with connect(BusConfig(own_nats.url, "two")) as bus:
        lost = await make.Log(bus).request(5)
        await brought(bus, store, 0)
    await disk.put_back()
    async with connect(BusConfig(own_nats.url, "three")) as bus:
        assert await last_of(bus) == 12
        new = [await make.Log(bus).request(5) for _ in range(later)]
        await brought(bus, store, 1)
        if not later:
            new = [await make.Log(bus).request(5)]
            await brought(bus, store, 1)
        requests = 3 + len(new)
        assert await counted(store) == ({5 * requests}, {requests})
        ids = ", ".join(f"'{UUID(bytes=one)}'" for one in (lost, *new))
        assert await store.rows(f"SELECT count() FROM bills WHERE request_id IN ({ids})") == [(1 + len(new),)]
        async with ingesting(bus, store) as ingest:
            # What the log has lost is in the tables, and is no difference: it is of what was before.
            assert await differences(bus, store, ingest) == set()
            await store.command(
                f"ALTER TABLE requests DELETE WHERE request_id = '{UUID(bytes=new[0])}' SETTINGS mutations_sync = 1"
            )
            assert (await replay(bus, store, ingest)).requests_after == 1
            assert (await replay(bus, store, ingest)).requests_after == 0
            assert await differences(bus, store, ingest) == set()
        assert await store.rows("SELECT count(), uniqExact(request_id) FROM bills") == [(requests, requests)]
        tokens = await store.rows("SELECT count(), uniqExact(request_id, index) FROM token_events")
        assert tokens == [(5 * requests, 5 * requests)]


@pytest.mark.parametrize("inserted", ["", "tokens", "all"])
async def test_what_is_left_of_a_claim_whose_end_was_lost_is_brought_once(
    own_nats, store, make, disk: Disk, inserted: str
) -> None:
    """The meter that held it died with the broker, before or after it had inserted the block."""
    async with connect(BusConfig(own_nats.url, "one")) as bus:
        for _ in range(2):
            await make.Log(bus).request(5)
    await disk.keep()
    async with connect(BusConfig(own_nats.url, "two")) as bus:
        await make.Log(bus).request(5)
        _, last, made_us = await FrameLog(bus).state()
        claims, gather = Claims(store), FrameGather()
        async for stored in FrameLog(bus).read(1, last):
            for frame in stored:
                gather.add(*frame)
        await claims.read()
        await claims.write(Claim(0, made_us, 1, last, 1, "dead-1", 100))
        batch = gather.finish()
        for rows in (token_rows(batch, Epoch(0, made_us)), request_rows(batch, BOOK, epoch=Epoch(0, made_us))):
            if inserted == "all" or inserted == "tokens" == rows.table.removesuffix("_events") + "s":
                await store.insert(rows.table, rows.data, insert_token(rows.table, 0, 1, last))
    await disk.put_back()
    async with connect(BusConfig(own_nats.url, "three")) as bus:
        await brought(bus, store, 1, name="other")
        await make.Log(bus).request(5)
        await brought(bus, store, 1, name="other")
        tokens, requests = {"": (15, 3), "tokens": (20, 3), "all": (20, 4)}[inserted]
        assert await counted(store) == ({tokens}, {requests})


async def test_of_two_meters_that_begin_an_epoch_elsewhere_one_is_followed(own_bus, store) -> None:
    before = Claims(store)
    await before.read()
    claim = Claim(0, 7, 1, 30, 1, "old-1", 100)
    await before.write(claim)
    await before.finish(claim, Brought(1, 1, 99))
    one, two = Claims(store), Claims(store)
    for claims in (one, two):
        await claims.read()
        assert claims.ledger.mark is not None
        assert (claims.ledger.mark.sequence, claims.ledger.mark.stored_us) == (30, 99)
    for claims, base in ((one, 20), (two, 22)):
        await claims.begin_epoch(Claim(1, 7, base + 1, base, 1, "m-1", 100))
    third = Claims(store)
    for claims in (one, two, third):
        await claims.read()
        assert (claims.ledger.epoch, claims.ledger.position, claims.ledger.frontier) == (1, 20, 20)
        assert claims.epoch(7) == Epoch(1, 7, 20, Epoch(0, 7))


class Cut(Store):
    """The store, to which the way is cut when the first tokens are to be inserted, until :meth:`mend`."""

    def __init__(self, config: StoreConfig) -> None:
        super().__init__(config)
        self.tried = asyncio.Event()
        self._mended = False

    @property
    def _away(self) -> bool:
        return self.tried.is_set() and not self._mended

    def mend(self) -> None:
        self._mended = True

    async def insert(self, table: str, data: bytes, token: str) -> None:
        if table == "token_events":
            self.tried.set()
        if self._away:
            raise OSError("no route to host")
        await super().insert(table, data, token)

    async def rows(self, *arguments: Any, **named: Any) -> Any:
        if self._away:
            raise OSError("no route to host")
        return await super().rows(*arguments, **named)


async def test_a_meter_that_was_cut_off_looks_again_before_it_tries_again(own_bus, store, frame_log) -> None:
    """Another did its claim meanwhile, and so much was inserted since that the store has forgotten the tokens."""
    cut = Cut(store._config)
    meter = new_ingest(own_bus, cut, "cut")
    task = asyncio.create_task(meter.run())
    await frame_log.request(5)
    await cut.tried.wait()
    async with ingesting(own_bus, store, "other") as other:
        assert await other.reached(6, 20)
        for table in ("token_events", "requests", "token_minutes", "request_minutes"):
            await store.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
        cut.mend()
        assert await meter.reached(6, 20)
        meter.stop()
        await task
    await cut.close()
    assert await counted(store) == ({5}, {1})


CLOSE_TIMES = ("accepted_time", "placed_time", "started_time", "first_token_time", "last_token_time", "end_time")
absurd = st.integers(-(2**63), 2**63 - 1)
nanos = st.integers(-(2**31), 2**31 - 1)


@given(st.dictionaries(st.sampled_from(CLOSE_TIMES), st.tuples(absurd | st.integers(0, 2**32), nanos), max_size=6))
def test_an_end_at_whatever_times_is_left_out_or_makes_a_row(make, times: dict[str, tuple[int, int]]) -> None:
    frame = make.close(Frame(time_us=1_795_000_000_000_000), make.request_id(), 5)
    for name, (seconds, part) in times.items():
        stamp = getattr(frame.closes[0], name)
        stamp.seconds, stamp.nanos = seconds, part
    gather = FrameGather()
    gather.add(1, frame.time_us, frame.SerializeToString())
    batch = gather.finish()
    can_be = all(0 <= seconds < 2**32 and 0 <= part < 10**9 for seconds, part in times.values())
    assert ([fault.sequence for fault in batch.malformed], len(batch.closes)) == (([], 1) if can_be else ([1], 0))
    assert not batch.closes or request_rows(batch, BOOK).count == 1


async def test_a_frame_with_an_absurd_time_stops_nothing(own_bus, store, frame_log, make) -> None:
    await frame_log.request(3)
    liar = make.close(Frame(), make.request_id(), 5)
    liar.closes[0].last_token_time.seconds = 2**55
    await frame_log.publish(liar)
    await frame_log.request(3)
    async with ingesting(own_bus, store) as ingest:
        assert await ingest.reached(9, 20)
        assert await differences(own_bus, store, ingest) == {"malformed_frame"}
    assert await counted(store) == ({6}, {2})


bases = st.lists(st.integers(0, 20), max_size=4)


@given(bases, st.lists(st.integers(1, 25), max_size=8))
def test_a_frame_is_of_the_last_epoch_that_began_before_it(found: list[int], sequences: list[int]) -> None:
    epoch, alive = Epoch(0, 5), [(0, 0)]
    for number, base in enumerate(found, start=1):
        epoch = Epoch(number, 5, base, epoch if base else None)
        alive = [*alive, (number, base)] if base else [(number, 0)]
    wanted = [1 + next(number for number, base in reversed(alive) if base < one) for one in sequences]
    assert epoch.written_of(np.array(sequences, np.uint64)).tolist() == wanted
    assert UNKNOWN not in wanted

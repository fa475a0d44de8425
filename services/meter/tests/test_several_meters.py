"""Meters as processes that share the stream, killed at random with store and broker, and their number changed; what
they have made is then damaged by hand, and made again from the stream."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus.meter.v1.prices_pb2 import CreatePriceRequest
from inferbus.meter.v1.prices_pb2_grpc import PriceServiceStub
from inferbus.meter.v1.replay_pb2 import ReplayRequest, ReplaySummary
from inferbus.meter.v1.replay_pb2_grpc import ReplayServiceStub
from inferbus.meter.v1.usage_pb2 import BucketWidth, ExportFormat, ExportUsageRequest
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceStub
from inferbus_bus.connection import BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_contracts.ids import uuid7
from inferbus_meter.clickhouse import Store
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

WIDE, LENGTH = 64, 100  # requests that run at once, and tokens of each
PRICE = PriceRecord(rate_version="v1", currency="USD", input_per_million="0.15", output_per_million="0.6")
MADE_OF_THE_STREAM = ("token_events", "requests", "latency_counts", "token_minutes", "request_minutes")
AUDIT = Duration(seconds=300)


@dataclass(frozen=True)
class Trial:
    """At least so many tokens; and how often something is killed (kill -9), or a meter comes or goes, while they come.
    ``pause``: seconds before each, at most."""

    tokens: int
    meter_kills: int
    store_kills: int
    broker_kills: int
    changes: int
    pause: float

    def events(self, source: random.Random) -> list[str]:
        kinds = {"meter": self.meter_kills, "store": self.store_kills, "broker": self.broker_kills}
        events = [kind for kind, count in {**kinds, "change": self.changes}.items() for _ in range(count)]
        source.shuffle(events)
        return events


class Load:
    """What a worker with ``WIDE`` streams publishes, in an outbox that outlives the broker."""

    def __init__(self, url: str) -> None:
        self._publisher = FramePublisher(BusConfig(url, "load"), worker="load-0", boot=clock.now_us(), max_unacked=256)
        self._source = random.Random(5)
        self._allowed, self._more = 0, asyncio.Event()
        self.requests = 0

    @property
    def tokens(self) -> int:
        return self.requests * LENGTH

    def allow(self, tokens: int) -> None:
        """Until so many are published in all."""
        self._allowed = tokens
        self._more.set()

    async def run(self, wanted: int) -> None:
        """At least ``wanted`` tokens, as they are allowed."""
        await self._publisher.start()
        while self.tokens < wanted:
            while self.tokens >= self._allowed:
                self._more.clear()
                await self._more.wait()
            await self._round()
        await self._publisher.stop(60)

    async def _round(self) -> None:
        begun = clock.now_us()
        ids = [uuid7(begun // 1000, self._source.randbytes(10)) for _ in range(WIDE)]
        context = RequestContext(tenant_id=f"t{self.requests % 3}", project_id="p", key_id="k", model="m", revision="r")
        for index in range(LENGTH):
            frame = Frame(edge="edge-0", time_us=clock.now_us(), contexts=[context], request_ids=b"".join(ids))
            frame.first_index.extend([index] * WIDE)
            frame.gap_us.extend([1000] * WIDE)
            frame.token_id.extend(range(WIDE))
            if index == LENGTH - 1:
                frame.closes.extend(_close(request_id, begun) for request_id in ids)
            self._publisher.publish(frame)
            await self._publisher.room()
            await asyncio.sleep(0)
        self.requests += WIDE


def _close(request_id: bytes, begun: int) -> Close:
    now = Timestamp()
    now.FromMicroseconds(clock.now_us())
    accepted = Timestamp()
    accepted.FromMicroseconds(begun)
    return Close(
        request_id=request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_LENGTH, engine="synthetic",
        usage=Usage(input_tokens=7, output_tokens=LENGTH), accepted_time=accepted, first_token_time=accepted,
        last_token_time=now, end_time=now,
    )  # fmt: skip


class Meters:
    """Some that run, and some that could."""

    def __init__(self, make: Callable[[str], Any], source: random.Random) -> None:
        self._make = make
        self._source = source
        self.running: dict[str, Any] = {}

    async def start(self, name: str) -> None:
        self.running[name] = self._make(name)
        await self.running[name].start()

    async def kill(self) -> None:
        """One of them; under its own name it comes again, or another one takes what it had begun."""
        name = self._source.choice(sorted(self.running))
        await self.running.pop(name).stop(signal.SIGKILL)
        if not self.running or self._source.random() < 0.7:
            await self.start(name)

    async def change(self) -> None:
        """One more, or one less."""
        idle = [name for name in ("a", "b", "c") if name not in self.running]
        if idle and (len(self.running) < 2 or self._source.random() < 0.5):
            await self.start(idle[0])
        else:
            assert await self.running.pop(sorted(self.running)[0]).stop(signal.SIGTERM) == 0

    async def stop(self) -> None:
        for meter in self.running.values():
            await meter.stop(signal.SIGKILL)


async def create_price(meter: Any) -> None:
    async with meter.channel() as channel:
        await PriceServiceStub(channel).CreatePrice(CreatePriceRequest(record=PRICE), wait_for_ready=True)


async def exported(meter: Any, since: Timestamp) -> bytes:
    """The usage export: tokens and money of each hour by all that they can be told apart by."""
    until = Timestamp()
    until.FromSeconds(since.seconds + 7200)
    asked = ExportUsageRequest(
        start_time=since, end_time=until, bucket_width=BucketWidth.BUCKET_WIDTH_HOUR,
        format=ExportFormat.EXPORT_FORMAT_CSV,
    )  # fmt: skip
    async with meter.channel() as channel:
        return b"".join([part.data async for part in UsageServiceStub(channel).ExportUsage(asked)])


async def replayed(meter: Any) -> ReplaySummary:
    async with meter.channel() as channel:
        events = [event async for event in ReplayServiceStub(channel).Replay(ReplayRequest(timeout=AUDIT))]
    return events[-1].summary


async def damage(store: Store) -> set[tuple[bytes, str]]:
    """One row removed and one doubled, by hand; returns what an audit has to say of that."""
    two = "SELECT request_id, `index` FROM token_events ORDER BY cityHash64(request_id) LIMIT 1 BY request_id LIMIT 2"
    (removed, one), (doubled, other) = ((UUID(str(request)), index) for request, index in await store.rows(two))
    await store.command(
        f"ALTER TABLE token_events DELETE WHERE request_id = '{removed}' AND `index` = {one}"
        " SETTINGS mutations_sync = 1"
    )
    await store.rows(
        f"INSERT INTO token_events SELECT * FROM token_events WHERE request_id = '{doubled}' AND `index` = {other}",
        settings={"insert_deduplication_token": "by-hand"},
    )
    return {(removed.bytes, "missing_row"), (doubled.bytes, "duplicate_row")}


@pytest.mark.parametrize(
    "trial",
    [
        pytest.param(Trial(60_000, 2, 1, 1, 1, 0.3), id="short"),
        pytest.param(Trial(5_000_000, 20, 5, 3, 12, 2.0), id="soak", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1500)
async def test_meters_store_and_broker_die_and_every_token_is_there_once_and_can_be_made_again(
    trial: Trial, clickhouse, admin_store: Store, own_nats: NatsServer, tmp_path: Path, make
) -> None:
    source = random.Random(20)
    config = clickhouse.config("writer", "inferbus")
    admin = clickhouse.config("admin", "inferbus")

    def process(name: str) -> Any:
        meter = make.MeterProcess(tmp_path, own_nats.url, config, name)
        meter.set(CLICKHOUSE_REPAIR_USER=admin.user, CLICKHOUSE_REPAIR_PASSWORD=admin.password)
        return meter

    meters = Meters(process, source)
    load, events = Load(own_nats.url), trial.events(source)
    begun = Timestamp()
    begun.FromSeconds(clock.now_us() // 3_600_000_000 * 3600)

    async def store_dies() -> None:
        await clickhouse.kill()
        await asyncio.sleep(trial.pause)
        await clickhouse.start()

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "meter": meters.kill, "store": store_dies, "broker": own_nats.restart, "change": meters.change,
    }  # fmt: skip
    try:
        await asyncio.gather(meters.start("a"), meters.start("b"))
        await create_price(meters.running["a"])
        await asyncio.gather(*(one.knows_price(PRICE.rate_version) for one in meters.running.values()))
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(trial.tokens))
            for number, event in enumerate(events, start=1):
                load.allow(trial.tokens * number // len(events))
                await asyncio.sleep(source.uniform(0, trial.pause))
                await steps[event]()
        survivor = next(iter(meters.running.values()))
        summary, differences = await survivor.audit(timeout=AUDIT)
        assert differences == []
        assert (summary.requests, summary.open_requests) == (load.requests, 0)
        assert summary.stream_tokens == summary.stored_tokens == summary.billed_tokens == load.tokens
        await counted_once(admin_store, load)
        export = await exported(survivor, begun)
        assert b"v1" in export

        expected = await damage(admin_store)
        _, differences = await survivor.audit(timeout=AUDIT)
        # Of a minute that is over, also the sum that the doubled row went into.
        named = {(one.request_id, one.reason) for one in differences}
        assert named - {(b"", "rollup")} == expected

        for table in MADE_OF_THE_STREAM:
            await admin_store.command(f"TRUNCATE TABLE {table} SYNC")
        assert await exported(survivor, begun) != export
        done = await replayed(survivor)
        assert (done.tokens_after, done.requests_after) == (load.tokens, load.requests)
        assert await exported(survivor, begun) == export
        assert (await survivor.audit(timeout=AUDIT))[1] == []
    finally:
        await meters.stop()


async def counted_once(store: Store, load: Load) -> None:
    for query, wanted in (
        ("SELECT count() FROM token_events", load.tokens),
        ("SELECT uniqExact(request_id, index) FROM token_events", load.tokens),
        ("SELECT sum(tokens) FROM latency_by_minute", load.tokens),
        ("SELECT sum(requests) FROM latency_by_minute", load.requests),
        ("SELECT count() FROM requests", load.requests),
        ("SELECT sum(output_tokens) FROM usage_by_hour", load.tokens),
        ("SELECT countIf(not is_done) FROM (SELECT max(done) AS is_done FROM ingest_batches GROUP BY first_seq)", 0),
    ):
        assert (query, int((await store.rows(query))[0][0])) == (query, wanted)

"""What schedulers before this one have placed or ended, read back from a real broker."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.shards import member_key
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_contracts.subjects import model_shard
from inferbus_runtime import clock
from inferbus_scheduler.placed import PlacedWork
from inferbus_scheduler.settled_before import SettledBefore
from inferbus_scheduler.shards import ROLE, shards_of
from inferbus_stack.nats import NatsServer

SHARD = model_shard("m")
FORMER = ("first", "second")


class Stage:
    def __init__(self, server: NatsServer, bus: Bus, publisher: Publisher, frames: dict[str, FramePublisher]) -> None:
        self.server, self.bus, self.publisher, self.frames = server, bus, publisher, frames
        self.told: dict[bytes, int] = {}

    async def connected(self) -> None:
        """Again, after the broker was away."""
        async with asyncio.timeout(30):
            while not self.bus.connected:
                await asyncio.sleep(0.02)

    async def look(self, schedulers: Collection[str] = FORMER) -> dict[bytes, int]:
        placed = PlacedWork(self.bus, self.publisher)
        settled = SettledBefore(self.bus, placed, schedulers=lambda: schedulers, told=self.told.__setitem__)
        await settled.look(SHARD)
        return self.told

    async def waits(self, attempt: int = 0) -> GenerateRequest:
        message = a_request()
        if attempt:
            message.resume.attempt = attempt
        await self.publisher.publish(message)
        return message

    async def ended(self, scheduler: str, message: GenerateRequest) -> None:
        frame = Frame(edge="e", time_us=clock.now_us(), contexts=[message.context])
        frame.closes.add(request_id=message.request_id, attempt=message.resume.attempt)
        frames = self.frames[scheduler]
        await frames.wait_acked(frames.publish(frame))

    async def placed(self, message: GenerateRequest, boot: int) -> None:
        attempt = message.resume.attempt or 1
        await self.publisher.publish(Work(request=message, worker="w", boot=boot, attempt=attempt))


def a_request() -> GenerateRequest:
    context = RequestContext(tenant_id="t", model="m")
    return GenerateRequest(request_id=uuid7(clock.now_us() // 1000, os.urandom(10)), context=context, edge="e")


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "scheduler")))
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        frames = {name: FramePublisher(BusConfig(server.url, name), worker=name, boot=1) for name in FORMER}
        for each in frames.values():
            await each.start()
            stack.push_async_callback(each.stop)
        yield Stage(server, bus, publisher, frames)


async def test_all_that_may_come_again_is_told_whoever_has_placed_or_ended_it(stage: Stage) -> None:
    """The shard has changed hands twice while these waited."""
    waiting = [await stage.waits(attempt) for attempt in (0, 0, 3, 0)]
    await stage.ended("first", waiting[0])
    await stage.placed(waiting[1], boot=7)
    await stage.placed(waiting[2], boot=0)  # the copy of a move that was broken off
    assert await stage.look() == {
        waiting[0].request_id: 1,
        waiting[1].request_id: 1,
        waiting[2].request_id: 3,
    }
    await stage.ended("second", waiting[3])
    assert (await stage.look())[waiting[3].request_id] == 1


async def test_what_was_placed_and_has_ended_already_is_told_though_a_killed_broker_knows_nothing_of_it(
    stage: Stage,
) -> None:
    """Its worker has taken it off WORK, so WORK would take it once more."""
    waiting = await stage.waits()
    placed = Work(request=waiting, worker="first", boot=1, attempt=1)
    ack = await stage.publisher.publish(placed)
    await stage.ended("first", waiting)
    await stage.bus.api("STREAM.MSG.DELETE.WORK", {"seq": ack.sequence})
    await stage.server.kill()
    await stage.server.start()
    await stage.connected()
    assert await stage.look(schedulers=()) == {waiting.request_id: 1}
    again = await stage.publisher.publish(placed, timeout=30.0)
    assert not again.duplicate, "that is why it must be told"


async def test_of_a_long_wait_the_log_is_read_for_its_end_only_and_work_whole_and_last(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs is told last, so that it is the last to be forgotten."""
    running, before, after = [await stage.waits() for _ in range(3)]
    await stage.placed(running, boot=7)
    await stage.ended("first", before)
    # As if the ten minutes ended here.
    sequence = (await FrameLog(stage.bus).bounds())[1]
    stored = [stored_us async for batch in FrameLog(stage.bus).read(1, sequence) for _, stored_us, _ in batch]
    await stage.ended("second", after)
    monkeypatch.setattr(clock, "now_us", lambda: stored[-1] + 600_000_001)
    assert list(await stage.look()) == [after.request_id, running.request_id]


async def test_nothing_is_read_where_nothing_can_come_again(stage: Stage) -> None:
    before = a_request()
    await stage.placed(before, boot=7)
    await stage.ended("first", before)
    assert await stage.look() == {}
    # A request of another shard does not count.
    other = a_request()
    other.context.model = next(f"m{number}" for number in range(99) if model_shard(f"m{number}") != SHARD)
    await stage.publisher.publish(other)
    assert await stage.look() == {}


async def test_a_scheduler_knows_of_those_that_left_before_it_came(stage: Stage) -> None:
    leases: Registry[WorkerRecord] = Registry(stage.bus, "leases", WorkerRecord)
    await leases.start()
    for name in ("scheduler=1", "gone"):
        await leases.put(member_key(ROLE, name), WorkerRecord(worker=name), timedelta(seconds=60))
    await leases.delete(member_key(ROLE, "gone"))
    shards = shards_of(stage.bus, "new", timedelta(seconds=2))
    await shards.start()
    assert shards.seen() == ["gone", "new", "scheduler=1"]
    await shards.close()
    await leases.stop()

"""The running set, with engines that do what none should, or do it late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import Bus
from inferbus_bus.frames import FramePublisher
from inferbus_runtime import clock
from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.direct import Direct
from inferbus_worker.engine import Finish, Generation
from inferbus_worker.engines.synthetic import Synthetic
from inferbus_worker.fence import Fence
from inferbus_worker.generations import Generations


class Choking(Synthetic):
    """Raises at what it is given, as a fault in an engine's code would."""

    def submit(self, generation: Generation) -> None:
        raise TypeError("not for me")


class Slow(Synthetic):
    """Ends what is closed a while later, and writes on until then."""

    def close(self, key: bytes) -> None:
        asyncio.get_running_loop().call_later(0.3, super().close, key)


@asynccontextmanager
async def generating(
    bus: Bus, name: str, kind: type[Synthetic], fence: Fence
) -> AsyncIterator[tuple[Generations, FramePublisher]]:
    timing = SyntheticConfig(itl=timedelta(milliseconds=10))
    engine = kind.from_config(Config(name=name, engine="synthetic", synthetic=timing))
    info = await engine.start()
    frames = FramePublisher(bus.config, worker=name, boot=1, max_unacked=100)
    await frames.start()
    generations = Generations(engine, info, frames, Direct(engine), RestartLimit(3, 60.0), fence)
    stepping = asyncio.create_task(generations.run())
    try:
        yield generations, frames
    finally:
        stepping.cancel()
        await frames.stop()
        await engine.stop()


def begun(request: GenerateRequest, attempt: int = 1) -> Running:
    return running_of(Work(request=request, attempt=attempt), "rev")


async def test_a_request_on_which_an_engine_chokes_ends(bus: Bus) -> None:
    async with generating(bus, "w-choking", Choking, Fence()) as (generations, _):
        ended: list[tuple[Running, FinishReason.ValueType]] = []
        generations.on_end(lambda running, reason, _: ended.append((running, reason)))
        request = GenerateRequest(request_id=b"k" * 16, edge="edge-choking")
        request.chat.messages.add(role="user", content="x")
        running = begun(request)
        generations.add(running)
        await generations.idle()
        assert ended == [(running, FinishReason.FINISH_REASON_ERROR)]
        assert not generations.running


async def test_an_attempt_waits_until_the_engine_has_ended_the_last_one(
    bus: Bus, edge: Any, received_type: Any
) -> None:
    """The engine knows both by one name: what it still says of the first is not the second's."""
    request, third = (edge.request("say something", max_tokens=10_000) for _ in range(2))
    received, ended = (edge.received.setdefault(one.request_id, received_type()) for one in (request, third))
    async with generating(bus, "w-slow", Slow, Fence()) as (generations, frames):
        generations.add(begun(request))
        await edge.until(lambda: len(received.ids) >= 5)
        generations.drop(request.request_id)
        assert not generations.running
        await generations.idle()
        await frames.wait_acked(frames._sequence)
        moved = edge.moved(request)
        moved.sampling.max_tokens = len(moved.resume.token_ids) + 60
        generations.add(begun(moved, attempt=2))
        assert len(generations.running) == 1
        await edge.closed(received)
        assert received.ids == [index % 29 for index in range(moved.sampling.max_tokens)]
        assert received.attempts == [1, 2]
        assert (received.close.attempt, received.close.finish_reason) == (2, FinishReason.FINISH_REASON_LENGTH)
        # Cancelled while it waits, it ends as soon as the last one has.
        generations.add(begun(third))
        generations.drop(third.request_id)
        generations.add(begun(third, attempt=2))
        generations.close(third.request_id)
        await edge.closed(ended)
        assert (ended.close.finish_reason, ended.ids) == (FinishReason.FINISH_REASON_CANCELLED, [])
        assert not generations.running


async def test_while_the_fence_is_shut_nothing_is_published(bus: Bus, edge: Any, received_type: Any) -> None:
    """What came meanwhile is done when it is open again, but for what was dropped."""
    requests = [edge.request("say something", max_tokens=20) for _ in range(4)]
    received = [edge.received.setdefault(request.request_id, received_type()) for request in requests]
    running, dropped, refused, resumed = (begun(request) for request in requests)
    resumed.attempt = 2
    fence = Fence()
    async with generating(bus, "w-fenced", Synthetic, fence) as (generations, frames):
        generations.add(running)
        fence.shut()
        sequence = frames._sequence
        generations.add(dropped)
        generations.add(resumed)
        generations.refuse(refused, Finish.CANCELLED)
        generations.drop(dropped.key)
        await asyncio.sleep(0.3)  # for 30 steps
        assert frames._sequence == sequence
        fence.hold(clock.monotonic() + 600)
        await edge.closed(received[0], received[2], received[3])
        assert [len(one.ids) for one in received] == [20, 0, 0, 20]
        assert received[1].close is None
        assert received[3].attempts == [2]


async def test_what_is_to_fail_over_ends_without_a_word_but_to_schedulers(bus: Bus) -> None:
    async with generating(bus, "w-failing", Choking, Fence()) as (generations, frames):
        ended: list[Running] = []
        told: list[bool] = []
        generations.on_end(lambda running, *_: ended.append(running))
        generations.on_failed(lambda: told.append(True))
        request = GenerateRequest(request_id=b"f" * 16, edge="edge-failing")
        request.chat.messages.add(role="user", content="x")
        running = running_of(Work(request=request, fails_over=True), "rev")
        generations.add(running)
        await generations.idle()
        assert (ended, told) == ([], [True])
        assert frames.publish(Frame(edge="edge-failing")) == 1, "nothing was published before"
        beat = Heartbeat()
        generations.load.tell(beat)
        assert (beat.failed_ids, list(beat.failed_attempts), beat.ended_ids) == (b"f" * 16, [1], b"")
        again = Heartbeat()
        generations.load.tell(again)
        assert again.failed_ids == b"f" * 16, "until it is recalled"
        generations.load.gone(running.key)
        after = Heartbeat()
        generations.load.tell(after)
        assert (after.failed_ids, after.ended_ids) == (b"", b"f" * 16)


async def test_what_its_client_has_left_does_not_fail_over(bus: Bus) -> None:
    async with generating(bus, "w-left", Choking, Fence()) as (generations, _):
        ended: list[FinishReason.ValueType] = []
        generations.on_end(lambda _, reason, __: ended.append(reason))
        request = GenerateRequest(request_id=b"g" * 16, edge="edge-left")
        request.chat.messages.add(role="user", content="x")
        running = running_of(Work(request=request, fails_over=True), "rev")
        running.closing = True
        generations.add(running)
        await generations.idle()
        assert ended == [FinishReason.FINISH_REASON_CANCELLED]

"""Moves with a real broker: made whole, broken off after each step, made twice, and by two schedulers at once."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from inferbus.bus.v1.frame_pb2 import Close, Frame, Open
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_contracts.recovery import Recovered
from inferbus_runtime import clock
from inferbus_scheduler.core.migration import Closed, End, Fate, Orphan, Reason, Requeue, fate
from inferbus_scheduler.moving import Move, Moved, Mover, joined
from inferbus_stack.nats import NatsServer

_names = itertools.count(1)
STEPS = ("keep", "fence", "follow", "settle")


@dataclass
class Scheduler:
    """One scheduler's connections, and its steps."""

    mover: Mover
    bus: Bus
    frames: FramePublisher
    cancelled: set[bytes] = field(default_factory=set)
    moved: list[Moved] = field(default_factory=list)

    def decide(self, orphan: Orphan, found: Recovered) -> Fate:
        return fate(
            orphan, found, Reason.WORKER_LOST, cancelled=orphan.request_id in self.cancelled, patience=2,
            now_us=clock.now_us(),
        )  # fmt: skip

    async def step(self, move: Move, name: str) -> None:
        if name == "settle":
            await self.mover.settle(move, self.decide, self.moved.append)
        else:
            await getattr(self.mover, name)(move)

    async def whole(self, worker: str, boot: int = 1, **options: Any) -> Move:
        move = await self.mover.read((worker, boot), Reason.WORKER_LOST, **options)
        for name in STEPS:
            await self.step(move, name)
        return move


class Stage:
    """A broker, and whoever is on it."""

    def __init__(self, server: NatsServer, bus: Bus, publisher: Publisher, stack: AsyncExitStack) -> None:
        self.server, self.bus, self.publisher, self.stack = server, bus, publisher, stack

    async def scheduler(self, owns: Callable[[str], bool] = lambda model: True) -> Scheduler:
        config = BusConfig(self.server.url, f"scheduler-{next(_names)}")
        bus = await self.stack.enter_async_context(connect(config))
        publisher = Publisher(bus)
        await publisher.start()
        frames = await self.publishing(config.name)
        return Scheduler(Mover(bus=bus, publisher=publisher, frames=frames, owns=owns), bus, frames)

    async def publishing(self, name: str, boot: int = 0) -> FramePublisher:
        frames = FramePublisher(BusConfig(self.server.url, name), worker=name, boot=boot or clock.now_us())
        await frames.start()
        self.stack.push_async_callback(frames.stop)
        return frames

    async def worker(self, boot: int = 1) -> "Worker":
        name = f"worker-{next(_names)}"
        return Worker(self, name, boot, await self.publishing(name, boot))

    async def requests(self) -> dict[bytes, GenerateRequest]:
        """What is on REQUESTS, each once."""
        stored: dict[bytes, GenerateRequest] = {}
        info = await self.bus.api("STREAM.INFO.REQUESTS")
        for sequence in range(max(1, info["state"]["first_seq"]), info["state"]["last_seq"] + 1):
            message = await self.bus.nc.jetstream().get_msg("REQUESTS", sequence)
            request = GenerateRequest.FromString(message.data or b"")
            assert request.request_id not in stored, "given back twice"
            stored[request.request_id] = request
        return stored

    async def work_left(self) -> int:
        return int((await self.bus.api("STREAM.INFO.WORK"))["state"]["messages"])

    async def frames(self) -> list[Frame]:
        frame_log = FrameLog(self.bus)
        _, last = await frame_log.bounds()
        if not last:
            return []
        return [Frame.FromString(data) async for batch in frame_log.read(1, last) for _, _, data in batch]

    async def closes(self) -> list[Close]:
        return [close for frame in await self.frames() for close in frame.closes]


class Worker:
    """Is given work, says tokens."""

    def __init__(self, stage: Stage, name: str, boot: int, frames: FramePublisher) -> None:
        self.stage, self.name, self.boot, self.frames = stage, name, boot, frames
        self.sequences: dict[bytes, int] = {}

    async def given(self, edge: str = "edge-0", **fields: Any) -> bytes:
        work = Work(request=a_request(edge, **fields), worker=self.name, boot=self.boot, attempt=1)
        return await self.placed(work)

    async def placed(self, work: Work) -> bytes:
        work.placed_time.CopyFrom(clock.timestamp(clock.now_us()))
        ack = await self.stage.publisher.publish(work, {"traceparent": "00-1-1-01"}, timeout=30.0)
        assert not ack.duplicate
        self.sequences[work.request.request_id] = ack.sequence
        return work.request.request_id

    async def says(self, request: bytes, first: int, count: int = 1, *, attempt: int = 1, edge: str = "edge-0") -> None:
        """Tokens ``first``, ``first`` + 1, ..., each a delta."""
        frame = Frame(
            edge=edge, time_us=clock.now_us(), contexts=[RequestContext(tenant_id="t", model="m")],
            request_ids=request * count, attempt=[attempt] * count, first_index=range(first, first + count),
            gap_us=[1] * count, text_size=[1] * count, token_id=range(first, first + count), text=b"x" * count,
        )  # fmt: skip
        if first == 0:
            frame.opens.append(Open(request_id=request, first_started_time=clock.timestamp(5_000_000)))
        await self.frames.wait_acked(self.frames.publish(frame))

    async def ends(self, request: bytes, tokens: int, *, attempt: int = 1, edge: str = "edge-0") -> None:
        """Its Close; and then it acknowledges its work."""
        frame = Frame(edge=edge, time_us=clock.now_us(), contexts=[RequestContext(tenant_id="t", model="m")])
        close = frame.closes.add(request_id=request, attempt=attempt, finish_reason=FinishReason.FINISH_REASON_STOP)
        close.usage.output_tokens = tokens
        await self.frames.wait_acked(self.frames.publish(frame))

    async def acknowledges(self, request: bytes) -> None:
        await self.stage.bus.api("STREAM.MSG.DELETE.WORK", {"seq": self.sequences[request]})


def a_request(edge: str = "edge-0", model: str = "m", text: str = "hello", **fields: Any) -> GenerateRequest:
    now_us = clock.now_us()
    return GenerateRequest(
        request_id=uuid7(now_us // 1000, os.urandom(10)),
        context=RequestContext(tenant_id="t", project_id="p", key_id="k", model=model),
        edge=edge,
        priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        accepted_time=clock.timestamp(now_us),
        chat=ChatInput(messages=[ChatMessage(role="user", content=text)]),
        reply=b"form",
        **fields,
    )


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "players")))
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        yield Stage(server, bus, publisher, stack)


async def test_a_moved_request_goes_on_with_all_that_was_said_before_the_fence(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    request = await worker.given()
    await worker.says(request, 0, 3)
    move = await scheduler.mover.read((worker.name, 1), Reason.WORKER_LOST)
    await scheduler.mover.keep(move)
    await scheduler.mover.fence(move)
    await worker.says(request, 3, 2)  # a zombie's: void
    await scheduler.mover.follow(move)
    await scheduler.step(move, "settle")
    given_back = (await stage.requests())[request]
    assert list(given_back.resume.token_ids) == [0, 1, 2]
    assert given_back.resume.text == b"xxx"
    assert (given_back.resume.attempt, given_back.resume.worker) == (2, worker.name)
    assert given_back.resume.first_started_time.ToSeconds() == 5
    assert given_back.chat.messages[0].content == "hello"
    assert await stage.work_left() == 0


async def test_what_ended_before_the_fence_is_not_tried_again(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    ended, running = await worker.given(), await worker.given("edge-1")
    await worker.says(ended, 0, 2)
    await worker.ends(ended, 2)
    await worker.says(running, 0, 1, edge="edge-1")
    await scheduler.whole(worker.name)
    assert list(await stage.requests()) == [running]
    assert await stage.work_left() == 0
    assert {type(one.fate) for one in scheduler.moved} == {Closed, Requeue}


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
async def test_a_move_that_was_broken_off_is_made_again_by_the_next_scheduler(stage: Stage, done: int) -> None:
    """The first is killed after so many steps; what it had begun then comes late: the rest of it is made after all."""
    worker = await stage.worker()
    requests = [await worker.given(f"edge-{number % 2}") for number in range(4)]
    for number, request in enumerate(requests):
        await worker.says(request, 0, number + 1, edge=f"edge-{number % 2}")
    await worker.ends(requests[0], 1)
    first, second = await stage.scheduler(), await stage.scheduler()
    broken = await first.mover.read((worker.name, 1), Reason.WORKER_LOST)
    for name in STEPS[:done]:
        await first.step(broken, name)
    # The worker was alive all the while.
    await worker.says(requests[1], 2, 1, edge="edge-1")
    for boot in (1, 0):
        await second.whole(worker.name, boot)
    for name in STEPS[done:]:
        await first.step(broken, name)
    for boot in (1, 0):
        await second.whole(worker.name, boot)
    given_back = await stage.requests()
    # Said before the first fence, it counts for all; said after it, for nobody.
    fenced = done >= 2
    expected = {1: 2 if fenced else 3, 2: 3, 3: 4}
    assert {request: len(given_back[request].resume.token_ids) for request in given_back} == {
        requests[number]: tokens for number, tokens in expected.items()
    }
    assert await stage.work_left() == 0


@pytest.mark.parametrize("done", [2, 3])
async def test_an_end_behind_the_fence_that_is_acknowledged_loses_no_request(stage: Stage, done: int) -> None:
    """A living worker ends it too late, and takes its work off WORK; then the scheduler that fenced it is killed."""
    worker = await stage.worker()
    request = await worker.given()
    await worker.says(request, 0, 2)
    first, second = await stage.scheduler(), await stage.scheduler()
    broken = await first.mover.read((worker.name, 1), Reason.DRAINED)
    for name in STEPS[:done]:
        await first.step(broken, name)
    await worker.ends(request, 2)
    await worker.acknowledges(request)
    for boot in await second.mover.placed.incarnations():
        await second.whole(*boot)
    assert list((await stage.requests())[request].resume.token_ids) == [0, 1]
    assert await stage.work_left() == 0


async def test_two_schedulers_that_move_the_same_at_once_move_it_once(stage: Stage) -> None:
    worker = await stage.worker()
    requests = [await worker.given() for _ in range(20)]
    for request in requests:
        await worker.says(request, 0, 2)
    schedulers = [await stage.scheduler() for _ in range(3)]
    await asyncio.gather(*(scheduler.whole(worker.name) for scheduler in schedulers))
    given_back = await stage.requests()
    assert {request: list(one.resume.token_ids) for request, one in given_back.items()} == {
        request: [0, 1] for request in requests
    }
    assert await stage.work_left() == 0


async def test_the_attempts_of_a_request_follow_each_other_from_worker_to_worker(stage: Stage) -> None:
    workers = [await stage.worker() for _ in range(3)]
    scheduler = await stage.scheduler()
    request = await workers[0].given()
    await workers[0].says(request, 0, 2)
    await scheduler.whole(workers[0].name)
    for attempt, worker in enumerate(workers[1:], 2):
        message = (await stage.requests())[request]
        await stage.bus.api("STREAM.PURGE.REQUESTS")
        await worker.placed(Work(request=message, worker=worker.name, boot=1, attempt=attempt))
        await worker.says(request, len(message.resume.token_ids), 2, attempt=attempt)
        # Those before are not dead yet.
        await workers[0].says(request, 2, 5)
        await scheduler.whole(worker.name)
    resume = (await stage.requests())[request].resume
    assert (resume.attempt, list(resume.token_ids)) == (4, [0, 1, 2, 3, 4, 5])


async def test_one_that_killed_its_workers_twice_is_given_back_to_be_ended_and_nothing_more(stage: Stage) -> None:
    """Whoever makes the move again after it was broken off, and would decide otherwise, changes nothing."""
    worker, other = await stage.worker(), await stage.worker()
    scheduler, again = await stage.scheduler(), await stage.scheduler()
    request = await worker.given()
    await scheduler.whole(worker.name, taken=worker.sequences[request])
    message = (await stage.requests())[request]
    assert message.resume.fruitless_deaths == 1
    await stage.bus.api("STREAM.PURGE.REQUESTS")
    await other.placed(Work(request=message, worker=other.name, boot=1, attempt=2))
    broken = await scheduler.mover.read((other.name, 1), Reason.WORKER_LOST, taken=other.sequences[request])
    for name in ("keep", "fence", "follow"):
        await scheduler.step(broken, name)
    # Killed when the first of its messages is stored, before the placement is deleted.
    outcome = scheduler.decide(broken.orphans[0], broken.found[request])
    assert isinstance(outcome, End)
    await scheduler.mover._give_back(broken, broken.messages[other.sequences[request]], outcome)
    again.cancelled.add(request)
    for boot in (1, 0):
        await again.whole(other.name, boot)
    ended = (await stage.requests())[request]
    assert (ended.resume.attempt, ended.resume.end, ended.resume.output_tokens) == (3, "worker_lost", 0)
    assert ended.WhichOneof("input") == "chat", "it tells the operation"
    assert not ended.chat.messages
    assert ended.reply == b"form"
    assert await stage.closes() == []
    assert await stage.work_left() == 0


async def test_one_that_was_cancelled_while_its_worker_was_dead_is_given_back_to_be_ended_with_what_it_had(
    stage: Stage,
) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    request = await worker.given()
    await worker.says(request, 0, 2)
    scheduler.cancelled.add(request)
    await scheduler.whole(worker.name)
    resume = (await stage.requests())[request].resume
    assert (resume.end, resume.attempt, resume.output_tokens) == ("cancelled", 2, 2)
    assert not resume.token_ids
    assert await stage.closes() == []
    assert await stage.work_left() == 0


async def test_one_that_went_back_to_the_queue_is_not_ended_by_whoever_moves_it_again(stage: Stage) -> None:
    """The first is killed before it deletes the placement; the client leaves; the second moves the placement again."""
    worker = await stage.worker()
    first, second = await stage.scheduler(), await stage.scheduler()
    request = await worker.given()
    await worker.says(request, 0, 2)
    broken = await first.mover.read((worker.name, 1), Reason.WORKER_LOST)
    for name in ("keep", "fence", "follow"):
        await first.step(broken, name)
    outcome = first.decide(broken.orphans[0], broken.found[request])
    assert isinstance(outcome, Requeue)
    await first.mover._give_back(broken, broken.messages[worker.sequences[request]], outcome)
    second.cancelled.add(request)
    for boot in (1, 0):
        await second.whole(worker.name, boot)
    resume = (await stage.requests())[request].resume
    assert (resume.end, list(resume.token_ids)) == ("", [0, 1])
    assert await stage.closes() == []
    assert await stage.work_left() == 0


async def test_one_that_has_become_larger_than_a_message_is_given_back_to_be_ended(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    most = stage.bus.nc.max_payload
    request = await worker.given(text="x" * (most - 3000))
    await worker.says(request, 0, 3)
    await scheduler.whole(worker.name)
    resume = (await stage.requests())[request].resume
    assert (resume.end, resume.output_tokens) == ("too_large", 3)
    assert await stage.work_left() == 0


@pytest.mark.parametrize("kept", [True, False])
async def test_an_answer_whose_beginning_is_far_before_its_placement_by_the_clocks_is_found_or_ended_but_never_cut(
    stage: Stage, kept: bool
) -> None:
    """``kept``: whether the log has the beginning at all."""
    worker, scheduler = await stage.worker(), await stage.scheduler()
    request = await worker.given()
    if kept:
        await worker.says(request, 0, 2)
    await worker.says(request, 2, 2)
    move = await scheduler.mover.read((worker.name, 1), Reason.WORKER_LOST)
    # As if WORK's clock were before that of the log: the first reading finds nothing of it, or its end only.
    sequence = (await FrameLog(stage.bus).bounds())[1]
    frames = [stored_us async for batch in FrameLog(stage.bus).read(1, sequence) for _, stored_us, _ in batch]
    move.orphans[0] = replace(move.orphans[0], stored_us=frames[-1] + 2_000_000)
    for name in STEPS[1:]:
        await scheduler.step(move, name)
    resume = (await stage.requests())[request].resume
    if kept:
        assert (resume.end, list(resume.token_ids)) == ("", [0, 1, 2, 3])
    else:
        assert resume.end == "token_gap"


async def test_a_log_too_long_to_be_read_from_further_back_ends_who_needs_it_and_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferbus_scheduler.moving._FURTHER_SECONDS", 0.0)
    worker, scheduler = await stage.worker(), await stage.scheduler()
    far, near = await worker.given(), await worker.given()
    await worker.says(far, 0, 2)
    await worker.says(far, 2, 2)
    await worker.says(near, 0, 2)
    move = await scheduler.mover.read((worker.name, 1), Reason.WORKER_LOST)
    # As if WORK's clock were before that of the log: the first reading begins with the second frame.
    sequence = (await FrameLog(stage.bus).bounds())[1]
    frames = [stored_us async for batch in FrameLog(stage.bus).read(1, sequence) for _, stored_us, _ in batch]
    move.orphans = [replace(orphan, stored_us=frames[1] + 2_000_000) for orphan in move.orphans]
    for name in STEPS[1:]:
        await scheduler.step(move, name)
    resumes = {request: one.resume for request, one in (await stage.requests()).items()}
    assert resumes[far].end == "token_gap"
    assert (resumes[near].end, list(resumes[near].token_ids)) == ("", [0, 1])
    assert await stage.work_left() == 0


async def test_a_copy_says_when_the_placement_was_stored(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    await worker.given()
    move = await scheduler.mover.read((worker.name, 1), Reason.DRAINED)
    await scheduler.mover.keep(move)
    copied = await scheduler.mover.read((worker.name, 0), Reason.RECALLED)
    assert copied.orphans[0].stored_us == move.orphans[0].stored_us


async def test_what_never_reached_the_dead_worker_is_not_suspected(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    consumer = await stage.bus.nc.jetstream().pull_subscribe(
        f"work.{worker.name}.1", durable=worker.name, stream="WORK"
    )
    reached = await worker.given()
    await consumer.fetch(1)
    late = await worker.given()
    await scheduler.whole(worker.name)
    deaths = {request: one.resume.fruitless_deaths for request, one in (await stage.requests()).items()}
    assert deaths == {reached: 1, late: 0}


async def test_of_one_that_has_a_successor_only_what_it_said_that_it_had_counts_as_having_reached_it(
    stage: Stage,
) -> None:
    """Its consumer is gone, and what went out by that nobody knows."""
    worker, scheduler = await stage.worker(), await stage.scheduler()
    await stage.bus.nc.jetstream().pull_subscribe(f"work.{worker.name}.2", durable=worker.name, stream="WORK")
    taken, unknown = await worker.given(), await worker.given()
    await scheduler.whole(worker.name, taken=worker.sequences[taken])
    deaths = {request: one.resume.fruitless_deaths for request, one in (await stage.requests()).items()}
    assert deaths == {taken: 1, unknown: 0}


async def test_some_of_a_living_workers_generations_are_moved_and_the_others_are_not(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    stays, goes = await worker.given(), await worker.given()
    await worker.says(stays, 0, 1)
    await worker.says(goes, 0, 2)
    await scheduler.whole(worker.name, only={worker.sequences[goes]})
    assert list(await stage.requests()) == [goes]
    assert await stage.work_left() == 1


async def test_moves_that_were_begun_one_after_the_other_are_ended_as_one(stage: Stage) -> None:
    """Of one worker, which has taken what it was told of off WORK; not all of their inputs can be held at once."""
    worker, scheduler = await stage.worker(), await stage.scheduler()
    requests = [await worker.given(f"edge-{number % 2}", text="x" * (6 << 20)) for number in range(4)]
    stays = await worker.given()
    begun = []
    for number, request in enumerate(requests):
        await worker.says(request, 0, number + 1, edge=f"edge-{number % 2}")
        move = await scheduler.mover.read((worker.name, 1), Reason.PREEMPTED, {worker.sequences[request]})
        await scheduler.mover.keep(move)
        await scheduler.mover.fence(move)
        await worker.acknowledges(request)
        begun.append(move)
    whole = joined(begun)
    assert len(whole.messages) < len(requests)
    for name in ("follow", "settle"):
        await scheduler.step(whole, name)
    given_back = await stage.requests()
    assert [len(given_back[request].resume.token_ids) for request in requests] == [1, 2, 3, 4]
    assert stays not in given_back
    assert await stage.work_left() == 1


async def test_what_is_another_schedulers_is_left_alone(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler(owns=lambda model: model != "m")
    await worker.given()
    move = await scheduler.whole(worker.name)
    assert move.orphans == []
    assert await stage.work_left() == 1
    assert await stage.frames() == []


async def test_inputs_larger_than_what_a_move_may_hold_are_read_when_it_is_their_turn(stage: Stage) -> None:
    worker, scheduler = await stage.worker(), await stage.scheduler()
    requests = [await worker.given(text="x" * (6 << 20)) for _ in range(5)]
    move = await scheduler.whole(worker.name)
    assert len(move.messages) < 5
    assert set(await stage.requests()) == set(requests)
    assert await stage.work_left() == 0


async def test_what_cannot_be_read_is_taken_off(stage: Stage) -> None:
    scheduler, worker = await stage.scheduler(), await stage.worker()
    await stage.bus.nc.jetstream().publish(f"work.{worker.name}.1", b"\xff\xff")
    request = await worker.given()
    await scheduler.whole(worker.name)
    assert list(await stage.requests()) == [request]
    assert await stage.work_left() == 0

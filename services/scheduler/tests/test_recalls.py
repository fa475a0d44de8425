"""A living worker is told what is its own no more, until its heartbeats name it no more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio
from inferbus.bus.v1.control_pb2 import Heartbeat, Recall, RunningRequests
from inferbus_bus.connection import BusConfig, connect
from inferbus_runtime import clock
from inferbus_scheduler.recalls import Recalls
from inferbus_stack.nats import NatsServer

WaitUntil = Callable[..., Awaitable[None]]
A, B, C = (bytes([letter]) * 16 for letter in b"abc")


class Stage:
    def __init__(self, recalls: Recalls) -> None:
        self.recalls = recalls
        self.heard: list[tuple[int, dict[bytes, int]]] = []

    def received(self, recall: Recall) -> None:
        ids = [recall.request_ids[at : at + 16] for at in range(0, len(recall.request_ids), 16)]
        self.heard.append((recall.boot, dict(zip(ids, recall.attempts, strict=True))))

    def beat(self, boot: int, **running: int) -> None:
        """It runs these, by letter, at these attempts."""
        ids = b"".join({"a": A, "b": B, "c": C}[letter] for letter in running)
        table = RunningRequests(request_ids=ids, attempts=running.values())
        self.recalls.heard(Heartbeat(worker="w", boot=boot, running=table), clock.monotonic())


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "scheduler")))
        made = Stage(Recalls(bus))
        await bus.subscribe(Recall, made.received, Recall(worker="w"))
        yield made


async def test_it_is_told_at_once_and_again_for_what_it_still_runs(stage: Stage, wait_until: WaitUntil) -> None:
    stage.recalls.moved("w", 5, [(A, 1), (B, 2)], clock.monotonic())
    await wait_until(lambda: stage.heard)
    assert stage.heard == [(5, {A: 1, B: 2})]
    stage.beat(5, a=1, c=1)
    await wait_until(lambda: len(stage.heard) == 2)
    assert stage.heard[1] == (5, {A: 1})


async def test_a_later_attempt_on_the_same_worker_is_its_own(stage: Stage, wait_until: WaitUntil) -> None:
    stage.recalls.moved("w", 5, [(A, 1), (B, 1)], clock.monotonic())
    stage.beat(5, a=2, c=1)
    stage.beat(6, a=2, b=1)
    await wait_until(lambda: len(stage.heard) == 2)
    assert stage.heard[1] == (6, {B: 1})


async def test_what_was_moved_by_an_earlier_scheduler_is_said_when_it_is_named(
    stage: Stage, wait_until: WaitUntil
) -> None:
    """Found as a copy: of whichever incarnation."""
    stage.recalls.moved("w", 0, [(A, 1)], clock.monotonic())
    stage.beat(9, a=1)
    await wait_until(lambda: stage.heard)
    assert stage.heard == [(9, {A: 1})]


async def test_heartbeats_without_the_list_say_nothing(stage: Stage) -> None:
    stage.recalls.moved("other", 1, [(A, 1)], clock.monotonic())
    stage.recalls.heard(Heartbeat(worker="w", boot=1), clock.monotonic())
    stage.beat(1, a=1)
    stage.beat(1)
    await asyncio.sleep(0)
    assert stage.heard == []

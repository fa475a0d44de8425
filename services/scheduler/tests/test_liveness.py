"""Whose connection is gone is noticed by the broker's word, and nobody else is taken for dead."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from inferbus.bus.v1.control_pb2 import Heartbeat, Recall
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_runtime import clock
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.liveness import Liveness
from inferbus_stack.nats import NatsServer

WaitUntil = Callable[..., Awaitable[None]]


class Stage:
    def __init__(self, url: str, bus: Bus, stack: AsyncExitStack) -> None:
        self.url, self.bus, self.stack = url, bus, stack
        self.fleet = Fleet(heartbeat_timeout=3.0, reconnect_grace=8.0, now=clock.monotonic(), silent_after=0.1)
        self.gone: list[tuple[str, int, str]] = []
        self.fleet.on_gone = lambda worker, boot, reason: self.gone.append((worker, boot, reason))

    async def worker(self, name: str, boot: int) -> Bus:
        """It has a lease and is heard once, on a connection that is the test's to close."""
        bus = await self.stack.enter_async_context(connect(BusConfig(self.url, name)))
        await bus.subscribe(Recall, lambda recall: None, Recall(worker=name))
        await bus.nc.flush()
        now = clock.monotonic()
        record = WorkerRecord(worker=name, boot=boot, model="m", capacity=4, state=WorkerState.WORKER_STATE_ACTIVE)
        self.fleet.registered(name, record, now)
        self.fleet.heartbeat(Heartbeat(worker=name, boot=boot), now)
        return bus


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "scheduler")))
        made = Stage(server.url, bus, stack)
        running = asyncio.create_task(Liveness(bus, made.fleet).run())
        yield made
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_closed_connection_is_noticed_and_a_silent_worker_is_not_taken_for_dead(
    stage: Stage, wait_until: WaitUntil
) -> None:
    killed = await stage.worker("killed", 7)
    await stage.worker("silent", 8)
    await wait_until(lambda: len(stage.fleet.silent(clock.monotonic())) == 2)
    await killed.nc.close()
    await wait_until(lambda: stage.gone, timeout=30)
    # The other one was asked as often.
    assert stage.gone == [("killed", 7, "worker_lost")]
    assert stage.fleet.knows("silent", 8)
    assert not stage.fleet.knows("killed", 7)


async def test_in_the_grace_after_an_outage_nobody_is_asked(stage: Stage, wait_until: WaitUntil) -> None:
    killed = await stage.worker("killed", 7)
    stage.fleet.bus_away()
    await killed.nc.close()
    other = Fleet(heartbeat_timeout=3.0, reconnect_grace=0.0, now=clock.monotonic(), silent_after=0.0)
    other.registered("killed", WorkerRecord(worker="killed", boot=7), clock.monotonic())
    asked = asyncio.create_task(Liveness(stage.bus, other).run())
    # Who has no grace notices it; by then the other one had as much time.
    await wait_until(lambda: not other.knows("killed", 7), timeout=30)
    assert stage.fleet.knows("killed", 7)
    asked.cancel()
    stage.fleet.bus_back(clock.monotonic() - 9.0)
    await wait_until(lambda: not stage.fleet.knows("killed", 7), timeout=30)


async def test_many_are_asked_at_once(stage: Stage, wait_until: WaitUntil) -> None:
    now = clock.monotonic()
    for number in range(200):
        stage.fleet.registered(f"w-{number}", WorkerRecord(worker=f"w-{number}", boot=1), now)
    await wait_until(lambda: len(stage.gone) == 200, timeout=60)

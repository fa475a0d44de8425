"""An engine that stands still, or leaks: found, and started again, with nothing lost. Its process is a real one."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.worker.v1.worker_pb2 import GetStatusRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_stack.nats import NatsServer
from inferbus_worker.core.silence import Silence
from inferbus_worker.engine_memory import check_bound, engine_memory

PROGRAM = str(Path(__file__).with_name("worker_with_child.py"))
MEGABYTE = 1 << 20


def make_with_child(worker: Any, folder: Path, grows: int = 0, starts: int = 0) -> Any:
    folder.mkdir()
    worker.program = (PROGRAM, str(folder), str(grows), str(starts))
    return worker


def children(folder: Path) -> list[int]:
    """Process ids, one a life of the engine."""
    return [int((folder / name).read_text()) for name in sorted(os.listdir(folder), key=int)]


def words(count: int) -> list[int]:
    """What the synthetic engine says."""
    return [index % 29 for index in range(count)]


async def restarts(worker: Any) -> int:
    async with channel(worker.address, None) as connected:
        status = await WorkerServiceStub(connected).GetStatus(GetStatusRequest())
    return int(status.engine_restarts)


# --- standing still ---------------------------------------------------------------------------------------------------


def test_silence_is_counted_only_while_something_is_owed_and_watched() -> None:
    silence = Silence(limit=10, tick=1)
    assert not any(silence.too_long(1, 7, owed=True) for _ in range(10)), "the first look begins the count"
    assert silence.too_long(1, 7, owed=True)
    assert not any(silence.too_long(1, 7, owed=True) for _ in range(10)), "of the one that is started in its place"
    assert not silence.too_long(1, 8, owed=True), "a step"
    assert not silence.too_long(3600, 8, owed=True), "whoever slept has heard nothing"
    assert silence.seconds == 2
    assert not silence.too_long(1, 8, owed=False)
    assert not any(silence.too_long(1, 8, owed=True) for _ in range(10)), "from the beginning"


async def test_an_engine_that_stands_still_is_started_again(
    edge: Any, new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    """Nobody else would find it: its process lives, and its pipes are open."""
    worker = make_with_child(new_worker(ENGINE_STALL="5s"), tmp_path / "lives")
    await worker.start()
    idle = children(tmp_path / "lives")
    await asyncio.sleep(6)
    assert await restarts(worker) == 0, "an idle engine owes nothing"
    received = [await edge.place(worker.name, edge.request("x", max_tokens=count)) for count in (400, 2000)]
    await edge.until(lambda: all(len(one.ids) >= 10 for one in received))
    os.kill(idle[0], signal.SIGSTOP)
    # Those who are refused meanwhile end without the engine, and say nothing of its life.
    async with asyncio.timeout(90):
        while any(one.close is None for one in received):
            refused = edge.request("x")
            refused.sampling.temperature = 99.0
            await edge.place(worker.name, refused)
            await asyncio.sleep(0.3)
    assert [one.ids for one in received] == [words(400), words(2000)]
    assert [one.attempts for one in received] == [[1], [1]]
    assert await restarts(worker) == 1
    assert len(children(tmp_path / "lives")) == 2
    assert not Path(f"/proc/{idle[0]}").exists()


async def test_an_engine_that_waits_for_us_does_not_stand_still(
    tmp_path: Path, new_worker: Callable[..., Any], edge_type: Any
) -> None:
    """While the broker takes nothing, the worker asks for no step."""
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "admin")) as admin:
        await ensure_streams(admin)
        worker = new_worker(NATS_URL=server.url, ENGINE_STALL="4s", MAX_UNACKED_FRAMES="5")
        await worker.start()
        edge = edge_type(admin, "edge-of-a-slow-broker")
        await edge.start()
        received = await edge.place(worker.name, edge.request("x", max_tokens=100))
        await edge.until(lambda: len(received.ids) >= 10)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(7)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await edge.closed(received)
        assert len(received.ids) == 100
        assert await restarts(worker) == 0
        await edge.stop()
        await worker.kill()


# --- leaking ----------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_all_processes_below() -> None:
    """A child of ours and its child, which holds the most."""
    grandchild = "held = b'x' * 50_000_000; print(flush=True); input()"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = engine_memory(child.pid)
        assert used is not None
        assert 50_000_000 < used < 150_000_000
        child.communicate(b"\n")
    assert engine_memory(child.pid) is None


@pytest.mark.parametrize(
    ("used", "says"), [(None, "no process of its own"), (2 * MEGABYTE, "as soon as it has started"), (5, "")]
)
def test_a_bound_that_cannot_be_kept_is_refused(used: int | None, says: str) -> None:
    if not says:
        check_bound(MEGABYTE, used)
        return
    with pytest.raises(InferBusError) as refused:
        check_bound(MEGABYTE, used)
    assert says in refused.value.diagnostic


async def test_a_worker_whose_bound_cannot_be_kept_does_not_start(
    new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    worker = make_with_child(new_worker(ENGINE_MAX_MEMORY=str(MEGABYTE)), tmp_path / "lives")
    with pytest.raises(AssertionError, match="did not start"):
        await worker.start()
    assert await worker.ended() == 1
    assert len(children(tmp_path / "lives")) == 1


async def test_a_leaking_engine_is_started_again_and_nothing_is_lost(
    bus: Bus, edge: Any, new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    """What is short ends in the old engine, what is long goes on in the new one; meanwhile the fleet sends no work."""
    # The grace holds the state in between for longer than whoever hears of it may stand still.
    variables = {"ENGINE_MAX_MEMORY": str(40 * MEGABYTE), "ENGINE_MEMORY_GRACE": "6s", "SYNTHETIC__ITL": "10ms"}
    worker = make_with_child(new_worker(**variables), tmp_path / "lives", grows=MEGABYTE // 4, starts=1)
    states: list[WorkerState.ValueType] = []
    fleet = Registry(bus, "fleet", WorkerRecord)
    fleet.on_change(lambda name, record: states.append(record.state) if record and name == worker.name else None)
    await fleet.start()
    await worker.start()
    async with asyncio.timeout(30):
        while not states:
            await asyncio.sleep(0.02)
    long = await edge.place(worker.name, edge.request("x", max_tokens=1500))
    await edge.until(lambda: len(long.ids) >= 50)
    late = await edge.place(worker.name, edge.request("x", max_tokens=5))
    await edge.closed(long, late)
    assert (long.ids, long.attempts) == (words(1500), [1])
    assert late.ids == words(5)
    active, resting = WorkerState.WORKER_STATE_ACTIVE, WorkerState.WORKER_STATE_DRAINING
    async with asyncio.timeout(60):
        while changes(states) != [active, resting, active]:
            await asyncio.sleep(0.05)
    assert len(children(tmp_path / "lives")) == 2
    assert await restarts(worker) == 0, "no fault"
    await fleet.stop()


def changes(states: list[WorkerState.ValueType]) -> list[WorkerState.ValueType]:
    return [state for state, before in zip(states, [None, *states], strict=False) if state != before]


async def test_one_that_leaks_again_and_again_is_left_as_it_is(
    edge: Any, new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    variables = {
        "ENGINE_MAX_MEMORY": str(40 * MEGABYTE), "ENGINE_MEMORY_GRACE": "0s", "SYNTHETIC__ITL": "10ms",
        "MAX_ENGINE_RESTARTS": "1",
    }  # fmt: skip
    worker = make_with_child(new_worker(**variables), tmp_path / "lives", grows=MEGABYTE // 2, starts=9)
    await worker.start()
    received = await edge.place(worker.name, edge.request("x", max_tokens=900))
    await edge.closed(received)
    assert received.ids == words(900)
    async with asyncio.timeout(30):
        while len(os.listdir(tmp_path / "lives")) < 2:
            await asyncio.sleep(0.02)
    assert len(children(tmp_path / "lives")) == 2
    assert worker.process.returncode is None

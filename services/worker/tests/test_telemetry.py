"""What becomes of a GPU's readings in a worker process: heartbeats, metrics, joules, a drain. The GPU is a file."""

import asyncio
import json
import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.control_pb2 import GpuStatus, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.metrics import GPU_POWER
from inferbus_worker.core.energy import Meter
from inferbus_worker.core.gpu import Gpu, Reading
from inferbus_worker.telemetry import watching
from prometheus_client.parser import text_string_to_metric_families

READING = {
    "utilization": 0.5, "memory_used": 1 << 30, "memory_total": 4 << 30, "power": 200.0, "energy": 9.0,
    "temperature": 60.0, "slowdown": 87.0, "ecc_volatile": 0, "throttles": [],
}  # fmt: skip


class File:
    """What the GPU says, as it is now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.says()

    def says(self, watts: float = 200.0, xids: tuple[int, ...] = (), **reading: Any) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"watts": watts, "xids": xids, "reading": READING | reading}))
        os.replace(new, self.path)


@pytest.fixture
def gpu(tmp_path: Path) -> File:
    return File(tmp_path / "gpu.json")


@pytest.fixture
def with_gpu(new_worker: Callable[..., Any], gpu: File) -> Callable[..., Any]:
    def make(**variables: str) -> Any:
        worker = new_worker(**variables)
        worker.program = (str(Path(__file__).with_name("worker_with_gpu.py")), str(gpu.path))
        return worker

    return make


async def heard(bus: Bus, worker: Any) -> list[Heartbeat]:
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    return beats


async def until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


def metrics(address: str) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = (sample for family in families for sample in family.samples if "gpu" in sample.name)
    return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}


async def test_joules_of_requests_are_those_of_the_gpu(edge: Any, with_gpu: Callable[..., Any]) -> None:
    worker = with_gpu()
    await worker.start()
    await asyncio.sleep(0.5)
    requests, boot = [edge.request("say something", n) for n in (100, 200, 200)], await edge.incarnation(worker.name)
    received = await asyncio.gather(*(edge.place(worker.name, request, boot) for request in requests))
    await edge.closed(*received)
    closes = [one.close for one in received]
    began = min(clock.unix_us(one.started_time) for one in closes)
    took = (max(clock.unix_us(one.end_time) for one in closes) - began) / 1e6  # by its own clock
    short, *long = [one.close.energy_joules for one in received]
    assert all(one.close.HasField("energy_joules") for one in received)
    # 200 W for as long as they ran, of which the reading before and the time until we hear of it are not theirs.
    assert 200 * (took - 0.6) < short + sum(long) < 200 * (took + 0.3)
    assert long == [pytest.approx(long[0], rel=0.3)] * 2
    assert short < 0.6 * long[0]


async def test_without_a_gpu_there_are_no_joules_and_no_gpus(bus: Bus, edge: Any, worker: Any) -> None:
    beats = await heard(bus, worker)
    received = await edge.place(worker.name, edge.request("say something", max_tokens=5))
    await edge.closed(received)
    await until(lambda: beats)
    assert not received.close.HasField("energy_joules")
    assert not any(beat.gpus for beat in beats)


async def test_heartbeats_and_metrics_say_what_the_gpu_says(bus: Bus, with_gpu: Callable[..., Any], gpu: File) -> None:
    worker = with_gpu(METRICS_ADDRESS="127.0.0.1:0", HEARTBEAT_INTERVAL="50ms")
    beats = await heard(bus, worker)
    await worker.start()
    await until(lambda: any(beat.gpus for beat in beats))
    (status,) = next(beat.gpus for beat in beats if beat.gpus)
    assert (status.uuid, status.index, status.name, status.fault) == ("GPU-of-a-file", 0, "a file", "")
    assert (status.utilization, status.memory_total_bytes, status.temperature_celsius) == (0.5, 4 << 30, 60.0)
    assert status.HasField("ecc_uncorrected_volatile")
    assert not status.HasField("ecc_uncorrected_aggregate")
    await until(lambda: len([beat for beat in beats if beat.gpus]) > 2)
    assert len([beat for beat in beats if beat.gpus]) < len(beats) / 4, "once a reading, not in each heartbeat"
    address = json.loads(worker.ready_file.read_text())["metrics"]
    found = await asyncio.to_thread(metrics, address)
    uuid = "GPU-of-a-file"
    assert found["inferbus_gpu_power_watts", uuid] == 200
    assert found["inferbus_gpu_ecc_uncorrected", uuid, "volatile"] == 0
    assert ("inferbus_gpu_ecc_uncorrected", uuid, "aggregate") not in found
    assert found["inferbus_gpu_energy_joules_total", uuid] > 100
    assert {name: value for name, value in found.items() if "sick" in name[0]} == {
        ("inferbus_gpu_sick", uuid, fault): 0 for fault in ("ecc", "xid", "lost", "hot")
    }
    gpu.says(temperature=None, throttles=["sw_power_cap"])
    await until(lambda: any(beat.gpus and not beat.gpus[0].HasField("temperature_celsius") for beat in beats))
    found = await asyncio.to_thread(metrics, address)
    assert ("inferbus_gpu_temperature_celsius", uuid) not in found, "absent, not zero"
    assert found["inferbus_gpu_throttled", uuid, "sw_power_cap"] == 1


@pytest.mark.parametrize(
    ("sick", "fault"),
    [
        ({"xids": (13, 79)}, "xid"),
        ({"ecc_volatile": 1}, "ecc"),
        ({"lost": "GPU is lost"}, "lost"),
        ({"temperature": 90.0}, "hot"),
    ],
)
async def test_a_sick_gpu_drains_its_worker_and_cuts_nothing(
    bus: Bus, edge: Any, with_gpu: Callable[..., Any], gpu: File, sick: dict[str, Any], fault: str
) -> None:
    worker = with_gpu(GPU__HOT_FOR="1s")
    beats = await heard(bus, worker)
    fleet = Registry(bus, "fleet", WorkerRecord)
    await fleet.start()
    await worker.start()
    received = await edge.place(worker.name, edge.request("say something", max_tokens=2000))
    await edge.until(lambda: received.ids)
    await until(lambda: any(beat.gpus for beat in beats))  # what it counted before is no fault
    gpu.says(**sick)
    draining = WorkerState.WORKER_STATE_DRAINING
    await until(lambda: (record := fleet.get(worker.name)) is not None and record.state == draining)
    assert received.close is None, "still running"
    await edge.closed(received)
    assert (received.close.finish_reason, len(received.ids)) == (FinishReason.FINISH_REASON_LENGTH, 2000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(edge.closed(await edge.place(worker.name, edge.request("late"))), 0.5)
    await until(lambda: beats[-1].gpus)
    assert beats[-1].gpus[0].fault == fault
    gpu.says()
    await asyncio.sleep(1.5)
    assert fleet.get(worker.name).state == WorkerState.WORKER_STATE_DRAINING, "it stays out"
    worker.signal(15)
    assert await worker.ended() == 0


async def test_a_fault_that_is_only_told(bus: Bus, edge: Any, with_gpu: Callable[..., Any], gpu: File) -> None:
    worker = with_gpu(GPU__DRAIN_ON="none", GPU__IGNORED_XIDS="31")
    beats = await heard(bus, worker)
    await worker.start()
    gpu.says(xids=(31, 13))
    await until(lambda: any(beat.gpus and beat.gpus[0].fault == "xid" for beat in beats))
    assert list(next(beat.gpus[0].xids for beat in beats if beat.gpus and beat.gpus[0].fault)) == [31, 13]
    received = await edge.place(worker.name, edge.request("say something", max_tokens=5))
    await edge.closed(received)
    assert received.close.finish_reason == FinishReason.FINISH_REASON_LENGTH


class Stuck:
    """Says what it is, reads once, and then hangs as a broken driver does."""

    gpus = (Gpu("GPU-stuck", 0, "stuck"),)

    def __init__(self) -> None:
        self.free = threading.Event()
        self.asked = 0

    def meters(self) -> list[Meter]:
        self.asked += 1
        if self.asked > 1:
            self.free.wait()
        return [Meter(1.0, 100.0)]

    def read(self) -> list[Reading]:
        return [Reading(**READING)]

    def wait(self, seconds: float) -> list[tuple[Gpu, int]]:
        return []

    def close(self) -> None:
        pass


async def test_gpus_that_hang_are_silent_and_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferbus_worker.telemetry._STALE_SECONDS", 0.5)
    stuck, drained = Stuck(), asyncio.Event()

    async def drain() -> None:
        drained.set()

    async with asyncio.timeout(90), watching(lambda: stuck, ignored_xids=(), hot_for=1.0) as telemetry:
        assert telemetry is not None
        await until(lambda: telemetry.statuses() and GPU_POWER.labels("GPU-stuck")._value.get() == 200.0)
        looking = asyncio.create_task(telemetry.run(drain, ("lost",)))  # only now may it be too old
        silent: list[GpuStatus] = []
        await until(lambda: silent.extend(telemetry.statuses()) or silent)
        looking.cancel()
    assert [field.name for field, _ in silent[0].ListFields()] == ["uuid", "index", "name"]
    assert ("GPU-stuck",) not in GPU_POWER._metrics, "no series"
    assert not drained.is_set(), "silence is no fault"
    stuck.free.set()

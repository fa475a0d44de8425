"""Real processes: started, told to stop, broken on purpose; judged by exit code, log and ready file."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SAMPLE = Path(__file__).with_name("sample_service.py")
Serving = health_pb2.HealthCheckResponse


class Sample:
    """One running sample service; its log is read as it comes."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self.ready_file = ready_file
        self.lines: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())
        self._more = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if line.startswith(b"{"):  # gRPC's C core has lines of its own
                self.lines.append(json.loads(line))
                self._more.set()

    async def line(self, message: str) -> dict[str, Any]:
        """The first log line with ``message``, waited for."""
        async with asyncio.timeout(20):
            while True:
                for line in self.lines:
                    if line["message"] == message:
                        return line
                assert not self._reader.done(), f"ended without {message!r}: {self.lines}"
                self._more.clear()
                more = asyncio.ensure_future(self._more.wait())
                await asyncio.wait((more, self._reader), return_when=asyncio.FIRST_COMPLETED)
                more.cancel()

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            code = await self.process.wait()
            await self._reader
        return code

    def parts(self, message: str) -> list[str]:
        return [line["part"] for line in self.lines if line["message"] == message]


Start = Callable[..., Awaitable[Sample]]


def variables(ready_file: Path, **more: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("INFERBUS_")},
        "INFERBUS_SAMPLE_NAME": "sample-0",
        "INFERBUS_SAMPLE_READY_FILE": str(ready_file),
        **{f"INFERBUS_SAMPLE_{name}": value for name, value in more.items()},
    }


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[asyncio.subprocess.Process] = []

    async def begin(**more: str) -> Sample:
        ready_file = tmp_path / "run" / "sample.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SAMPLE), env=variables(ready_file, **more), stderr=asyncio.subprocess.PIPE
        )
        started.append(process)
        return Sample(process, ready_file)

    yield begin
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def health(stub: health_pb2_grpc.HealthStub) -> int:
    return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status


async def test_starts_serves_and_stops_in_order(start: Start) -> None:
    sample = await start(METRICS_ADDRESS="127.0.0.1:0")
    await sample.line("ready")
    info = json.loads(sample.ready_file.read_text())
    assert info["pid"] == sample.process.pid
    async with grpc.aio.insecure_channel(info["grpc"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert await health(stub) == Serving.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == Serving.SERVING
        reader, writer = await asyncio.open_connection(*info["metrics"].rsplit(":", 1))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b'inferbus_process_info{instance="sample-0",service="sample"} 1.0' in await reader.read()
        writer.close()
        sample.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == Serving.NOT_SERVING
    assert await sample.ended() == 0
    assert sample.parts("drain") == ["first", "second"]
    assert sample.parts("close") == ["last", "task", "store"]
    order = [line["message"] for line in sample.lines]
    assert order.index("drain") < order.index("close")
    assert not any(line["ready_now"] for line in sample.lines if line["message"] == "drain")
    assert not sample.ready_file.exists()
    assert {(line["service"], line["instance"]) for line in sample.lines} == {("sample", "sample-0")}
    assert not [line for line in sample.lines if line["level"] == "error"]


async def test_ctrl_c_stops_too(start: Start) -> None:
    sample = await start(OTLP_ENDPOINT="http://127.0.0.1:1")  # a collector that is away keeps nobody
    await sample.line("ready")
    sample.process.send_signal(signal.SIGINT)
    assert await sample.ended() == 0


@pytest.mark.parametrize(
    ("script", "reason"), [("task_dies", "sample_gone"), ("wire_fails", "OSError"), ("callback_fails", "ValueError")]
)
async def test_a_failure_takes_the_process_down_in_order(start: Start, script: str, reason: str) -> None:
    sample = await start(SCRIPT=script)
    assert await sample.ended() == 1
    failure = await sample.line("the process fails")
    assert failure["reason"] == reason
    assert "Traceback" in failure["exception"] or script == "callback_fails"
    assert sample.parts("drain") == ["first", "second"]
    assert sorted(sample.parts("close")) == ["last", "store", "task"]
    assert not sample.ready_file.exists()


async def test_a_stop_during_the_start_closes_what_is_open(start: Start) -> None:
    sample = await start(SCRIPT="wire_hangs")
    await sample.line("hanging")
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == 0
    assert sample.parts("close") == ["last", "task", "store"]
    assert not sample.ready_file.exists()


async def test_the_drain_has_a_deadline(start: Start) -> None:
    sample = await start(SCRIPT="drain_hangs", DRAIN_TIMEOUT="200ms")
    await sample.line("ready")
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == 0
    assert await sample.line("the drain was cut off")
    assert sample.parts("close") == ["last", "task", "store"]


async def test_one_drain_that_fails_does_not_keep_the_next_from_running(start: Start) -> None:
    sample = await start(SCRIPT="drain_fails")
    await sample.line("ready")
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == 1
    assert sample.parts("drain") == ["first", "second"]


async def test_a_second_signal_ends_the_drain(start: Start) -> None:
    sample = await start(SCRIPT="drain_hangs")
    await sample.line("ready")
    sample.process.send_signal(signal.SIGTERM)
    await sample.line("drain")
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == 1
    assert sample.parts("close") == ["last", "task", "store"]


async def test_a_second_signal_hurries_a_close_that_hangs(start: Start) -> None:
    sample = await start(SCRIPT="close_hangs")
    await sample.line("ready")
    sample.process.send_signal(signal.SIGTERM)
    await sample.line("drain")
    while "store" not in sample.parts("close"):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == 3
    assert time.monotonic() - began < 6  # of 60
    assert "noted" in (await sample.line("closing did not end in time"))["stuck"]


def catches(pid: int, signum: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return bool(int(mask, 16) >> (signum - 1) & 1)


async def test_a_third_signal_kills(start: Start) -> None:
    sample = await start(SCRIPT="close_stuck")
    await sample.line("ready")
    sample.process.send_signal(signal.SIGTERM)
    await sample.line("drain")
    sample.process.send_signal(signal.SIGTERM)
    while catches(sample.process.pid, signal.SIGTERM):
        await asyncio.sleep(0.01)
    sample.process.send_signal(signal.SIGTERM)
    assert await sample.ended() == -signal.SIGTERM


async def test_a_taken_port_is_a_clear_failure(start: Start) -> None:
    first = await start()
    address = (await first.line("ready"))["ready"]["grpc"]
    first.ready_file.unlink()
    second = await start(GRPC_ADDRESS=address)
    assert await second.ended() == 1
    assert f"cannot listen on {address}" in (await second.line("the process fails"))["exception"]


async def test_dies_with_its_parent(tmp_path: Path) -> None:
    ready_file = tmp_path / "sample.json"
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()",
        sys.executable,
        str(SAMPLE),
        env=variables(ready_file, DIE_WITH_PARENT="true"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(20):
        while not ready_file.exists():
            await asyncio.sleep(0.02)
    child = psutil.Process(json.loads(ready_file.read_text())["pid"])
    parent.kill()
    await parent.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], timeout=30)
    assert gone


async def test_check_config(tmp_path: Path) -> None:
    async def check(**more: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SAMPLE),
            "--check-config",
            env=variables(tmp_path / "sample.json", **more),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    assert await check() == (0, "The configuration is valid.\n")
    code, output = await check(DRAIN_TIMOUT="1s", GRPC_ADDRESS="nonsense", RPC_TOKEN="hunter2")
    assert code == 2
    assert "INFERBUS_SAMPLE_DRAIN_TIMOUT: no such variable; did you mean INFERBUS_SAMPLE_DRAIN_TIMEOUT?" in output
    assert "INFERBUS_SAMPLE_GRPC_ADDRESS: " in output
    assert "INFERBUS_SAMPLE_RPC_TOKEN: " in output
    assert "hunter2" not in output
    assert not (tmp_path / "sample.json").exists()

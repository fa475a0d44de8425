"""The batch service as a process on a real nats-server: it starts, serves, outlives the broker's outages, and ends."""

import asyncio
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferbus.batch.v1.files_pb2 import FileHead, GetFileRequest, PutFileRequest, ReadFileRequest
from inferbus.batch.v1.files_pb2_grpc import FileServiceStub
from inferbus_batch.scratch import scratch
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.streams import ensure_streams
from inferbus_runtime.rpc import channel
from inferbus_stack.nats import NatsServer

from services.batch.tests.batch_process import BatchProcess

TOKEN = "an-operator-s-token-of-tests"
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        async with connect(BusConfig(server.url, "test")) as bus:
            await ensure_streams(bus)
        yield server


@pytest.fixture
async def batch(nats: NatsServer, tmp_path: Path) -> AsyncIterator[BatchProcess]:
    process = BatchProcess(tmp_path, nats.url)
    yield process
    await process.end(signal.SIGKILL)


@asynccontextmanager
async def files(process: BatchProcess, token: str | None = TOKEN) -> AsyncIterator[FileServiceStub]:
    async with channel(process.ready["grpc"], token) as grpc_channel:
        yield FileServiceStub(grpc_channel)


async def health(process: BatchProcess, service: str = "") -> int:
    async with channel(process.ready["grpc"], None) as grpc_channel:
        stub = health_pb2_grpc.HealthStub(grpc_channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    return answer.status


async def is_connected(process: BatchProcess) -> bool:
    """What it says of the bus itself."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
        session.get(f"http://{process.ready['metrics']}/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    return "inferbus_bus_connected 1.0" in lines


async def until_connected(process: BatchProcess, wanted: bool) -> None:
    async with asyncio.timeout(60):
        while await is_connected(process) is not wanted:
            assert process.running, process.log()
            await asyncio.sleep(0.05)


async def test_it_serves_until_it_is_told_to_stop_and_leaves_nothing_behind(
    batch: BatchProcess, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    await batch.start(SCRATCH_FOLDER=str(scratch), RPC_TOKEN=TOKEN)
    assert await health(batch) == SERVING
    assert stat.S_IMODE((scratch / "batch").stat().st_mode) == 0o700
    assert await batch.end(signal.SIGTERM) == 0, batch.log()
    assert not batch.ready_file.exists()
    assert list(scratch.iterdir()) == []


async def test_the_brokers_outage_is_survived(batch: BatchProcess, nats: NatsServer) -> None:
    await batch.start()
    for _ in range(2):
        await nats.kill()
        await until_connected(batch, False)
        await nats.start()
        await until_connected(batch, True)
    assert await health(batch) == SERVING
    assert await batch.end(signal.SIGTERM) == 0, batch.log()


async def test_it_ends_in_order_also_while_the_broker_is_away(batch: BatchProcess, nats: NatsServer) -> None:
    await batch.start(DRAIN_TIMEOUT="5s")
    await nats.kill()
    await until_connected(batch, False)
    assert await batch.end(signal.SIGTERM) == 0, batch.log()


async def test_what_a_killed_one_left_of_customers_content_is_gone_at_the_next_start(
    batch: BatchProcess, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    await batch.start(SCRATCH_FOLDER=str(scratch))
    await batch.end(signal.SIGKILL)
    (scratch / "batch" / "input.jsonl").write_text("a secret")
    (scratch / "another").mkdir()
    await batch.start(SCRATCH_FOLDER=str(scratch))
    assert list((scratch / "batch").iterdir()) == []
    assert (scratch / "another").exists(), "another process' folder"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"LEASE_TTL": "1s"}, "INFERBUS_BATCH_LEASE_TTL"),
        ({"SCRATCH": "/tmp"}, "INFERBUS_BATCH_SCRATCH"),
        ({"S3__BUCKET": "some", "S3__ACCESS_KEY_ID": "who"}, "INFERBUS_BATCH_S3__SECRET_ACCESS_KEY"),
    ],
)
async def test_a_setting_that_cannot_be_is_named_and_nothing_starts(
    tmp_path: Path, settings: dict[str, str], fault: str
) -> None:
    process = BatchProcess(tmp_path, "nats://127.0.0.1:1")
    started = await process.launch(**settings)
    async with asyncio.timeout(60):
        assert await started.wait() == 2
    assert fault in process.log()


async def test_without_a_setting_the_folder_is_a_new_one_and_goes_with_the_process() -> None:
    async with scratch(None, "batch") as one, scratch(None, "batch") as other:
        assert one != other
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        (one / "input").write_text("a secret")
    assert not one.exists()
    assert not other.exists()


async def test_a_file_that_was_put_is_there_after_a_kill_of_service_and_broker(
    batch: BatchProcess, nats: NatsServer
) -> None:
    async def parts() -> AsyncIterator[PutFileRequest]:
        yield PutFileRequest(head=FileHead(tenant_id="acme", project_id="p", filename="in.jsonl", purpose="batch"))
        for _ in range(20):
            yield PutFileRequest(content=b"line\n" * 50_000)

    await batch.start(RPC_TOKEN=TOKEN)
    async with files(batch) as stub:
        put = (await stub.PutFile(parts(), timeout=60)).file
    assert put.size_bytes == 5_000_000
    await batch.end(signal.SIGKILL)
    await nats.restart()
    await batch.start(RPC_TOKEN=TOKEN)
    assert await health(batch, "inferbus.batch.v1.FileService") == SERVING
    async with files(batch) as stub:
        asked = ReadFileRequest(tenant_id="acme", project_id="p", file_id=put.file_id)
        content = b"".join([part.content async for part in stub.ReadFile(asked, timeout=60)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetFile(GetFileRequest(tenant_id="other", file_id=put.file_id))
    assert content == b"line\n" * 1_000_000
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_has_not_the_operators_token_is_refused(batch: BatchProcess) -> None:
    await batch.start(RPC_TOKEN=TOKEN)
    async with files(batch, token=None) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetFile(GetFileRequest(tenant_id="acme", file_id="file-1"))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

"""A worker that is cut off from the broker, in a network namespace of its own: nobody hears it end, and it does not
hear that its work is another's."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.harness.disturbed import gaps, loaded, report
from tests.harness.local import Stack, running, until
from tests.harness.streams import chat

NAME = f"inferbus-{os.getpid()}"
# Two addresses of its own: a cable that another run left behind, since it was killed, leads nowhere.
_NET = f"10.213.{os.getpid() >> 6 & 255}"
HERE, THERE = (f"{_NET}.{(os.getpid() & 63) * 4 + end}" for end in (1, 2))
LEASE_SECONDS = 3


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _may() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        _ip("netns", "add", f"{NAME}-try")
        _ip("netns", "delete", f"{NAME}-try")
    except subprocess.CalledProcessError:
        return False
    return True


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace with one cable to here; the name of the cable's end on this side."""
    cable, end = f"ib{os.getpid()}", f"ib{os.getpid()}x"
    _ip("netns", "add", NAME)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", end)
        _ip("link", "set", end, "netns", NAME)
        _ip("addr", "add", f"{HERE}/30", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("-n", NAME, "addr", "add", f"{THERE}/30", "dev", end)
        _ip("-n", NAME, "link", "set", end, "up")
        _ip("-n", NAME, "link", "set", "lo", "up")
        yield cable
    finally:
        subprocess.run(["ip", "link", "delete", cable], check=False, capture_output=True)
        _ip("netns", "delete", NAME)


@asynccontextmanager
async def passed_on(port: int) -> AsyncIterator[int]:
    """What comes for the namespace's end of the cable goes to ``port`` on loopback, where the broker listens."""

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(one_way(reader, there[1]), one_way(there[0], writer), return_exceptions=True)

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(both, HERE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def worker_there(stack: Stack, folder: Path, port: int) -> AsyncIterator[None]:
    """A worker of ``stack`` inside the namespace."""
    ready = folder / "cut-off.json"
    settings = {
        "NAME": "worker-cut-off", "NATS_URL": f"nats://{HERE}:{port}", "NATS_SEED": stack.content["nats_seed"],
        "GRPC_ADDRESS": f"{THERE}:0", "READY_FILE": str(ready), "ENGINE": "synthetic", "SYNTHETIC__ITL": "50ms",
        "LEASE_TTL": f"{LEASE_SECONDS}s", "DIE_WITH_PARENT": "true",
        "RPC_TOKEN": (stack.home / "secrets" / "rpc-token").read_text().strip(),
    }  # fmt: skip
    environ = {**os.environ, **{f"INFERBUS_WORKER_{name}": value for name, value in settings.items()}}
    with (folder / "cut-off.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", NAME, sys.executable, "-m", "inferbus_worker", env=environ, stdout=log, stderr=log
        )
    try:
        await until(lambda: ready.exists() or process.returncode is not None, 60)
        assert ready.exists(), (folder / "cut-off.log").read_text()
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_running_there(stack: Stack) -> None:
    """Returns when the worker in the namespace has something to do."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.admin_key}"}) as http, asyncio.timeout(60):
        while True:
            fleet = (await http.get(f"{stack.root_url}/inferbus/v1/fleet")).json()
            active = {one["record"]["worker"]: one.get("active", 0) for one in fleet["workers"]}
            if active.get("worker-cut-off"):
                return
            await asyncio.sleep(0.2)


@pytest.mark.skipif(not _may(), reason="needs root and network namespaces")
@pytest.mark.timeout(300)
async def test_a_worker_that_is_cut_off_is_replaced_after_its_lease_and_comes_back_as_a_new_one(tmp_path: Path) -> None:
    forms = [chat("synthetic", "go", 300)]
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms", "INFERBUS_WORKER_LEASE_TTL": f"{LEASE_SECONDS}s"}
    async with running(tmp_path / "home", "synthetic", variables=variables) as stack:
        port = urlsplit(stack.content["nats_url"]).port
        assert port is not None
        with namespace() as cable:
            async with passed_on(port) as there, worker_there(stack, tmp_path, there):
                async with loaded(stack, forms, 16) as load:
                    await until_running_there(stack)
                    moment = time.monotonic()
                    _ip("link", "set", cable, "down")
                    await asyncio.sleep(LEASE_SECONDS + 5)
                    away = time.monotonic() - moment
                    _ip("link", "set", cable, "up")
                    await asyncio.sleep(5)
                found = gaps(load, [("cut off", moment)])
                report(found)
                assert found, "nobody ran on the worker that was cut off"
                # All went on before the cable was back.
                assert max(silence for silence, _ in found["cut off"]) < away
                # It is born again, and takes work.
                async with loaded(stack, forms, 4):
                    await until_running_there(stack)

"""A large file up and down through edge, batch service and store: MB a second beside a plain copy through the same
store, and how far memory grows."""

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import aiohttp
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_objects.s3_store import S3Store
from inferbus_objects.store import BusStore, ObjectStore

from bench.local import running
from bench.measure import table
from services.batch.tests.s3_servers.swift_server import missing, swift
from tests.harness.local import Stack

Times = tuple[float, float]
_PART = 1 << 20
_BLOCK = os.urandom(_PART)


async def parts(megabytes: int) -> AsyncIterator[bytes]:
    """No two alike."""
    for number in range(megabytes):
        yield number.to_bytes(8, "big") + _BLOCK[8:]


def digest_of(megabytes: int) -> str:
    made = hashlib.sha256()
    for number in range(megabytes):
        made.update(number.to_bytes(8, "big") + _BLOCK[8:])
    return made.hexdigest()


class Memory:
    """How far each service's memory grew since this was made: the kernel's own peak, so that none is missed."""

    def __init__(self, stack: Stack) -> None:
        self._pids = {name: stack.pids[name] for name in ("edge", "batch", "nats")}
        for pid in self._pids.values():
            # The peak so far is forgotten, or that of the start would be taken for this one's.
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self.before = self._read("VmRSS")

    @property
    def peak(self) -> dict[str, int]:
        return self._read("VmHWM")

    def _read(self, field: str) -> dict[str, int]:
        """Bytes, by service."""
        found = {}
        for name, pid in self._pids.items():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found[name] = next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
        return found


async def through(stack: Stack, megabytes: int) -> tuple[float, float]:
    """(seconds up, seconds down) by HTTP."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        form = aiohttp.MultipartWriter("form-data")
        purpose = form.append("batch")
        purpose.set_content_disposition("form-data", name="purpose")
        file = form.append(parts(megabytes))
        file.set_content_disposition("form-data", name="file", filename="large.jsonl")
        start = perf_counter()
        async with http.post(f"{stack.base_url}/files", data=form) as answer:
            said = await answer.json()
            assert answer.status == 200, said
        up = perf_counter() - start
        assert said["bytes"] == megabytes * _PART
        got = hashlib.sha256()
        start = perf_counter()
        async with http.get(f"{stack.base_url}/files/{said['id']}/content") as answer:
            async for part in answer.content.iter_chunked(_PART):
                got.update(part)
        down = perf_counter() - start
        assert got.hexdigest() == digest_of(megabytes)
        async with http.delete(f"{stack.base_url}/files/{said['id']}") as answer:
            assert answer.status == 200
        return up, down


async def on_bus(stack: Stack, megabytes: int) -> tuple[float, float]:
    """The same bytes into the object store of the bus and out, by one client."""
    async with connect(BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        return await plain(BusStore(Objects(bus, publisher)), megabytes)


async def plain(store: ObjectStore, megabytes: int) -> tuple[float, float]:
    """(seconds in, seconds out) with nothing before the store."""
    start = perf_counter()
    await store.put("bench", parts(megabytes))
    up = perf_counter() - start
    got = hashlib.sha256()
    start = perf_counter()
    async for part in store.get("bench"):
        got.update(part)
    down = perf_counter() - start
    assert got.hexdigest() == digest_of(megabytes)
    await store.delete("bench")
    return up, down


async def measure(name: str, megabytes: int, copy: Callable[[Stack], Awaitable[Times]], **variables: str) -> str:
    """The tables of one store. ``copy``: the plain one."""
    async with running("synthetic", **variables) as stack:
        await through(stack, 16)  # what is imported and cached at the first one is not counted
        # Memory first: a plain copy would leave nats-server grown, and hide what the file makes it grow by. Then in the
        # order A B B A, since the disk and its cache are not the same at the end as at the beginning.
        memory = Memory(stack)
        took = [await through(stack, megabytes)]
        peak = memory.peak
        copied = [await copy(stack), await copy(stack)]
        took.append(await through(stack, megabytes))
    bare, ours = _rates(copied, megabytes), _rates(took, megabytes)
    rows = [
        ("plain copy", *(f"{rate:.0f}" for rate in bare)),
        ("/v1/files", *(f"{rate:.0f}" for rate in ours)),
        ("of the plain copy", *(f"{one / other:.2f}" for one, other in zip(ours, bare, strict=True))),
    ]
    grown = [
        (service, f"{before >> 20}", f"{peak[service] >> 20}", f"{(peak[service] - before) >> 20}")
        for service, before in memory.before.items()
    ]
    return "\n".join((
        table(f"{name}, MiB a second", ("", "up", "down"), rows),
        table(f"{name}, memory in MiB", ("", "before", "peak", "grown"), grown),
    ))  # fmt: skip


async def run(megabytes: int = 1024) -> str:
    tables = [await measure("Object store of the bus", megabytes, lambda stack: on_bus(stack, megabytes))]
    if why := missing():
        tables.append(f"S3 was not measured: {why}\n")
    else:
        with TemporaryDirectory() as folder:
            async with swift(Path(folder)) as server:
                settings = server.settings()
                assert settings.secret_access_key is not None
                where = {
                    "ENDPOINT": settings.endpoint, "BUCKET": settings.bucket, "ACCESS_KEY_ID": settings.access_key_id,
                    "SECRET_ACCESS_KEY": settings.secret_access_key.get_secret_value(),
                }  # fmt: skip
                variables = {f"INFERBUS_BATCH_S3__{name}": str(value) for name, value in where.items()}
                store = S3Store(server.settings(prefix="bench"))
                tables.append(await measure("S3 (Swift)", megabytes, lambda _: plain(store, megabytes), **variables))
    return "\n".join((
        f"## A file of {megabytes} MiB, up and down",
        "",
        "All processes and the client on one machine; each twice, in the order A B B A. Memory: the kernel's peak "
        "while the first file went up and down.",
        "",
        *tables,
    ))  # fmt: skip


def _rates(times: list[Times], megabytes: int) -> list[float]:
    """MiB a second up and down, over all rounds."""
    return [megabytes * len(times) / sum(each) for each in zip(*times, strict=True)]

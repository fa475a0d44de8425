"""Files as segments on a real store: whole or not at all, and any range of them."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from inferbus_batch import content
from inferbus_batch.content import read, remove, write
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_objects.store import BusStore
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

DATA = bytes(range(251)) * 1000


@pytest.fixture(scope="module")
async def store(tmp_path_factory) -> AsyncIterator[BusStore]:
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, connect(BusConfig(server.url, "batch")) as bus:
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        yield BusStore(Objects(bus, publisher))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SEGMENT_BYTES", 100_000)


async def parts(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(store, segments, *given: int) -> bytes:
    return b"".join([part async for part in read(store, segments, *given)])


@pytest.mark.parametrize("size", [7_000, 100_000, 240_000])
async def test_what_is_written_is_read(store, size):
    segments = await write(store, f"file-{size}", parts(DATA, size))
    assert [one.size_bytes for one in segments] == [100_000, 100_000, 51_000]
    assert segments[0].digest == hashlib.sha256(DATA[:100_000]).digest()
    assert await whole(store, segments) == DATA
    for offset, length in ((0, 10), (99_990, 20), (150_000, 60_000), (250_990, 100), (251_000, 1)):
        assert await whole(store, segments, offset, length) == DATA[offset : offset + length]
    assert await whole(store, segments, 200_001) == DATA[200_001:]


async def test_nothing_has_no_segments(store):
    assert await write(store, "empty", parts(b"", 1)) == []


async def test_what_breaks_off_leaves_nothing(store):
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise InferBusError(1, "gone", "The client is gone.")

    with pytest.raises(InferBusError, match="gone"):
        await write(store, "broken", broken())
    assert not await left(store, "broken/")


async def test_what_is_removed_is_gone(store):
    segments = await write(store, "removed", parts(DATA, 50_000))
    assert len(await left(store, "removed/")) == 3
    await remove(store, segments)
    assert not await left(store, "removed/")


async def left(store, prefix: str) -> list[str]:
    """What can still be read."""
    found = []
    for name in await store.names(prefix):
        with suppress(InferBusError):
            assert [part async for part in store.get(name)]
            found.append(name)
    return found

"""The object store, on a real broker: streams in both directions, whole or not at all."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.objects import CHUNK_BYTES, Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer


@pytest.fixture(scope="module")
async def bus(tmp_path_factory) -> AsyncIterator[Bus]:
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server, connect(BusConfig(server.url, "objects")) as bus:
        await ensure_streams(bus)
        yield bus


@pytest.fixture
async def objects(bus: Bus) -> Objects:
    publisher = Publisher(bus)
    await publisher.start()
    return Objects(bus, publisher)


async def parts(*given: bytes) -> AsyncIterator[bytes]:
    for one in given:
        yield one


async def whole(objects: Objects, name: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join([part async for part in objects.read(name, offset, length)])


DATA = bytes(range(256)) * 9000  # five chunks


async def test_what_is_put_is_read(objects):
    info = await objects.put("a/b c", parts(DATA[:100], DATA[100:700_000], DATA[700_000:]))
    assert (info.size, info.digest) == (len(DATA), hashlib.sha256(DATA).digest())
    assert await objects.info("a/b c") == info
    assert await whole(objects, "a/b c") == DATA


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (5, 10), (CHUNK_BYTES - 1, 2), (CHUNK_BYTES, CHUNK_BYTES), (len(DATA) - 3, 100), (len(DATA), 5), (7, 0)],
)
async def test_a_range_is_read(objects, offset, length):
    await objects.put("range", parts(DATA))
    assert await whole(objects, "range", offset, length) == DATA[offset : offset + length]


async def test_nothing_is_an_object_too(objects):
    await objects.put("empty", parts())
    assert await whole(objects, "empty") == b""


async def test_what_breaks_off_leaves_what_was_there(objects, bus):
    await objects.put("kept", parts(b"before"))

    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise OSError("the client is gone")

    stored = await _messages(bus)
    with pytest.raises(OSError, match="gone"):
        await objects.put("kept", broken())
    assert await whole(objects, "kept") == b"before"
    assert await _messages(bus) == stored


async def test_a_new_one_takes_the_place_of_the_old(objects, bus):
    await objects.put("again", parts(DATA))
    await objects.put("again", parts(b"after"))
    assert await whole(objects, "again") == b"after"


async def test_what_is_deleted_is_gone_with_its_bytes(objects, bus):
    stored = await _messages(bus)
    await objects.put("gone", parts(DATA))
    assert await objects.delete("gone")
    assert await objects.info("gone") is None
    assert not await objects.delete("gone")
    with pytest.raises(InferBusError) as refused:
        await whole(objects, "gone")
    assert refused.value.reason == "no_such_object"
    assert await _messages(bus) == stored + 1  # the mark of it


async def test_names_are_found(objects):
    await objects.put("names/1", parts(b"x"))
    await objects.put("names/2", parts(b"x"))
    assert {"names/1", "names/2"} <= set(await objects.names())


async def test_missing_bytes_are_an_error_and_no_short_answer(objects, bus):
    info = await objects.put("broken", parts(DATA))
    await bus.api("STREAM.MSG.DELETE.OBJ_files", {"seq": info.last, "no_erase": True})
    with pytest.raises(InferBusError) as refused:
        await whole(objects, "broken")
    assert refused.value.reason == "broken_object"


async def _messages(bus: Bus) -> int:
    return int((await bus.api("STREAM.INFO.OBJ_files"))["state"]["messages"])

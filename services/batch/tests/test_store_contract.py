"""What every ObjectStore holds to: on a real nats-server, and on a real S3 server."""

import asyncio
import hashlib
import itertools
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_objects.s3_settings import S3Settings
from inferbus_objects.s3_store import PART_BYTES, S3Store
from inferbus_objects.store import BusStore, ObjectStore
from inferbus_runtime.errors import InferBusError
from inferbus_stack.certificates import Authority, Wanted
from inferbus_stack.nats import NatsServer
from pydantic import ValidationError

from services.batch.tests.s3_servers.swift_server import PAGE, Swift, missing, swift

DATA = bytes(range(251)) * 1000
LARGE = os.urandom(1 << 20) * 20
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
async def swift_server(tmp_path_factory) -> AsyncIterator[Swift]:
    if why := missing():
        pytest.skip(why)
    async with swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture
async def bus_store(bus) -> ObjectStore:
    publisher = Publisher(bus)
    await publisher.start()
    return BusStore(Objects(bus, publisher))


@pytest.fixture
def s3_store(swift_server) -> ObjectStore:
    return S3Store(swift_server.settings())


@pytest.fixture(params=["bus_store", "s3_store"])
def store(request) -> ObjectStore:
    return request.getfixturevalue(request.param)


@pytest.fixture
def name() -> str:
    """One that no other test has."""
    return f"test-{next(_numbers)}/object"


async def parts(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(store: ObjectStore, name: str, *given: int | None) -> bytes:
    return b"".join([part async for part in store.get(name, *given)])


def is_no_such_object(error: InferBusError) -> bool:
    return (error.error_class, error.reason) == (ErrorClass.ERROR_CLASS_NOT_FOUND, "no_such_object")


@pytest.mark.parametrize(
    "size",
    [0, 1, len(DATA), PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, len(LARGE)],
)
async def test_what_is_put_is_there(store, name, size):
    data = (DATA if size <= len(DATA) else LARGE)[:size]
    stored = await store.put(name, parts(data, 300_000))
    assert (stored.size, stored.digest) == (size, hashlib.sha256(data).digest())
    assert await whole(store, name) == data


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["one part", "many parts"])
async def test_any_range_of_it(store, name, data):
    await store.put(name, parts(data))
    end = len(data)
    middle = min(PART_BYTES, end // 2)
    ranges = [(0, 1), (middle - 5, 10), (middle, None), (end - 3, 10), (end, None), (end, 10), (end + 7, 10), (5, 0)]
    for offset, length in ranges:
        until = end if length is None else offset + length
        assert await whole(store, name, offset, length) == data[offset:until], (offset, length)


async def test_a_range_of_nothing_is_nothing(store, name):
    await store.put(name, parts(b""))
    assert await whole(store, name, 0, 10) == b""


async def test_what_is_put_again_takes_its_place(store, name):
    for data in (LARGE, DATA, b"short"):
        await store.put(name, parts(data))
        assert await whole(store, name) == data
    assert await store.names(name) == [name]


async def test_a_reader_may_stop(store, name):
    await store.put(name, parts(LARGE))
    async with aclosing(store.get(name)) as reading:
        first = await anext(reading)
    assert LARGE.startswith(first)
    assert len(first) < 4 << 20
    assert await whole(store, name, 0, 10) == LARGE[:10]


@pytest.mark.parametrize("size", [0, len(DATA), len(LARGE)])
async def test_a_source_that_fails_changes_nothing(store, name, size):
    async def broken() -> AsyncIterator[bytes]:
        async for part in parts(LARGE[:size]):
            yield part
        raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "gone", "The client is gone.")

    with pytest.raises(InferBusError, match="gone"):
        await store.put(name, broken())
    with pytest.raises(InferBusError) as caught:
        await whole(store, name)
    assert is_no_such_object(caught.value)
    await store.put(name, parts(DATA))
    with pytest.raises(InferBusError, match="gone"):
        await store.put(name, broken())
    assert await whole(store, name) == DATA


async def test_a_put_that_is_cancelled_changes_nothing(store, name):
    await store.put(name, parts(DATA))
    far = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for part in parts(LARGE):
            yield part
        far.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put(name, endless()))
    await asyncio.wait_for(far.wait(), 60)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await whole(store, name) == DATA


async def test_what_is_not_there(store, name):
    for given in ((), (0, 10), (5, None), (0, 0)):
        with pytest.raises(InferBusError) as caught:
            await whole(store, name, *given)
        assert is_no_such_object(caught.value)
    assert not await store.delete(name)


async def test_what_is_deleted_is_gone(store, name):
    for data in (DATA, LARGE):
        await store.put(name, parts(data))
        assert await store.delete(name)
        with pytest.raises(InferBusError) as caught:
            await whole(store, name)
        assert is_no_such_object(caught.value)
        assert not await store.delete(name)


async def test_names_by_prefix_over_several_pages(store, name):
    own = name.removesuffix("object")
    mine = sorted([f"{own}{number:03}" for number in range(3 * PAGE + 5)] + [f"{own}0/deeper", f"{own[:-1]}0/beside"])
    for one in reversed(mine):
        await store.put(one, parts(b"x"))
    for prefix in (own, f"{own}01", f"{own}034", own[:-1], f"{own}0/", f"{own}none"):
        assert await store.names(prefix) == [one for one in mine if one.startswith(prefix)], prefix
    assert set(mine) <= set(await store.names(""))


async def test_memory_stays_flat(store, name):
    """Of Python's own; that of the whole process is measured in bench/."""
    one = os.urandom(1 << 20)

    async def long() -> AsyncIterator[bytes]:
        for _ in range(96):
            yield bytes(one)

    tracemalloc.start()
    try:
        await store.put(name, long())
        size = 0
        async for part in store.get(name):
            size += len(part)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 96 << 20
    assert peak < 64 << 20


# Only where the store is away, or full, do they differ in how to get there.


async def test_a_bus_that_is_away(tmp_path, name):
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "batch")) as bus:
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        store = BusStore(Objects(bus, publisher))
        await server.kill()
        await _all_say(store, name, ErrorClass.ERROR_CLASS_UNAVAILABLE)
        await server.start()


async def test_an_s3_server_that_is_away_and_comes_back(tmp_path, name):
    if why := missing():
        pytest.skip(why)
    async with swift(tmp_path) as server:
        store = S3Store(server.settings(retry_for="PT1S"))
        await store.check()
        await store.put(name, parts(LARGE))
        await server.kill()
        with pytest.raises(InferBusError, match="store_unavailable"):
            await store.check()
        await _all_say(store, name, ErrorClass.ERROR_CLASS_UNAVAILABLE)
        await server.start()
        assert await whole(store, name) == LARGE


async def test_a_store_behind_an_authority_of_its_own(tmp_path, name):
    if why := missing():
        pytest.skip(why)
    tls = Authority(tmp_path / "tls", datetime.now(UTC)).certificates([Wanted("swift", ("127.0.0.1",))])["swift"]
    async with swift(tmp_path, tls) as server:
        store = S3Store(server.settings(ca=tls.ca))
        await store.put(name, parts(LARGE))
        assert await whole(store, name) == LARGE
        with pytest.raises(InferBusError, match="store_unavailable"):
            await S3Store(server.settings(retry_for="PT0S")).check()


async def test_an_s3_server_that_says_nothing(tmp_path, name):
    if why := missing():
        pytest.skip(why)
    async with swift(tmp_path) as server:
        store = S3Store(server.settings(retry_for="PT1S", silence="PT1S"))
        await store.put(name, parts(LARGE))
        server.signal(signal.SIGSTOP)
        async with asyncio.timeout(60):
            await _all_say(store, name, ErrorClass.ERROR_CLASS_UNAVAILABLE)
        server.signal(signal.SIGCONT)
        # A put that was given up may have arrived: all of it, or nothing.
        assert await whole(store, name) in (LARGE, DATA)


async def test_an_s3_server_that_dies_while_it_is_read_and_written(tmp_path, name):
    if why := missing():
        pytest.skip(why)
    async with swift(tmp_path) as server:
        store = S3Store(server.settings(retry_for="PT1S"))
        await store.put(name, parts(LARGE))

        async def dying() -> AsyncIterator[bytes]:
            async for part in parts(LARGE):
                yield part
            await server.kill()
            yield LARGE

        async with aclosing(store.get(name)) as reading:
            await anext(reading)
            with pytest.raises(InferBusError) as caught:
                await store.put("other", dying())
            assert caught.value.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE
            with pytest.raises(InferBusError) as caught:
                async for _ in reading:
                    pass
            assert caught.value.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE


async def _all_say(store: ObjectStore, name: str, error_class: ErrorClass.ValueType) -> None:
    for error in await asyncio.gather(
        store.put(name, parts(DATA)), store.put(name, parts(LARGE)), store.delete(name), store.names(""),
        whole(store, name), whole(store, name, 5, 5), whole(store, name, 5, 0), return_exceptions=True,
    ):  # fmt: skip
        assert isinstance(error, InferBusError), error
        assert error.error_class == error_class
        assert error.retry_after


async def test_a_bucket_that_is_full(swift_server, name):
    store = S3Store(swift_server.settings("small"))
    with pytest.raises(InferBusError) as caught:
        await store.put(name, parts(DATA))
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    assert not await store.names(name)


@pytest.mark.parametrize(
    ("wrong", "diagnostic"),
    [
        ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"access_key_id": "nobody"}, "SignatureDoesNotMatch"),
        ({"bucket": "nowhere"}, "NoSuchBucket"),
    ],
)
async def test_an_operator_who_set_it_wrongly_reads_why_and_a_tenant_does_not(swift_server, name, wrong, diagnostic):
    store = S3Store(swift_server.settings(**wrong))
    for call in (store.check(), store.put(name, parts(DATA)), store.put(name, parts(LARGE)), whole(store, name)):
        with pytest.raises(InferBusError) as caught:
            await call
        assert caught.value.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE
        assert diagnostic in caught.value.diagnostic
        assert caught.value.message == "Files cannot be reached now; retry."


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_upload_that_ends_early_leaves_no_parts(swift_server, name, cancelled):
    store = S3Store(swift_server.settings())
    before = swift_server.held()

    async def broken() -> AsyncIterator[bytes]:
        async for part in parts(LARGE):
            yield part
        # Else there were nothing to remove.
        async with asyncio.timeout(60):
            while swift_server.held() < before + PART_BYTES:
                await asyncio.sleep(0.05)
        if cancelled:
            putting.cancel()
            await asyncio.Event().wait()
        raise ValueError

    putting = asyncio.create_task(store.put(name, broken()))
    with pytest.raises(asyncio.CancelledError if cancelled else ValueError):
        await putting
    async with asyncio.timeout(60):
        while swift_server.held() >= before + PART_BYTES:
            await asyncio.sleep(0.05)


async def test_a_prefix_keeps_to_its_part_of_the_bucket(swift_server, name):
    all_of_it, ours = S3Store(swift_server.settings()), S3Store(swift_server.settings(prefix="inferbus/files"))
    await ours.put(name, parts(DATA))
    assert await ours.names("") == [name]
    assert await all_of_it.names("inferbus/") == [f"inferbus/files/{name}"]
    assert await whole(ours, name) == DATA
    assert await ours.delete(name)


async def test_a_reader_may_be_slower_than_the_store_may_be_silent(swift_server, name):
    store = S3Store(swift_server.settings(silence="PT1S"))
    await store.put(name, parts(LARGE))
    got = b""
    async for part in store.get(name):
        if len(got) < 2 << 20:
            await asyncio.sleep(1.5)
        got += part
    assert got == LARGE


async def test_credentials_from_the_environment(swift_server, name, monkeypatch):
    known = swift_server.settings()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(known.access_key_id))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", known.secret_access_key.get_secret_value())
    store = S3Store(S3Settings(bucket="files", endpoint=known.endpoint))
    await store.put(name, parts(DATA))
    assert await whole(store, name) == DATA


def test_half_a_key_is_refused_and_a_secret_is_not_shown():
    with pytest.raises(ValidationError, match="together"):
        S3Settings(bucket="files", access_key_id="one")
    whole_key = S3Settings.model_validate({"bucket": "files", "access_key_id": "one", "secret_access_key": "hidden"})
    assert "hidden" not in repr(whole_key)

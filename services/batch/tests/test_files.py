"""Files over gRPC: whole or not at all, any range of them, seen by their tenant alone."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus.batch.v1.files_pb2 import (
    DeleteFileRequest,
    FileHead,
    GetFileRequest,
    ListFilesRequest,
    PutFileRequest,
    ReadFileRequest,
)
from inferbus_batch import content
from inferbus_batch.content import read
from inferbus_batch.files import FileLimits
from inferbus_batch.sweeping import Sweeper
from inferbus_bus.errors import StreamApiError
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import error_of

from services.batch.tests.conftest import file_room, messages

DATA = os.urandom(251_000)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SEGMENT_BYTES", 100_000)


def head(tenant: str = "acme", **more) -> FileHead:
    return FileHead(**{"tenant_id": tenant, "project_id": "one", "filename": "a.jsonl", "purpose": "batch", **more})


async def refused(call) -> InferBusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def test_what_is_put_is_found_listed_read_and_deleted(room):
    file = await room.put(DATA, head("cycle"))
    assert (file.size_bytes, file.purpose, file.filename) == (len(DATA), "batch", "a.jsonl")
    assert file.file_id.startswith("file-")
    assert len(file.file_id) == 29
    month = file.expire_time.ToMicroseconds() - file.create_time.ToMicroseconds()
    assert month == timedelta(days=30) // timedelta(microseconds=1)
    asked = {"tenant_id": "cycle", "project_id": "one", "file_id": file.file_id}
    assert (await room.api.GetFile(GetFileRequest(**asked))).file == file
    assert list((await room.api.ListFiles(ListFilesRequest(tenant_id="cycle"))).files) == [file]
    assert await room.read(file) == DATA
    await room.api.DeleteFile(DeleteFileRequest(**asked))
    for call in (room.api.GetFile(GetFileRequest(**asked)), room.api.DeleteFile(DeleteFileRequest(**asked))):
        assert (await refused(call)).reason == "file_not_found"
    assert not await left(room, file.file_id)


async def test_another_tenants_or_projects_file_is_not_there(room):
    file = await room.put(DATA, head("mine"))
    for tenant, project in (("yours", "one"), ("yours", ""), ("mine", "two")):
        asked = {"tenant_id": tenant, "project_id": project, "file_id": file.file_id}
        reading = room.api.ReadFile(ReadFileRequest(**asked))
        for call in (
            room.api.GetFile(GetFileRequest(**asked)), room.api.DeleteFile(DeleteFileRequest(**asked)), drain(reading),
        ):  # fmt: skip
            assert (await refused(call)).reason == "file_not_found"
        listed = await room.api.ListFiles(ListFilesRequest(tenant_id=tenant, project_id=project))
        assert not listed.files
    assert await room.read(file) == DATA
    assert (await refused(room.api.GetFile(GetFileRequest(file_id=file.file_id)))).param == "tenant_id"


async def test_pages_in_both_orders(room):
    files = [await room.put(b"x", head("pages", purpose=one)) for one in ("batch", "evals", "batch", "vision", "batch")]
    ids = [one.file_id for one in files]
    for ascending in (True, False):
        found, token = [], ""
        while True:
            asked = ListFilesRequest(tenant_id="pages", page_size=2, page_token=token, ascending=ascending)
            answer = await room.api.ListFiles(asked)
            found += [one.file_id for one in answer.files]
            token = answer.next_page_token
            if not token:
                break
        assert found == (ids if ascending else ids[::-1])
    listed = (await room.api.ListFiles(ListFilesRequest(tenant_id="pages", purpose="batch", ascending=True))).files
    assert [one.file_id for one in listed] == ids[::2]
    assert (await refused(room.api.ListFiles(ListFilesRequest(tenant_id="pages", page_token="no")))).param == "after"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tenant_id": ""}, "tenant_id"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\nb"}, "filename"),
        ({"expire_after": Duration(seconds=3599)}, "expires_after"),
        ({"expire_after": Duration(seconds=2592001)}, "expires_after"),
    ],
)
async def test_a_head_that_is_wrong(room, wrong, param):
    assert (await refused(room.put(b"x", head(**wrong)))).param == param


async def test_ranges(room):
    file = await room.put(DATA, head("ranges"))
    record = room.files.find("ranges", "", file.file_id)
    loop = asyncio.get_running_loop()

    async def of(offset: int, length: int) -> bytes:
        return b"".join([part async for part in read(room.store, record.segments, offset, length)])

    edges = st.sampled_from([0, 1, 99_999, 100_000, 100_001, 200_000, 250_999, 251_000, 251_001])
    places = edges | st.integers(0, 260_000)

    @settings(max_examples=40)
    @given(places, places)
    def holds(offset: int, length: int) -> None:
        got = asyncio.run_coroutine_threadsafe(of(offset, length), loop).result(60)
        assert got == DATA[offset : offset + length]

    await asyncio.to_thread(holds)
    assert await room.read(file, 99_990, 20) == DATA[99_990:100_010]
    assert await room.read(file, 200_001) == DATA[200_001:]


async def test_one_who_reads_a_file_that_is_deleted_is_told(room, monkeypatch):
    monkeypatch.setattr(content, "SEGMENT_BYTES", 2 << 20)
    data = os.urandom(12 << 20)
    file = await room.put(data, head("reader"), 1 << 20)
    reading = room.files.read(room.files.find("reader", "", file.file_id))
    got = [await anext(reading)]

    async def rest() -> None:
        async for part in reading:
            got.append(part)

    await room.api.DeleteFile(DeleteFileRequest(tenant_id="reader", file_id=file.file_id))
    with pytest.raises(InferBusError, match="file_not_found"):
        await asyncio.wait_for(rest(), 60)
    assert data.startswith(b"".join(got))


async def test_an_upload_that_is_cut_off_leaves_nothing(room):
    before = set(await objects(room))
    sent = asyncio.Event()

    async def broken() -> AsyncIterator[PutFileRequest]:
        async for one in messages(DATA, head("cut")):
            yield one
        sent.set()
        await asyncio.Event().wait()

    call = room.api.PutFile(broken())
    async with asyncio.timeout(60):
        await sent.wait()
        while set(await objects(room)) == before:
            await asyncio.sleep(0.02)
        call.cancel()
        while set(await objects(room)) != before:
            await asyncio.sleep(0.02)
    assert not (await room.api.ListFiles(ListFilesRequest(tenant_id="cut"))).files
    assert room.files.used("cut") == 0


async def test_a_file_that_is_too_large_and_a_quota(file_bus, room):
    async with file_room(file_bus.url, FileLimits(file_bytes=150_000, tenant_bytes=200_000)) as strict:
        assert (await refused(strict.put(DATA, head("strict")))).reason == "file_too_large"
        first = await strict.put(DATA[:150_000], head("strict"))
        assert (await refused(strict.put(DATA[:60_000], head("strict")))).reason == "file_quota_exceeded"
        await strict.put(DATA[:50_000], head("strict"))
        assert (await refused(strict.put(b"x", head("strict")))).reason == "file_quota_exceeded"
        await strict.put(DATA[:150_000], head("other"))
        await strict.files.delete("strict", "", first.file_id)
        await strict.put(DATA[:150_000], head("strict"))


async def test_what_is_over_and_what_nothing_names_is_swept(room):
    kept = await room.put(DATA, head("sweep"))
    over = room.files.new_record(head("sweep"), "file-over")
    over.segments.extend(await content.write(room.store, "file-over", one_part(DATA)))
    over.expire_time.CopyFrom(clock.timestamp(clock.now_us() - 1))
    await room.files.add(over)
    job, rubbish = f"job-batch_{'1' * 24}", f"file-{'a' * 24}"
    named = await content.write(room.store, job, one_part(DATA))
    await content.write(room.store, rubbish, one_part(DATA))
    await content.write(room.store, "of somebody else", one_part(DATA))
    following = True

    def sweeper(*unnamed: timedelta) -> Sweeper:
        return Sweeper(room.files, room.uploads, lambda: named, lambda: following, *unnamed)

    with pytest.raises(InferBusError, match="file_not_found"):
        room.files.find("sweep", "", "file-over")
    await sweeper().sweep()
    assert await left(room, rubbish)
    assert not await left(room, "file-over")
    # What others name is not known now.
    following = False
    await sweeper(timedelta(0)).sweep()
    assert await left(room, rubbish)
    following = True
    await sweeper(timedelta(0)).sweep()
    assert not await left(room, rubbish)
    assert len(await left(room, job)) == 3
    assert len(await left(room, "of somebody else")) == 3
    assert await room.read(kept) == DATA


async def test_memory_stays_flat(file_bus):
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.batch.tests.file_memory", file_bus.url, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    out, _ = await asyncio.wait_for(child.communicate(), 300)
    assert child.returncode == 0
    assert int(out) < 64 << 20


async def one_part(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def drain(answers) -> None:
    async for _ in answers:
        pass


async def objects(room) -> list[str]:
    return await left(room, "")


async def left(room, prefix: str) -> list[str]:
    """What can still be read."""
    found = []
    for name in await room.store.names(prefix):
        try:
            async for _ in room.store.get(name):
                pass
            found.append(name)
        except (InferBusError, StreamApiError):
            continue
    return found

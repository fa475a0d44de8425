"""Uploads over gRPC: parts in any order, put together once, by their own tenant."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest
from inferbus.batch.v1.files_pb2 import (
    CancelUploadRequest,
    CompleteUploadRequest,
    CreateUploadRequest,
    FileHead,
    PartHead,
    PutUploadPartRequest,
    Upload,
    UploadState,
)
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_batch import content, uploads
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import error_of

from services.batch.tests.conftest import FileRoom, file_room

DATA = os.urandom(251_000)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "SEGMENT_BYTES", 50_000)


async def create(room: FileRoom, tenant: str, size: int) -> Upload:
    head = FileHead(tenant_id=tenant, project_id="one", filename="a.jsonl", purpose="batch")
    return (await room.api.CreateUpload(CreateUploadRequest(head=head, size_bytes=size))).upload


async def put(room: FileRoom, upload: Upload, data: bytes, **other: str) -> str:
    named = {"tenant_id": upload.head.tenant_id, "project_id": "one", "upload_id": upload.upload_id, **other}

    async def parts() -> AsyncIterator[PutUploadPartRequest]:
        yield PutUploadPartRequest(head=PartHead(**named))
        for at in range(0, len(data), 30_000):
            yield PutUploadPartRequest(content=data[at : at + 30_000])

    return (await room.api.PutUploadPart(parts())).part_id


async def complete(room: FileRoom, upload: Upload, ids: list[str], md5: str = "", **other: str) -> Upload:
    named = {"tenant_id": upload.head.tenant_id, "project_id": "one", "upload_id": upload.upload_id, **other}
    return (await room.api.CompleteUpload(CompleteUploadRequest(**named, part_ids=ids, md5=md5), timeout=60)).upload


async def cancel(room: FileRoom, upload: Upload, **other: str) -> Upload:
    named = {"tenant_id": upload.head.tenant_id, "project_id": "one", "upload_id": upload.upload_id, **other}
    return (await room.api.CancelUpload(CancelUploadRequest(**named))).upload


async def refused(call) -> InferBusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_of(caught.value)


async def test_parts_that_come_at_once_make_the_file_in_the_given_order(room):
    upload = await create(room, "parts", len(DATA))
    pieces = [DATA[at : at + 30_000] for at in range(0, len(DATA), 30_000)]
    *ids, unused = await asyncio.gather(*(put(room, upload, one) for one in (*pieces, b"unused")))
    md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
    done = await complete(room, upload, ids, md5)
    assert done.state == UploadState.UPLOAD_STATE_COMPLETED
    assert done.file.size_bytes == len(DATA)
    assert await room.read(done.file) == DATA
    assert await complete(room, upload, ids, md5) == done
    assert (await refused(put(room, upload, b"late"))).reason == "upload_not_active"
    assert (await refused(cancel(room, upload))).reason == "upload_not_active"
    assert not await readable(room, f"{upload.upload_id}/{unused}/")
    await room.files.delete("parts", "", done.file.file_id)
    assert not (await complete(room, upload, ids)).HasField("file")


async def test_parts_through_two_services_at_once(file_bus, room):
    upload = await create(room, "two", 100)
    async with file_room(file_bus.url) as other:
        async with asyncio.timeout(60):
            while not seen(other, upload):
                await asyncio.sleep(0.02)
        pieces = [bytes([number]) * 10 for number in range(10)]
        both = (room, other)
        ids = await asyncio.gather(*(put(both[at % 2], upload, one) for at, one in enumerate(pieces)))
        async with asyncio.timeout(60):
            while len(room.uploads.find("two", "", upload.upload_id).parts) < 10:
                await asyncio.sleep(0.02)
        assert await room.read((await complete(room, upload, ids)).file) == b"".join(pieces)


async def test_one_that_was_cut_off_while_it_was_completed_is_completed_by_the_next_call(room, monkeypatch):
    upload = await create(room, "crash", 5)
    part = await put(room, upload, b"hello")

    async def dies(_record: object) -> None:
        raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "bus_unavailable", "Retry.")

    with monkeypatch.context() as crash:
        crash.setattr(room.files, "add", dies)
        assert (await refused(complete(room, upload, [part]))).reason == "bus_unavailable"
    assert (await refused(cancel(room, upload))).reason == "upload_not_active"
    assert await room.read((await complete(room, upload, [part])).file) == b"hello"


async def test_what_does_not_fit_is_refused_and_can_be_done_right(room):
    upload, other = await create(room, "wrong", 10), await create(room, "wrong", 10)
    first, second, foreign = await put(room, upload, b"hello"), await put(room, upload, b"world"), b"0123456789"
    stranger = await put(room, other, foreign)
    assert (await refused(complete(room, upload, [stranger]))).reason == "unknown_part"
    assert (await refused(complete(room, upload, [first, first]))).reason == "unknown_part"
    assert (await refused(complete(room, upload, [first]))).reason == "size_mismatch"
    assert (await refused(complete(room, upload, [first, second], "0" * 32))).reason == "checksum_mismatch"
    assert await room.read((await complete(room, upload, [second, first])).file) == b"worldhello"


async def test_another_tenants_or_projects_upload_is_not_there(room):
    upload = await create(room, "owner", 5)
    part = await put(room, upload, b"hello")
    for other in ({"tenant_id": "thief"}, {"project_id": "two"}):
        for call in (put(room, upload, b"x", **other), complete(room, upload, [part], **other),
                     cancel(room, upload, **other)):  # fmt: skip
            assert (await refused(call)).reason == "upload_not_found"
    assert (await complete(room, upload, [part])).file.tenant_id == "owner"


async def test_a_cancelled_one_leaves_nothing(room):
    upload = await create(room, "cancel", 5)
    await put(room, upload, b"hello")
    assert (await cancel(room, upload)).state == UploadState.UPLOAD_STATE_CANCELLED
    assert not await readable(room, upload.upload_id)
    assert (await refused(put(room, upload, b"late"))).reason == "upload_not_active"


async def test_sizes(room, monkeypatch):
    for size in (0, (8 << 30) + 1):
        assert (await refused(create(room, "sizes", size))).param == "bytes"
    monkeypatch.setattr(uploads, "MAX_PART_BYTES", 100_000)
    upload = await create(room, "sizes", 8 << 30)
    assert (await refused(put(room, upload, DATA))).reason == "part_too_large"
    assert (await refused(put(room, upload, b""))).param == "data"
    assert not await readable(room, upload.upload_id)


async def test_one_whose_hour_is_over(file_bus):
    async with file_room(file_bus.url, lifetime=timedelta(seconds=2)) as room:
        upload = await create(room, "hour", 5)
        parts = room.uploads.find("hour", "", upload.upload_id)
        await put(room, upload, b"hello")
        async with asyncio.timeout(60):
            while uploads.state_of(parts) == UploadState.UPLOAD_STATE_ACTIVE:
                await asyncio.sleep(0.05)
        assert (await refused(complete(room, upload, []))).reason == "upload_not_active"
        await room.uploads.clear()
        assert not await readable(room, upload.upload_id)


def seen(room: FileRoom, upload: Upload) -> bool:
    try:
        return bool(room.uploads.find(upload.head.tenant_id, "", upload.upload_id).upload_id)
    except InferBusError:
        return False


async def readable(room: FileRoom, prefix: str) -> list[str]:
    found = []
    for name in await room.store.names(prefix):
        try:
            async for _ in room.store.get(name):
                pass
            found.append(name)
        except InferBusError:
            continue
    return found

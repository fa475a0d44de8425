"""The files of this room over gRPC, on a real nats-server of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from inferbus.batch.v1.files_pb2 import File, FileHead, PutFileRequest, ReadFileRequest
from inferbus.batch.v1.files_pb2_grpc import FileServiceStub
from inferbus.bus.v1.batch_pb2 import FileRecord, UploadRecord
from inferbus_batch.file_servicer import SERVICE_NAME, add_file_service
from inferbus_batch.files import FileLimits, Files
from inferbus_batch.uploads import LIFETIME, Uploads
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_objects.store import BusStore
from inferbus_runtime import rpc
from inferbus_stack.nats import NatsServer


class FileRoom(NamedTuple):
    files: Files
    uploads: Uploads
    store: BusStore
    api: FileServiceStub

    async def put(self, data: bytes, head: FileHead, size: int = 100_000) -> File:
        return (await self.api.PutFile(messages(data, head, size))).file

    async def read(self, file: File, offset: int = 0, length: int = 0) -> bytes:
        asked = ReadFileRequest(tenant_id=file.tenant_id, file_id=file.file_id, offset=offset, length=length)
        return b"".join([part.content async for part in self.api.ReadFile(asked)])


async def messages(data: bytes, head: FileHead, size: int = 100_000) -> AsyncIterator[PutFileRequest]:
    yield PutFileRequest(head=head)
    for at in range(0, len(data), size):
        yield PutFileRequest(content=data[at : at + size])


@asynccontextmanager
async def file_room(
    url: str, limits: FileLimits | None = None, lifetime: timedelta = LIFETIME
) -> AsyncIterator[FileRoom]:
    async with connect(BusConfig(url, "batch")) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        store = BusStore(Objects(bus, publisher))
        records, coming = Registry(bus, "files", FileRecord), Registry(bus, "uploads", UploadRecord)
        await records.start()
        await coming.start()
        files = Files(records, store, limits)
        uploads = Uploads(coming, files, lifetime)

        def add(server: object) -> None:
            add_file_service(server, files, uploads)

        async with (
            rpc.serve("127.0.0.1:0", add, [SERVICE_NAME], None, None) as server,
            rpc.channel(server.address, None) as channel,
        ):
            yield FileRoom(files, uploads, store, FileServiceStub(channel))
        await records.stop()
        await coming.stop()


@pytest.fixture(scope="module")
async def file_bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    folder: Path = tmp_path_factory.mktemp("nats")
    async with NatsServer(folder) as server:
        async with connect(BusConfig(server.url, "admin")) as bus:
            await ensure_streams(bus)
        yield server


@pytest.fixture(scope="module")
async def room(file_bus: NatsServer) -> AsyncIterator[FileRoom]:
    async with file_room(file_bus.url) as opened:
        yield opened

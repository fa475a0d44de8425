"""A process of its own: a file through gRPC and back; prints by how many bytes its peak of memory has grown."""

import asyncio
import hashlib
import resource
import sys

from inferbus.batch.v1.files_pb2 import FileHead, PutFileRequest, ReadFileRequest

from services.batch.tests.conftest import file_room

PART = bytes(range(256)) * 2048


async def content(count: int):
    yield PutFileRequest(head=FileHead(tenant_id="memory", filename="a.jsonl", purpose="batch"))
    for _ in range(count):
        yield PutFileRequest(content=PART)


async def once(room, count: int) -> None:
    file = (await room.api.PutFile(content(count))).file
    digest, expected = hashlib.sha256(), hashlib.sha256()
    for _ in range(count):
        expected.update(PART)
    async for part in room.api.ReadFile(ReadFileRequest(tenant_id="memory", file_id=file.file_id)):
        digest.update(part.content)
    assert digest.digest() == expected.digest()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


async def main(url: str) -> None:
    async with file_room(url) as room:
        await once(room, 4)
        before = peak()
        await once(room, (200 << 20) // len(PART))
        print(peak() - before)


asyncio.run(main(sys.argv[1]))

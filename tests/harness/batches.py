"""Batches over gRPC, as an edge asks for them, against a stack whose processes may be away for a while."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx2 as httpx
from inferbus.batch.v1.batch_pb2 import GetJobRequest, Job, JobState, SubmitJobRequest
from inferbus.batch.v1.batch_pb2_grpc import BatchServiceStub
from inferbus.batch.v1.files_pb2 import FileHead, PutFileRequest, ReadFileRequest
from inferbus.batch.v1.files_pb2_grpc import FileServiceStub
from inferbus_runtime import clock, rpc

from tests.harness.local import Stack

ENDED = (
    JobState.JOB_STATE_COMPLETED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_EXPIRED, JobState.JOB_STATE_CANCELLED,
)  # fmt: skip
TENANT, PROJECT, KEY = "default", "default", "key_first"
_PART = 500_000


def chat_line(custom_id: str, model: str, tokens: int, content: str = "go") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


class Batches:
    """Of the stack's first tenant, at one of its batch services. What that does not answer is asked again."""

    def __init__(self, stack: Stack, service: str = "batch") -> None:
        self._stack = stack
        self._service = service
        self._token = (stack.home / "secrets" / "rpc-token").read_text().strip()

    async def put(self, data: bytes) -> str:
        """The id of a new input."""

        async def messages() -> AsyncIterator[PutFileRequest]:
            head = FileHead(tenant_id=TENANT, project_id=PROJECT, filename="in.jsonl", purpose="batch")
            yield PutFileRequest(head=head)
            for at in range(0, len(data), _PART):
                yield PutFileRequest(content=data[at : at + _PART])

        async with self._channel() as channel:
            return (await FileServiceStub(channel).PutFile(messages(), timeout=120)).file.file_id

    async def read(self, file_id: str) -> list[dict[str, Any]]:
        """The lines of a file; none for no file."""
        if not file_id:
            return []
        asked = ReadFileRequest(tenant_id=TENANT, file_id=file_id)
        async with self._channel() as channel:
            parts = [part.content async for part in FileServiceStub(channel).ReadFile(asked, timeout=120)]
        return [json.loads(line) for line in b"".join(parts).splitlines()]

    async def submit(self, lines: Iterable[bytes], seconds: float = 3600.0, **fields: Any) -> Job:
        request = SubmitJobRequest(
            tenant_id=TENANT, project_id=PROJECT, key_id=KEY, endpoint="/v1/chat/completions",
            input_file_id=await self.put(b"".join(lines)), **fields,
        )  # fmt: skip
        request.expire_time.CopyFrom(clock.timestamp(clock.now_us() + int(seconds * 1e6)))
        async with self._channel() as channel:
            return (await BatchServiceStub(channel).SubmitJob(request, timeout=60)).job

    async def get(self, job_id: str) -> Job:
        """However long it takes."""
        while True:
            try:
                async with self._channel() as channel:
                    asked = GetJobRequest(tenant_id=TENANT, job_id=job_id)
                    return (await BatchServiceStub(channel).GetJob(asked, timeout=10)).job
            except (grpc.aio.AioRpcError, KeyError, OSError, ValueError):
                await asyncio.sleep(0.2)

    async def until(self, job_id: str, condition: Callable[[Job], bool], timeout: float = 120.0) -> Job:
        async with asyncio.timeout(timeout):
            while True:
                job = await self.get(job_id)
                if condition(job):
                    return job
                await asyncio.sleep(0.1)

    async def ended(self, job_id: str, timeout: float = 240.0) -> Job:
        return await self.until(job_id, lambda job: job.state in ENDED, timeout)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[BatchServiceStub]:
        async with self._channel() as channel:
            yield BatchServiceStub(channel)

    @asynccontextmanager
    async def files(self) -> AsyncIterator[FileServiceStub]:
        async with self._channel() as channel:
            yield FileServiceStub(channel)

    def _channel(self) -> grpc.aio.Channel:
        return rpc.channel(self._stack.content["services"][self._service]["grpc"], self._token)


async def bills_of(stack: Stack, job_id: str, at_least: int) -> list[dict[str, Any]]:
    """What was billed of the job's requests, once that is at least so many."""
    store = stack.content["clickhouse"]
    query = (
        f"SELECT * FROM {store['database']}.bills WHERE tags['batch_id'] = '{job_id}' "
        "SETTINGS output_format_json_quote_64bit_integers = 0 FORMAT JSONEachRow"
    )
    headers = {"X-ClickHouse-User": store["user"], "X-ClickHouse-Key": store["password"]}
    async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(120):
        while True:
            answer = await http.post(store["url"], content=query, headers=headers)
            answer.raise_for_status()
            lines = answer.text.splitlines()
            if len(lines) >= at_least:
                return [httpx.Response(200, content=line).json() for line in lines]
            await asyncio.sleep(0.5)

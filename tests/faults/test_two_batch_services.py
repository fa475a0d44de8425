"""Two batch services: each knows at once what the other was told, and goes on with its jobs when it is gone."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import httpx2 as httpx
import pytest
from inferbus.batch.v1.batch_pb2 import CancelJobRequest, GetJobRequest, JobState, SubmitJobRequest
from inferbus.batch.v1.files_pb2 import (
    CompleteUploadRequest,
    CreateUploadRequest,
    FileHead,
    GetFileRequest,
    PartHead,
    PutUploadPartRequest,
)
from inferbus.batch.v1.files_pb2_grpc import FileServiceStub

from tests.harness.batches import KEY, PROJECT, TENANT, Batches, bills_of, chat_line
from tests.harness.local import Stack, running

JOBS, LINES, TOKENS = 6, 200, 20
OF = {"tenant_id": TENANT, "project_id": PROJECT}


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "100ms", "INFERBUS_WORKER_CAPACITY": "32"}
    home = tmp_path_factory.mktemp("two") / "home"
    async with running(home, "synthetic", "--batches", "2", "--no-embeddings", variables=variables) as one:
        yield one


async def put_part(files: FileServiceStub, upload_id: str, data: bytes) -> str:
    async def messages() -> AsyncIterator[PutUploadPartRequest]:
        yield PutUploadPartRequest(head=PartHead(**OF, upload_id=upload_id))
        yield PutUploadPartRequest(content=data)

    return (await files.PutUploadPart(messages(), timeout=30)).part_id


@pytest.mark.timeout(180)
async def test_what_one_was_told_the_other_knows_at_once(stack: Stack) -> None:
    """Uploads in parts, files and jobs, made at one and asked for at the other with nothing in between."""
    one, other = Batches(stack, "batch"), Batches(stack, "batch-1")
    head = FileHead(**OF, filename="in.jsonl", purpose="batch")
    async with one.files() as here, other.files() as there, one.call() as asking, other.call() as jobs:
        for number in range(20):
            parts = [chat_line(f"{number}-{part}", "synthetic", 1) for part in range(2)]
            size = sum(map(len, parts))
            upload = (await here.CreateUpload(CreateUploadRequest(head=head, size_bytes=size))).upload
            ids = [
                await put_part(files, upload.upload_id, data) for files, data in zip((there, here), parts, strict=True)
            ]
            asked = CompleteUploadRequest(**OF, upload_id=upload.upload_id, part_ids=ids)
            made = (await there.CompleteUpload(asked)).upload.file
            found = await here.GetFile(GetFileRequest(**OF, file_id=made.file_id))
            assert found.file.size_bytes == size
            submit = SubmitJobRequest(**OF, key_id=KEY, endpoint="/v1/chat/completions", input_file_id=await one.put(
                b"".join(parts)
            ))  # fmt: skip
            job = (await jobs.SubmitJob(submit)).job
            assert (await asking.GetJob(GetJobRequest(**OF, job_id=job.job_id))).job.job_id == job.job_id
            await asking.CancelJob(CancelJobRequest(**OF, job_id=job.job_id))
        for unknown in ("batch_none", "batch_" + "x" * 10_000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asking.GetJob(GetJobRequest(**OF, job_id=unknown))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.timeout(300)
async def test_when_one_is_gone_the_other_goes_on_with_its_jobs_and_answers_for_it(stack: Stack) -> None:
    """Killed, and not started again: by what is stored alone, and over the same HTTP API."""
    batches, other = Batches(stack, "batch"), Batches(stack, "batch-1")
    jobs = [
        await batches.submit(chat_line(f"line-{number}", "synthetic", TOKENS) for number in range(LINES))
        for _ in range(JOBS)
    ]
    for job in jobs:
        await batches.until(job.job_id, lambda one: one.line_count > 0)
    await batches.until(jobs[0].job_id, lambda one: one.completed_line_count > 0)
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with stack.nothing_restarts():
        stack.kill("batch")
        async with httpx.AsyncClient(base_url=stack.base_url, headers=headers, timeout=60) as http:
            async with asyncio.timeout(30):
                while (await http.get(f"/batches/{jobs[0].job_id}")).status_code == 503:
                    await asyncio.sleep(0.1)
            data = chat_line("late", "synthetic", 1)
            sent = await http.post("/files", data={"purpose": "batch"}, files={"file": ("late.jsonl", data)})
            sent.raise_for_status()
            read = await http.get(f"/files/{sent.json()['id']}/content")
            assert read.content == data
        for job in jobs:
            ended = await other.ended(job.job_id, 200)
            assert (ended.state, ended.completed_line_count) == (JobState.JOB_STATE_COMPLETED, LINES)
            output = await other.read(ended.output_file_id)
            assert sorted(line["custom_id"] for line in output) == sorted(f"line-{number}" for number in range(LINES))
        for job in jobs:
            assert len(await bills_of(stack, job.job_id, LINES)) == LINES, "a line was generated again"

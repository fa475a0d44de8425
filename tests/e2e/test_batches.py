"""Batches on a whole stack: what their owner sees of them, however they end."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import grpc
import pytest
from inferbus.batch.v1.batch_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    JobState,
    ListJobsRequest,
    SubmitJobRequest,
    ValidateFileRequest,
    WatchJobRequest,
)

from tests.harness.batches import KEY, PROJECT, TENANT, Batches, bills_of, chat_line
from tests.harness.faulty_lines import faulty_file
from tests.harness.local import Stack, running

TOKENS = 20
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def stack_of(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms", "INFERBUS_WORKER_CAPACITY": "16"}
    home = tmp_path_factory.mktemp("batches") / "home"
    async with running(home, "synthetic", variables=variables) as stack:
        yield stack


@pytest.fixture(scope="module")
def batches(stack_of: Stack) -> Batches:
    return Batches(stack_of)


def lines(count: int, tokens: int = TOKENS) -> list[bytes]:
    return [chat_line(f"line-{number}", "synthetic", tokens) for number in range(count)]


async def all_once(batches: Batches, job, count: int) -> tuple[list[dict], list[dict]]:
    """The lines of output and errors, which hold each of them once."""
    output, errors = await batches.read(job.output_file_id), await batches.read(job.error_file_id)
    names = [line["custom_id"] for line in (*output, *errors)]
    assert sorted(names) == sorted(f"line-{number}" for number in range(count))
    assert (job.completed_line_count, job.failed_line_count) == (len(output), len(errors))
    return output, errors


@pytest.mark.timeout(300)
async def test_a_batch_completes_and_its_watcher_is_told(stack_of: Stack, batches: Batches) -> None:
    job = await batches.submit(lines(100), metadata={"team": "search"})
    assert (job.state, job.line_count, dict(job.metadata)) == (JobState.JOB_STATE_VALIDATING, 0, {"team": "search"})
    told = []
    async with batches.call() as api, asyncio.timeout(120):
        async for one in api.WatchJob(WatchJobRequest(tenant_id=TENANT, job_id=job.job_id)):
            told.append(one.job)
    ended = told[-1]
    assert ended.state == JobState.JOB_STATE_COMPLETED
    counts = [one.completed_line_count for one in told]
    assert counts == sorted(counts)
    output, errors = await all_once(batches, ended, 100)
    assert errors == []
    assert ended.usage.output_tokens == 100 * TOKENS
    assert sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in output) == ended.usage.input_tokens
    assert {line["response"]["status_code"] for line in output} == {200}
    assert ended.model == "synthetic"
    bills = await bills_of(stack_of, ended.job_id, 100)
    # What the stack's example prices say of each line, at half the price.
    line_cost = (Decimal(ended.usage.input_tokens // 100) * Decimal("0.10") + TOKENS * Decimal("0.40")) / 2_000_000
    assert {Decimal(str(bill["cost"])) for bill in bills} == {line_cost}


@pytest.mark.timeout(300)
async def test_cancelled_it_keeps_what_is_done(batches: Batches) -> None:
    job = await batches.submit(lines(2000))
    await batches.until(job.job_id, lambda one: one.completed_line_count > 0)
    async with batches.call() as api:
        asked = CancelJobRequest(tenant_id=TENANT, job_id=job.job_id)
        assert (await api.CancelJob(asked)).job.state == JobState.JOB_STATE_CANCELLING
        ended = await batches.ended(job.job_id)
        assert ended.state == JobState.JOB_STATE_CANCELLED
        assert (await api.CancelJob(asked)).job.state == JobState.JOB_STATE_CANCELLED
    output, errors = await all_once(batches, ended, 2000)
    assert output
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


@pytest.mark.timeout(300)
async def test_out_of_time_it_gives_what_is_done(batches: Batches) -> None:
    job = await batches.submit(lines(2000), seconds=15)
    ended = await batches.ended(job.job_id)
    assert ended.state == JobState.JOB_STATE_EXPIRED
    output, errors = await all_once(batches, ended, 2000)
    assert output
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}


@pytest.mark.timeout(300)
async def test_of_a_file_with_faults_each_is_told_and_nothing_runs(batches: Batches) -> None:
    faulty = [
        *lines(3),
        b"{not json}\n",
        chat_line("line-1", "synthetic", 5),
        chat_line("other", "unknown-model", 5),
        b'{"custom_id": "\xff"}\n',
        b'{"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": {}}\n',
    ]
    codes = [
        (4, "invalid_json_line"), (5, "duplicate_custom_id"), (6, "model_not_found"), (7, "invalid_encoding"),
        (8, "mismatched_endpoint"),
    ]  # fmt: skip
    job = await batches.ended((await batches.submit(faulty)).job_id)
    assert job.state == JobState.JOB_STATE_FAILED
    assert [(one.line, one.code) for one in job.faults] == codes
    assert job.fault_count == len(codes)
    assert (job.output_file_id, job.error_file_id, job.usage.input_tokens) == ("", "", 0)
    async with batches.call() as api:
        asked = ValidateFileRequest(
            tenant_id=TENANT, project_id=PROJECT, key_id=KEY, endpoint=CHAT, input_file_id=job.input_file_id
        )
        said = await api.ValidateFile(asked, timeout=60)
    assert [(one.line, one.code) for one in said.faults] == codes


@pytest.mark.timeout(300)
async def test_a_thousand_different_faults_are_told_each_with_its_line_and_nothing_is_charged(
    stack_of: Stack, batches: Batches
) -> None:
    made = faulty_file("synthetic")
    job = await batches.ended((await batches.submit(made.lines)).job_id)
    assert job.state == JobState.JOB_STATE_FAILED
    assert [(one.line, one.code) for one in job.faults] == made.faults
    assert job.fault_count == len(made.faults) == 1000
    assert len({(one.code, one.message, one.param, one.line) for one in job.faults}) == 1000
    assert (job.output_file_id, job.error_file_id, job.completed_line_count) == ("", "", 0)
    # What runs after it is billed, so it would be, too.
    after = await batches.ended((await batches.submit(lines(3))).job_id)
    assert len(await bills_of(stack_of, after.job_id, 3)) == 3
    assert await bills_of(stack_of, job.job_id, 0) == []


@pytest.mark.timeout(300)
async def test_a_line_that_fails_is_told_beside_the_others(batches: Batches) -> None:
    # More than its context holds, behind so many longer ones which fit that it was not counted.
    wrong = chat_line("line-1", "synthetic", 5, content="w " * 33_000)
    longer = [chat_line(f"line-{number}", "synthetic", 5, content="w" * 70_000) for number in range(2, 60)]
    job = await batches.ended((await batches.submit([*lines(1), wrong, *longer])).job_id)
    assert job.state == JobState.JOB_STATE_COMPLETED
    _, errors = await all_once(batches, job, 60)
    assert [line["response"]["status_code"] for line in errors] == [400]
    assert errors[0]["response"]["body"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.timeout(120)
async def test_asked_again_under_its_id_it_is_the_same_batch_and_another_tenant_sees_none(batches: Batches) -> None:
    job = await batches.submit(lines(5), request_id="once")
    async with batches.call() as api:
        asked = SubmitJobRequest(
            request_id="once", tenant_id=TENANT, project_id=PROJECT, key_id=KEY, endpoint=CHAT,
            input_file_id=job.input_file_id,
        )  # fmt: skip
        assert (await api.SubmitJob(asked)).job.job_id == job.job_id
        asked.metadata["other"] = "thing"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await api.SubmitJob(asked)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        for tenant, project in (("operator", ""), (TENANT, "another")):
            for call, request in (
                (api.GetJob, GetJobRequest(tenant_id=tenant, project_id=project, job_id=job.job_id)),
                (api.CancelJob, CancelJobRequest(tenant_id=tenant, project_id=project, job_id=job.job_id)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(request)
                assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            stolen = SubmitJobRequest(
                tenant_id=tenant, project_id=project, key_id=KEY, endpoint=CHAT, input_file_id=job.input_file_id
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await api.SubmitJob(stolen)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert not (await api.ListJobs(ListJobsRequest(tenant_id="operator"))).jobs
        first = await api.ListJobs(ListJobsRequest(tenant_id=TENANT, page_size=1))
        assert [one.job_id for one in first.jobs] == [job.job_id]
    await batches.ended(job.job_id)

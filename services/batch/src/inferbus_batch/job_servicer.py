"""The gRPC API of jobs. Who may ask is the edge's business; what they may see is said in each call."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from inferbus.batch.v1 import batch_pb2_grpc
from inferbus.batch.v1.batch_pb2 import (
    CancelJobRequest,
    CancelJobResponse,
    GetJobRequest,
    GetJobResponse,
    GetWebhookSecretRequest,
    GetWebhookSecretResponse,
    Job,
    JobState,
    JobUsage,
    LineFault,
    ListJobsRequest,
    ListJobsResponse,
    SubmitJobRequest,
    SubmitJobResponse,
    ValidateFileRequest,
    ValidateFileResponse,
    WatchJobRequest,
    WatchJobResponse,
)
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid
from inferbus_webhooks.signing import key_for, written

from inferbus_batch import inputs
from inferbus_batch.core.lines import ENDPOINTS
from inferbus_batch.files import Files, new_id
from inferbus_batch.jobs import Jobs
from inferbus_batch.judging import Judge
from inferbus_batch.keys import Keys

SERVICE_NAME = "inferbus.batch.v1.BatchService"
_STATES = {
    State.JOB_RECORD_STATE_VALIDATING: JobState.JOB_STATE_VALIDATING,
    State.JOB_RECORD_STATE_ACTIVE: JobState.JOB_STATE_ACTIVE,
    State.JOB_RECORD_STATE_FINALIZING: JobState.JOB_STATE_FINALIZING,
    State.JOB_RECORD_STATE_CANCELLING: JobState.JOB_STATE_CANCELLING,
    State.JOB_RECORD_STATE_COMPLETED: JobState.JOB_STATE_COMPLETED,
    State.JOB_RECORD_STATE_CANCELLED: JobState.JOB_STATE_CANCELLED,
    State.JOB_RECORD_STATE_FAILED: JobState.JOB_STATE_FAILED,
    State.JOB_RECORD_STATE_EXPIRED: JobState.JOB_STATE_EXPIRED,
}
_TIMES = ("create_time", "expire_time", "end_time", "active_time", "finalize_time", "cancel_time")


class JobServicer(batch_pb2_grpc.BatchServiceServicer):
    """What it answers are InferBusErrors of :class:`Jobs` and :class:`Files`. ``scratch``: inputs lie there while they
    are validated."""

    def __init__(
        self, jobs: Jobs, files: Files, judge: Judge, keys: Keys, scratch: Path, webhook_secret: bytes | None
    ) -> None:
        self._jobs = jobs
        self._files = files
        self._judge = judge
        self._keys = keys
        self._scratch = scratch
        self._webhook_secret = webhook_secret

    async def SubmitJob(self, request: SubmitJobRequest, context: Any) -> SubmitJobResponse:  # noqa: N802 - gRPC's name
        return SubmitJobResponse(job=job_of(await self._jobs.submit(request)))

    async def GetJob(self, request: GetJobRequest, context: Any) -> GetJobResponse:  # noqa: N802
        _named(request)
        return GetJobResponse(job=job_of(await self._job(request)))

    async def ListJobs(self, request: ListJobsRequest, context: Any) -> ListJobsResponse:  # noqa: N802
        _named(request)
        found, following = self._jobs.page(request.tenant_id, request.project_id, request.page_size, request.page_token)
        return ListJobsResponse(jobs=map(job_of, found), next_page_token=following)

    async def CancelJob(self, request: CancelJobRequest, context: Any) -> CancelJobResponse:  # noqa: N802
        _named(request)
        await self._job(request)
        record = await self._jobs.cancel(request.tenant_id, request.project_id, request.job_id)
        return CancelJobResponse(job=job_of(record))

    async def WatchJob(  # noqa: N802
        self, request: WatchJobRequest, context: Any
    ) -> AsyncGenerator[WatchJobResponse, None]:
        _named(request)
        await self._job(request)
        async with aclosing(self._jobs.watch(request.tenant_id, request.project_id, request.job_id)) as records:
            async for record in records:
                yield WatchJobResponse(job=job_of(record))

    async def ValidateFile(self, request: ValidateFileRequest, context: Any) -> ValidateFileResponse:  # noqa: N802
        _named(request)
        if request.endpoint not in ENDPOINTS:
            raise invalid(f"'endpoint' is one of {', '.join(sorted(ENDPOINTS))}.", param="endpoint")
        key = self._keys.living(request.tenant_id, request.key_id)
        if key is None:
            raise invalid("Name a key of the tenant.", param="key_id")
        found = await self._files.look_up(request.tenant_id, request.project_id, request.input_file_id)
        folder = self._scratch / new_id("validate-")
        folder.mkdir(mode=0o700)
        try:
            await inputs.fetch(self._files.read(found), folder / inputs.SOURCE)
            report = await self._judge.judge(request.endpoint, key, folder / inputs.SOURCE, folder / inputs.INDEX)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        faults = [
            LineFault(line=one.line, code=one.code, message=one.message, param=one.param) for one in report.faults
        ]
        cost = "" if report.highest_cost is None else f"{report.highest_cost:f}"
        return ValidateFileResponse(
            line_count=report.lines, faults=faults, fault_count=report.fault_count, highest_cost=cost,
            currency=report.currency if cost else "",
        )  # fmt: skip

    async def GetWebhookSecret(  # noqa: N802
        self, request: GetWebhookSecretRequest, context: Any
    ) -> GetWebhookSecretResponse:
        _named(request)
        if self._webhook_secret is None:
            message = "Webhooks are not set up here; ask your operator."
            raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "no_webhooks", message)
        key = key_for(self._webhook_secret, request.tenant_id, request.project_id)
        return GetWebhookSecretResponse(secret=written(key))

    async def _job(self, request: GetJobRequest | CancelJobRequest | WatchJobRequest) -> JobRecord:
        return await self._jobs.look_up(request.tenant_id, request.project_id, request.job_id)


def add_job_service(
    server: Any, jobs: Jobs, files: Files, judge: Judge, keys: Keys, scratch: Path, webhook_secret: bytes | None = None
) -> None:
    servicer = JobServicer(jobs, files, judge, keys, scratch, webhook_secret)
    batch_pb2_grpc.add_BatchServiceServicer_to_server(servicer, server)


def job_of(record: JobRecord) -> Job:
    """As its tenant sees it."""
    job = Job(
        job_id=record.job_id, tenant_id=record.tenant_id, project_id=record.project_id, state=_STATES[record.state],
        input_file_id=record.input_file_id, output_file_id=record.output_file_id, error_file_id=record.error_file_id,
        line_count=record.lines, completed_line_count=record.completed_lines, failed_line_count=record.failed_lines,
        endpoint=record.endpoint, metadata=record.metadata, fault_count=record.fault_count, model=record.model,
        usage=JobUsage(
            input_tokens=record.input_tokens, cached_input_tokens=record.cached_input_tokens,
            output_tokens=record.output_tokens, reasoning_tokens=record.reasoning_tokens,
        ),
        faults=[
            LineFault(line=one.line, code=one.code, message=one.message, param=one.param) for one in record.faults
        ],
    )  # fmt: skip
    for field in _TIMES:
        time = getattr(record, field)
        if time.seconds:
            getattr(job, field).CopyFrom(time)
    return job


def _named(request: Any) -> None:
    if not request.tenant_id:
        raise invalid("Name the tenant.", param="tenant_id")

"""Jobs of what came straight over the queue: submitted so that doing it once more, here or after a crash, is the same
job."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import FileRecord, JobRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.queue_messages import AskedJob
from inferbus_batch.core.results import EXPIRED
from inferbus_batch.files import Files
from inferbus_batch.jobs import Jobs, Queued

log = logging.getLogger(__name__)
_US = 1_000_000
_AGAIN_SECONDS = 1.0


class Place(NamedTuple):
    """Where a message stands on JOBS, and since when (Unix microseconds)."""

    sequence: int
    stored_us: int

    def __str__(self) -> str:
        # A stream that was made anew counts from 1 again.
        return f"{self.sequence}-{self.stored_us}"


class Together(NamedTuple):
    """What single requests of one job have in common. ``subject``: of all their results, or with ``.*`` one each.
    ``minute``: in which they came, so that nobody's time is cut short by somebody else's."""

    tenant_id: str
    project_id: str
    key_id: str
    url: str
    model: str
    window_s: int
    subject: str
    minute: int


class TakenError(Exception):
    """Some of it is in another job already, by whoever had the lease before: ``lines``, with their ends."""

    def __init__(self, lines: list[bytes]) -> None:
        super().__init__(f"{len(lines)} lines")
        self.lines = lines


class QueueJobs:
    def __init__(self, jobs: Jobs, files: Files) -> None:
        self._jobs = jobs
        self._files = files

    async def submit(self, key: KeyRecord, asked: AskedJob, place: Place) -> None:
        """Returns when it is a job. Raises like :meth:`Jobs.submit`, but waits while something is away; EXPIRED."""
        request = SubmitJobRequest(
            request_id=f"queue:{asked.to.name or place}", tenant_id=key.tenant_id, project_id=key.project_id,
            key_id=key.key_id, endpoint=asked.endpoint, input_file_id=asked.input_file_id, metadata=asked.metadata,
            webhook_url=asked.webhook_url, expire_time=clock.timestamp(place.stored_us + asked.window_s * _US),
        )  # fmt: skip
        if asked.output_expire_after is not None:
            request.output_expire_after.CopyFrom(Duration(seconds=int(asked.output_expire_after.total_seconds())))
        await self._submit(request, Queued(asked.to.subject))

    async def submit_lines(self, of: Together, lines: Sequence[tuple[Place, bytes]]) -> None:
        """Returns when they are a job. Raises like :meth:`submit` and :meth:`Files.put`; TakenError."""
        lines = sorted(lines)
        first, last = lines[0][0], lines[-1][0]
        expire_us = min(place.stored_us for place, _ in lines) + of.window_s * _US
        found = await self._put(of, first, [line for _, line in lines])
        request = SubmitJobRequest(
            # Whoever comes to the same first line after a crash is told that there is such a job.
            request_id=f"queue:{first}", tenant_id=of.tenant_id, project_id=of.project_id, key_id=of.key_id,
            endpoint=of.url, input_file_id=found.file_id, expire_time=clock.timestamp(expire_us),
        )  # fmt: skip
        try:
            await self._submit(request, Queued(of.subject, first.sequence, last.sequence))
        except InferBusError as error:
            await self._remove(found)
            before = self._jobs.submitted(of.tenant_id, of.project_id, request.request_id)
            if error.reason == "idempotency_mismatch" and before is not None:
                raise TakenError(await self.lines(before)) from error
            raise

    async def lines(self, record: JobRecord) -> list[bytes]:
        """The input of a job of single requests, with line ends. Raises InferBusError NOT_FOUND, UNAVAILABLE."""
        found = await self._files.look_up(record.tenant_id, record.project_id, record.input_file_id)
        return b"".join([part async for part in self._files.read(found)]).splitlines(keepends=True)

    async def _put(self, of: Together, first: Place, lines: Iterable[bytes]) -> FileRecord:
        head = FileHead(
            tenant_id=of.tenant_id, project_id=of.project_id, purpose="batch", filename=f"queue_{first.sequence}.jsonl"
        )
        while True:
            try:
                return await self._files.put(head, _each(lines))
            except InferBusError as error:
                await _wait_or_raise(error)

    async def _submit(self, request: SubmitJobRequest, queued: Queued) -> None:
        while True:
            if clock.unix_us(request.expire_time) <= clock.now_us():
                raise EXPIRED
            try:
                await self._jobs.submit(request, queued)
            except InferBusError as error:
                await _wait_or_raise(error)
            else:
                return

    async def _remove(self, found: FileRecord) -> None:
        try:
            await self._files.remove(found)
        except InferBusError as error:
            log.warning("the input of no job stays until its end", extra={"file": found.file_id, "error": str(error)})


async def _wait_or_raise(error: InferBusError) -> None:
    if error.error_class != ErrorClass.ERROR_CLASS_UNAVAILABLE:
        raise error
    log.info("the queue waits", extra={"error": str(error)})
    await asyncio.sleep(_AGAIN_SECONDS)


async def _each(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line

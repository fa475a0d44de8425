"""How a job that came straight over the queue has ended: its result, or that of its lines if none of them ran.

Whoever holds the job's shard tells it, and notes that in its record.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable

import orjson
from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Publisher
from inferbus_dialect.batches import batch_object
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.job_states import ENDED
from inferbus_batch.core.queue_messages import error_of_fault, told_of_line
from inferbus_batch.core.results import CANCELLED, EXPIRED
from inferbus_batch.files import Files
from inferbus_batch.job_servicer import job_of
from inferbus_batch.jobs import Jobs, Queued
from inferbus_batch.telling_results import Results, ResultTeller

log = logging.getLogger(__name__)
_LOOK_SECONDS = 5.0
# What may be different later: it is tried again.
_LATER = (ErrorClass.ERROR_CLASS_UNAVAILABLE, ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED)


class EndTeller:
    """``holds``: whether a shard is this process's now."""

    def __init__(self, jobs: Jobs, files: Files, publisher: Publisher, holds: Callable[[int], bool]) -> None:
        self._jobs = jobs
        self._files = files
        self._results = Results(publisher)
        self._holds = holds
        self._due: dict[tuple[str, str], JobRecord] = {}
        self._wake = asyncio.Event()
        jobs.on_change(self._changed)
        for record in jobs.ended():
            self._changed(record)

    async def run(self) -> None:
        """For ever."""
        while True:
            self._wake.clear()
            for key, record in list(self._due.items()):
                if self._holds(record.shard) and self._due.get(key) is record:
                    await self._try(record)
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _changed(self, record: JobRecord) -> None:
        key = record.tenant_id, record.job_id
        if _is_due(record):
            self._due[key] = record
            self._wake.set()
        else:
            self._due.pop(key, None)

    async def _try(self, record: JobRecord) -> None:
        try:
            if record.queue_last:
                await self._tell_lines(record)
            else:
                said = orjson.dumps(batch_object(job_of(record)))
                await self._results.tell(record.result_subject, said, f"{record.job_id}-end")
            await self._jobs.change(record, _told)
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_NOT_FOUND:
                self._due.pop((record.tenant_id, record.job_id), None)  # its record or its input is gone
            log.warning("the end of a job is told later", extra={"job_id": record.job_id, "error": str(error)})
        except Exception:
            log.exception("the end of a job is told later: a fault of ours", extra={"job_id": record.job_id})

    async def _tell_lines(self, record: JobRecord) -> None:
        """None of them has run. If some had faults, the others are tried again as a job of their own."""
        teller = ResultTeller(record, self._results)
        lines = await self._lines(record)
        names = [told_of_line(line) for line in lines]
        if record.state == State.JOB_RECORD_STATE_CANCELLED:
            await teller.refuse(names, CANCELLED)
            return
        if record.state == State.JOB_RECORD_STATE_EXPIRED:
            await teller.refuse(names, EXPIRED)
            return
        rest = dict(zip(names, lines, strict=True))
        for fault in record.faults:
            at_fault = names if fault.line == 0 else names[fault.line - 1 : fault.line]
            await teller.refuse(at_fault, error_of_fault(fault.code, fault.message, fault.param))
            for name in at_fault:
                rest.pop(name, None)
        if rest:
            await self._again(record, teller, rest.keys(), rest.values())

    async def _again(
        self, record: JobRecord, teller: ResultTeller, names: Iterable[str], lines: Iterable[bytes]
    ) -> None:
        head = FileHead(
            tenant_id=record.tenant_id, project_id=record.project_id, purpose="batch",
            filename=f"queue_{record.queue_first}_again.jsonl",
        )  # fmt: skip
        request_id = f"queue-again:{record.job_id}"
        made = self._jobs.submitted(record.tenant_id, record.project_id, request_id)
        if made is not None:
            return
        found = await self._files.put(head, _each(lines))
        request = SubmitJobRequest(
            request_id=request_id, tenant_id=record.tenant_id, project_id=record.project_id, key_id=record.key_id,
            endpoint=record.endpoint, input_file_id=found.file_id, expire_time=record.expire_time,
        )  # fmt: skip
        try:
            await self._jobs.submit(request, Queued(record.result_subject, record.queue_first, record.queue_last))
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE:
                raise  # it may have been submitted, and its input be needed
            await self._files.remove(found)
            if error.error_class in _LATER:
                raise
            over = clock.unix_us(record.expire_time) <= clock.now_us()
            await teller.refuse(names, EXPIRED if over else error)

    async def _lines(self, record: JobRecord) -> list[bytes]:
        found = await self._files.look_up(record.tenant_id, record.project_id, record.input_file_id)
        parts = [part async for part in self._files.read(found)]
        return b"".join(parts).splitlines(keepends=True)


def _is_due(record: JobRecord) -> bool:
    """Of lines that ran whoever ran them has told all."""
    if record.state not in ENDED or record.HasField("result_told_time"):
        return False
    return not record.HasField("active_time") if record.queue_last else bool(record.result_subject)


def _told(record: JobRecord) -> None:
    record.result_told_time.CopyFrom(clock.timestamp(clock.now_us()))


async def _each(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line

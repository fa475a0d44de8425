"""One job from its submission to its end, by whoever holds its shard. What is stored says where to go on."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from inferbus.bus.v1.batch_pb2 import FileRecord, JobCheckpoint, JobFault, JobRecord, Segment
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.errors import StreamApiError
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch import content, inputs
from inferbus_batch.asking import Asking
from inferbus_batch.core.job_states import ENDED
from inferbus_batch.core.lines import Fault
from inferbus_batch.folding import ShardLog
from inferbus_batch.inputs import Input
from inferbus_batch.job_lines import JobLines
from inferbus_batch.keeping import Keeping, LostError, begin, job_prefix
from inferbus_batch.parts import Parts
from inferbus_batch.validating import Report

log = logging.getLogger(__name__)
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
_READ_BYTES = 1 << 20


class JobRun:
    """Run it while the shard is held."""

    def __init__(self, parts: Parts, record: JobRecord, log_: ShardLog) -> None:
        self._parts = parts
        self._record = record
        self._log = log_
        self._name = f"{record.tenant_id}/{record.job_id}"
        self._lines: JobLines | None = None

    async def run(self) -> None:
        """Returns when the job has ended."""
        pause = _PAUSE_SECONDS
        while True:
            folder = self._parts.scratch / self._record.job_id
            try:
                folder.mkdir(mode=0o700)
                await self._step(folder)
                return
            except LostError:
                # Another runner has it, and then we are about to be told that the shard is his; or a write of ours that
                # was given up was stored after all.
                log.info("a job was changed meanwhile", extra={"job_id": self._record.job_id})
            except (InferBusError, StreamApiError, OSError, TimeoutError) as error:
                log.warning("a job goes on later", extra={"job_id": self._record.job_id, "error": repr(error)})
            except Exception:
                log.exception("a job goes on later: a fault of ours", extra={"job_id": self._record.job_id})
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def wake(self) -> None:
        """Its record has changed."""
        if self._lines is not None:
            self._lines.wake()

    async def _step(self, folder: Path) -> None:
        record = self._find()
        if record is None or record.state in ENDED:
            return
        if record.state == State.JOB_RECORD_STATE_VALIDATING:
            if not await self._validate(record, folder):
                return
        else:
            await self._fetch(record, folder)
        found = await self._parts.checkpoints.get(self._name)
        if found is None:
            record = self._find()
            if record is None or record.state in ENDED:
                return
            raise InferBusError(
                ErrorClass.ERROR_CLASS_UNAVAILABLE, "no_checkpoint", "The batch goes on later.", diagnostic=self._name
            )
        made, revision = found
        if not (folder / inputs.INDEX).exists():
            await self._fetch_index(made, folder)
        keeping = Keeping(record, self._parts.checkpoints, self._parts.files.store, made, revision)
        source = Input(folder, record.endpoint)
        self._lines = JobLines(self._parts, record, Asking(self._parts, record, source), keeping, self._log)
        try:
            await self._lines.open()
            await self._lines.run()
        finally:
            self._lines.close()
            self._lines = None
            source.close()
        await self._finish(keeping)

    # --- validation -------------------------------------------------------------------------------------------------

    async def _validate(self, record: JobRecord, folder: Path) -> bool:
        """Whether it may run now."""
        if clock.unix_us(record.expire_time) <= clock.now_us():
            await self._end(State.JOB_RECORD_STATE_EXPIRED)
            return False
        key = self._parts.keys.of(record)
        report = Report()
        if key is None:
            report.add(Fault(0, "invalid_api_key", "The API key that submitted the batch is not valid any more."))
        else:
            try:
                await self._fetch(record, folder)
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_NOT_FOUND:
                    raise
                report.add(Fault(0, error.reason, "The input file was deleted.", "input_file_id"))
            else:
                report = await self._parts.judge.judge(
                    record.endpoint, key, folder / inputs.SOURCE, folder / inputs.INDEX
                )
        if report.fault_count:
            await self._end(State.JOB_RECORD_STATE_FAILED, report)
            return False
        store = self._parts.files.store
        name = f"{job_prefix(record.job_id)}/index"
        stored = await store.put(name, _content(folder / inputs.INDEX))
        made = JobCheckpoint(
            job_id=record.job_id,
            lines=report.lines,
            index=Segment(object=name, size_bytes=stored.size, digest=stored.digest),
            tokens_sequence=await self._log.end() + 1,
            models=report.models,
        )
        await begin(record, self._parts.checkpoints, store, made)

        def edit(one: JobRecord) -> None:
            one.state = State.JOB_RECORD_STATE_ACTIVE
            one.lines = report.lines
            one.model = report.models[0] if len(report.models) == 1 else ""
            one.active_time.CopyFrom(clock.timestamp(clock.now_us()))

        try:
            await self._parts.jobs.change(record, edit)
        except InferBusError as error:
            if error.reason != "job_moved":
                raise
            # It was cancelled meanwhile: what was stored for it is removed by whoever clears up.
            await self._parts.checkpoints.delete(self._name)
            return False
        return True

    async def _fetch(self, record: JobRecord, folder: Path) -> None:
        files = self._parts.files
        found = await files.look_up(record.tenant_id, record.project_id, record.input_file_id)
        await inputs.fetch(files.read(found), folder / inputs.SOURCE)

    async def _fetch_index(self, made: JobCheckpoint, folder: Path) -> None:
        await inputs.fetch(content.read(self._parts.files.store, [made.index]), folder / inputs.INDEX)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self, keeping: Keeping) -> None:
        """The two files become visible, and the job has ended."""
        made = keeping.checkpoint
        record = self._find()
        if record is None:
            return
        if record.state == State.JOB_RECORD_STATE_ACTIVE:

            def finalize(one: JobRecord) -> None:
                one.state = State.JOB_RECORD_STATE_FINALIZING
                one.finalize_time.CopyFrom(clock.timestamp(clock.now_us()))

            try:
                record = await self._parts.jobs.change(record, finalize)
            except InferBusError as error:
                if error.reason != "job_moved":
                    raise
                record = self._find() or record  # it was cancelled in the last moment
        output = await self._file(record, "output", made.output)
        errors = await self._file(record, "error", made.errors)
        if record.state == State.JOB_RECORD_STATE_CANCELLING:
            state = State.JOB_RECORD_STATE_CANCELLED
        else:
            state = State.JOB_RECORD_STATE_EXPIRED if made.expired else State.JOB_RECORD_STATE_COMPLETED

        def end(one: JobRecord) -> None:
            if one.state in ENDED:
                return
            one.state = state
            one.end_time.CopyFrom(clock.timestamp(clock.now_us()))
            one.output_file_id, one.error_file_id = output, errors
            one.lines, one.completed_lines, one.failed_lines = made.lines, made.completed_lines, made.failed_lines
            one.input_tokens, one.cached_input_tokens = made.input_tokens, made.cached_input_tokens
            one.output_tokens, one.reasoning_tokens = made.output_tokens, made.reasoning_tokens

        await self._parts.jobs.change(record, end)
        await keeping.end()
        log.info("a job has ended", extra={"job_id": record.job_id, "lines": made.lines, "failed": made.failed_lines})

    async def _file(self, record: JobRecord, kind: str, segments: object) -> str:
        """The id of the file of ``segments``; empty if there are none."""
        held: list[Segment] = list(segments)  # type: ignore[call-overload]  # a repeated field
        if not held:
            return ""
        digest = hashlib.blake2b(f"{record.job_id}/{kind}".encode(), digest_size=12).hexdigest()
        now_us = clock.now_us()
        made = FileRecord(
            file_id=f"file-{digest}", tenant_id=record.tenant_id, project_id=record.project_id,
            filename=f"{record.job_id}_{kind}.jsonl", purpose="batch_output", segments=held,
            size_bytes=sum(one.size_bytes for one in held), create_time=clock.timestamp(now_us), job_id=record.job_id,
        )  # fmt: skip
        if record.HasField("output_expire_after"):
            after_us = record.output_expire_after.ToMicroseconds()
            made.expire_time.CopyFrom(clock.timestamp(now_us + after_us))
        await self._parts.files.add(made)
        return made.file_id

    async def _end(self, state: State.ValueType, report: Report | None = None) -> None:
        """Of a job of which nothing has run."""

        def edit(one: JobRecord) -> None:
            one.state = state
            one.end_time.CopyFrom(clock.timestamp(clock.now_us()))
            if report is not None:
                one.fault_count = report.fault_count
                one.faults.extend(
                    JobFault(line=fault.line, code=fault.code, message=fault.message, param=fault.param)
                    for fault in report.faults
                )

        try:
            await self._parts.jobs.change(self._record, edit)
        except InferBusError as error:
            if error.reason != "job_moved":
                raise

    def _find(self) -> JobRecord | None:
        try:
            return self._parts.jobs.find(self._record.tenant_id, "", self._record.job_id)
        except InferBusError:
            return None


async def _content(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as data:
        while part := data.read(_READ_BYTES):
            yield part

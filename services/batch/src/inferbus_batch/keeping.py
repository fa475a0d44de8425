"""What is durable of a job that runs: its checkpoint, and results as segments of its two files.

A checkpoint is stored by compare-and-set, so of two runners of a job only one can make anything count.
"""

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence

from inferbus.bus.v1.batch_pb2 import JobCheckpoint, JobRecord, LineWindow, Segment
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_bus.store import Store
from inferbus_objects.store import ObjectStore
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch import content
from inferbus_batch.core.done import Done
from inferbus_batch.core.progress import Progress, Window

# A file of a gigabyte has so few segments that a checkpoint stays small; what is smaller is written again with more.
_SEGMENT_BYTES = 4 << 20


class LostError(Exception):
    """Another runner has the job."""


def job_prefix(job_id: str) -> str:
    """Of the names of a job's objects."""
    return f"job-{job_id}"


class Keeping:
    """The newest checkpoint of one job, and what belongs to it."""

    def __init__(
        self,
        record: JobRecord,
        checkpoints: Store[JobCheckpoint],
        store: ObjectStore,
        made: JobCheckpoint,
        revision: int,
    ) -> None:
        self._name = f"{record.tenant_id}/{record.job_id}"
        self._prefix = job_prefix(record.job_id)
        self._checkpoints = checkpoints
        self._store = store
        self._revision = revision
        self.checkpoint = made

    def progress(self) -> Progress:
        """As of the checkpoint."""
        one = self.checkpoint
        windows = [
            Window(
                set(window.lines), clock.unix_us(window.open_time) // 1000, clock.unix_us(window.expire_time) // 1000
            )
            for window in one.windows
        ]
        last_ms = clock.unix_us(one.last_open_time) // 1000
        return Progress(one.lines, Done(one.floor, one.done), one.fresh, dict(one.tries), windows, last_ms)

    def count(self, usage: Usage) -> None:
        """For the next checkpoint."""
        one = self.checkpoint
        one.input_tokens += usage.input_tokens
        one.cached_input_tokens += usage.cached_input_tokens
        one.output_tokens += usage.output_tokens
        one.reasoning_tokens += usage.reasoning_tokens

    async def store(self, progress: Progress, tokens_sequence: int) -> None:
        """Returns when it counts. Raises LostError, InferBusError UNAVAILABLE (and it may)."""
        one = self.checkpoint
        one.floor, one.fresh, one.tokens_sequence = progress.done.floor, progress.fresh, tokens_sequence
        one.last_open_time.CopyFrom(clock.timestamp(progress.last_open_ms * 1000))
        del one.done[:], one.windows[:]
        one.done.extend(progress.done.above())
        one.tries.clear()
        one.tries.update(progress.tries)
        one.windows.extend(
            LineWindow(
                lines=sorted(window.lines),
                open_time=clock.timestamp(window.open_ms * 1000),
                expire_time=clock.timestamp(window.expire_ms * 1000),
            )
            for window in progress.windows
        )
        try:
            self._revision = (await self._checkpoints.update(self._name, one, self._revision)).sequence
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_CONFLICT:
                raise LostError from error
            raise

    async def add(self, results: Sequence[bytes], failed: Sequence[bytes]) -> list[Segment]:
        """Writes results for the next checkpoint; gives segments that nothing needs once it is stored. Raises like
        :meth:`ObjectStore.put`."""
        one = self.checkpoint
        old = [*await self._append(one.output, "output", results), *await self._append(one.errors, "errors", failed)]
        one.completed_lines += len(results)
        one.failed_lines += len(failed)
        return old

    async def drop(self, segments: Iterable[Segment]) -> None:
        """They are not needed any more."""
        await content.remove(self._store, segments)

    async def end(self) -> None:
        """The job has ended: nothing of it but its files is needed. Raises LostError, InferBusError UNAVAILABLE."""
        try:
            await self._checkpoints.delete(self._name, self._revision)
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_CONFLICT:
                raise LostError from error
            raise
        await self.drop([self.checkpoint.index])

    async def _append(self, segments: object, kind: str, lines: Sequence[bytes]) -> list[Segment]:
        if not lines:
            return []
        held: list[Segment] = segments  # type: ignore[assignment]  # a repeated field
        last = [held[-1]] if held and held[-1].size_bytes < _SEGMENT_BYTES else []

        async def joined() -> AsyncIterator[bytes]:
            async for part in content.read(self._store, last):
                yield part
            for line in lines:
                yield line

        # A name of its own: whoever lost the job without knowing it may be writing, too.
        made = await content.write(self._store, f"{self._prefix}/{kind}-{secrets.token_hex(8)}", joined())
        if last:
            del held[-1]
        held.extend(made)
        return last


async def begin(record: JobRecord, checkpoints: Store[JobCheckpoint], store: ObjectStore, made: JobCheckpoint) -> None:
    """The first checkpoint of a validated job, in place of one by whoever died before he could say that it is valid.
    Raises InferBusError UNAVAILABLE; LostError if lines of it have been asked already."""
    name = f"{record.tenant_id}/{record.job_id}"
    found, revision = await checkpoints.last(name)
    if found is not None and found.fresh:
        raise LostError
    try:
        await checkpoints.update(name, made, revision)
    except InferBusError as error:
        if error.error_class == ErrorClass.ERROR_CLASS_CONFLICT:
            raise LostError from error
        raise

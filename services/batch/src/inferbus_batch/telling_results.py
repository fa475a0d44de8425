"""Results of single requests that came straight over the queue: told line by line, as their batch goes on.

A result is published under an id of its own, and only what is stored for the first time is heard: so it is told again
after whatever may have come in between, and its owner hears it once. How far the telling is stands in the checkpoint.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence

from inferbus.bus.v1.batch_pb2 import JobCheckpoint, JobRecord, Segment
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Publisher
from inferbus_objects.store import ObjectStore
from inferbus_runtime.errors import InferBusError

from inferbus_batch import content
from inferbus_batch.core.queue_messages import below, refusal, told_of_line

_AT_ONCE = 256
EACH = ".*"
"""At the end of where a job's results are told: each below that by its own name."""
# The broker takes 8 MiB with its head; a longer one is in the file of output, and there only.
_MOST_BYTES = 7 << 20


class Results:
    """Publishes what came of something. Raises InferBusError UNAVAILABLE; then it may have been told."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def tell(self, subject: str, said: bytes, name: str) -> None:
        """``name``: told again under it within ten minutes, it is heard once."""
        await self._publisher.publish_raw(subject, said, {"Nats-Msg-Id": name})

    async def tell_all(self, told: Sequence[tuple[str, bytes, str]]) -> None:
        """(subject, what is said, name) of each."""
        for at in range(0, len(told), _AT_ONCE):
            await asyncio.gather(*(self.tell(*one) for one in told[at : at + _AT_ONCE]))


class ResultTeller:
    """Of the lines of one job."""

    def __init__(self, record: JobRecord, results: Results) -> None:
        self._record = record
        self._results = results

    async def tell(self, lines: Iterable[bytes], one: JobCheckpoint) -> None:
        """``lines`` have been stored, and with them all that ``one`` names has been told. Raises like
        :class:`Results`."""
        await self._results.tell_all([self._told(line) for line in lines])
        one.told_output_bytes, one.told_error_bytes = _size(one.output), _size(one.errors)

    async def tell_rest(self, one: JobCheckpoint, store: ObjectStore) -> None:
        """All of ``one`` that may not have been told. Raises like :meth:`tell` and :meth:`ObjectStore.get`."""
        for segments, told in ((one.output, one.told_output_bytes), (one.errors, one.told_error_bytes)):
            lines, rest = list[bytes](), b""
            async for part in content.read(store, segments, told):
                *whole, rest = (rest + part).split(b"\n")
                lines += whole
                if len(lines) >= _AT_ONCE:
                    await self._results.tell_all([self._told(line) for line in lines])
                    lines = []
            await self._results.tell_all([self._told(line) for line in lines])
        await self.tell([], one)

    async def refuse(self, names: Iterable[str], error: InferBusError) -> None:
        """Lines of a job that has not run. Raises like :class:`Results`."""
        await self._results.tell_all([self._address(name, refusal(name, error)) for name in names])

    def _told(self, line: bytes) -> tuple[str, bytes, str]:
        name, said = told_of_line(line), line.rstrip(b"\n")
        if len(said) > _MOST_BYTES:
            said = refusal(name, self._too_long())
        return self._address(name, said)

    def _address(self, name: str, said: bytes) -> tuple[str, bytes, str]:
        record = self._record
        results, each, _ = record.result_subject.rpartition(EACH)
        subject = below(results, name) if each else record.result_subject
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return subject, said, f"{record.job_id}-{digest}"

    def _too_long(self) -> InferBusError:
        message = f"The result is too long for a message; it is in the output file of {self._record.job_id}."
        return InferBusError(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "result_too_long", message)


def results_of(record: JobRecord, publisher: Publisher) -> ResultTeller | None:
    """None for a job whose lines are told to nobody."""
    return ResultTeller(record, Results(publisher)) if record.queue_last else None


def _size(segments: Iterable[Segment]) -> int:
    return sum(one.size_bytes for one in segments)

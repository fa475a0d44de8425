"""The ends of jobs, told to whoever wants to know: what is due, and what became of it. By whoever holds a job's shard;
how they are sent: :mod:`inferbus_webhooks.sender`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import orjson
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_webhooks.sender import WAITS, Answer, Message, Sender, wait_after
from inferbus_webhooks.signing import key_for

from inferbus_batch.jobs import Jobs

log = logging.getLogger(__name__)
# As OpenAI names its own.
_TYPES = {
    State.JOB_RECORD_STATE_COMPLETED: "batch.completed",
    State.JOB_RECORD_STATE_FAILED: "batch.failed",
    State.JOB_RECORD_STATE_CANCELLED: "batch.cancelled",
    State.JOB_RECORD_STATE_EXPIRED: "batch.expired",
}
_PREFIX = "evt_"


class Webhooks:
    """``master``: what keys of projects are made of. ``holds``: whether a shard is this process's now. ``anywhere``:
    private addresses, too. ``waits``: after each try that failed."""

    def __init__(
        self,
        jobs: Jobs,
        master: bytes,
        holds: Callable[[int], bool],
        *,
        anywhere: bool,
        waits: Sequence[timedelta] = WAITS,
    ) -> None:
        self._jobs = jobs
        self._master = master
        self._holds = holds
        self._anywhere = anywhere
        self._waits = waits
        # By the id of what is told.
        self._open: dict[str, JobRecord] = {}
        jobs.on_change(self._changed)
        for record in jobs.ended():
            self._changed(record)

    async def run(self) -> None:
        """Until cancelled."""
        await Sender(self._due, self._sent, anywhere=self._anywhere).run()

    def _changed(self, record: JobRecord) -> None:
        name = _PREFIX + record.job_id.removeprefix("batch_")
        if record.webhook_url and record.state in _TYPES and not record.HasField("webhook_end_time"):
            self._open[name] = record
        else:
            self._open.pop(name, None)

    def _due(self) -> Iterator[Message]:
        now_us = clock.now_us()
        for name, record in list(self._open.items()):
            if clock.unix_us(record.webhook_next_time) <= now_us and self._holds(record.shard):
                key = key_for(self._master, record.tenant_id, record.project_id)
                yield Message(name, record.webhook_url, body_of(name, record), key, record.tenant_id)

    async def _sent(self, message: Message, answer: Answer) -> None:
        record = self._open.get(message.message_id)
        if record is None:
            return

        def edit(made: JobRecord) -> None:
            if made.HasField("webhook_end_time"):
                return
            made.webhook_attempts += 1
            now_us = clock.now_us()
            wait = wait_after(answer, made.webhook_attempts, self._waits)
            if answer.taken or wait is None:
                made.webhook_end_time.CopyFrom(clock.timestamp(now_us))
            else:
                next_us = now_us + wait // timedelta(microseconds=1)
                made.webhook_next_time.CopyFrom(clock.timestamp(next_us))

        said = {"job_id": record.job_id, "status": answer.status, "failure": answer.failure}
        log.log(logging.INFO if answer.taken else logging.WARNING, "a webhook was sent", extra=said)
        try:
            await self._jobs.change(record, edit)
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_NOT_FOUND:
                self._open.pop(message.message_id, None)  # its record has run out
                return
            log.warning("a webhook's outcome was not stored: it is sent again", extra={"error": str(error)})


def body_of(name: str, record: JobRecord) -> bytes:
    """The same for each try."""
    said = {
        "id": name,
        "object": "event",
        "type": _TYPES[record.state],
        "created_at": record.end_time.seconds,
        "data": {"id": record.job_id},
    }
    return orjson.dumps(said)

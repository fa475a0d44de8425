"""What comes straight over the queue is taken by one process at a time: see :mod:`.taking`.

A message is acknowledged once its job's record is stored, so that whoever comes after a crash gets it again; by the
records of jobs and their inputs he knows what has been taken.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import stream_spec
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_batch.core.seen import MOST, SECONDS, Seen
from inferbus_batch.jobs import Jobs
from inferbus_batch.queue_jobs import QueueJobs
from inferbus_batch.taking import Taking

log = logging.getLogger(__name__)
_JOBS = stream_spec("JOBS")
_DURABLE = "batch"
_IN_FLIGHT, _HELD_BYTES = 20_000, 64 << 20
_ACK_WAIT = timedelta(seconds=30)
_SLICE = 25
_IDLE_SECONDS, _LOOK = 5.0, 0.1
_US = 1_000_000


class Intake:
    """For :class:`inferbus_bus.shards.Shards`, with one shard. ``taking``: makes a new one, which knows what is
    seen."""

    def __init__(self, bus: Bus, jobs: Jobs, submit: QueueJobs, taking: Callable[[Seen], Taking]) -> None:
        self._bus = bus
        self._jobs = jobs
        self._submit = submit
        self._new_taking = taking
        self._queue = WorkQueue(
            bus, stream=_JOBS.name, durable=_DURABLE, subject=_JOBS.subjects[0], on_delivery=self._arrived,
            in_flight=_IN_FLIGHT, ack_wait=_ACK_WAIT, room=self._room,
        )  # fmt: skip
        self._taking: Taking | None = None
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def gained(self, shard: int) -> None:
        """Raises like :meth:`WorkQueue.start`, and InferBusError UNAVAILABLE."""
        if self._closing is not None:
            await self._closing
        taking = self._taking = self._new_taking(await self._remembered())
        await self._queue.start()
        self._running = asyncio.create_task(self._run(taking), name="intake of the queue")

    async def left(self, shard: int) -> None:
        """What is not submitted is given back."""
        taking, self._taking = self._taking, None
        await self._queue.stop()
        if self._running is not None:
            await cancel_all([self._running])
        if taking is not None:
            await taking.close()
        await self._queue.close()

    def lost(self, shard: int) -> None:
        taking, self._taking = self._taking, None
        if self._running is not None:
            self._running.cancel()
        if taking is not None:
            taking.drop()
        self._closing = asyncio.create_task(self._close(), name="lost intake of the queue")

    async def _close(self) -> None:
        await self._queue.stop()
        await self._queue.close()

    async def _remembered(self) -> Seen:
        """What has been taken of late, or may be delivered again."""
        seen = Seen()
        first = int((await self._bus.api(f"STREAM.INFO.{_JOBS.name}"))["state"]["first_seq"])
        known, since_us = 0, clock.now_us() - int(SECONDS * _US)
        for record in self._jobs.queued():
            if record.queue_last < first and clock.unix_us(record.create_time) < since_us:
                continue
            try:
                lines = await self._submit.lines(record)
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_NOT_FOUND:
                    raise
                continue
            for line in lines:
                seen.add_line((record.tenant_id, record.key_id), line, clock.monotonic())
            known += len(lines)
            if known >= MOST:
                break
            await asyncio.sleep(0)
        return seen

    def _arrived(self, delivery: Delivery) -> None:
        if self._taking is None:
            delivery.nak()
            return
        self._taking.arrived(delivery)
        self._wake.set()

    def _room(self) -> int:
        return _IN_FLIGHT if self._taking is not None and self._taking.size < _HELD_BYTES else 0

    async def _run(self, taking: Taking) -> None:
        while True:
            self._wake.clear()
            while taking.consider(_SLICE):
                taking.flush(clock.monotonic())
                await asyncio.sleep(0)
            taking.flush(clock.monotonic())
            due = taking.next_due()
            try:
                async with asyncio.timeout(_IDLE_SECONDS if due is None else max(_LOOK, due - clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

"""WORK in: what becomes of each delivery, and when it is acknowledged.

A delivery is acknowledged only when the frame with its Close is stored. So whoever dies in between, the work comes
again: to this process (the broker restarted), which knows it; or to the next one under this name, which finds on the
log how far it had come.
"""

import asyncio
import logging
from collections import OrderedDict

from google.protobuf.message import DecodeError
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import Work
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.ids import uuid_text
from inferbus_contracts.operations import operation_name
from inferbus_contracts.subjects import token_subject
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.telemetry import Span, span
from opentelemetry.trace import SpanKind

from inferbus_worker.core.ends import deadline_exceeded
from inferbus_worker.core.recovery import Recovered, fold
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.engine import EngineInfo, Finish
from inferbus_worker.generations import Generations

log = logging.getLogger(__name__)

# A cancel may overtake its request on the way here.
_CANCEL_MEMORY_SECONDS = 30.0
_CANCEL_MEMORY = 65536
# Acks are not durable across a broker kill: what was finished may come again long after.
_FINISHED_MEMORY = 16384
_RETRY_SECONDS = 0.2
# The edge's clock says when a request was accepted, the broker's when a frame was stored.
_CLOCK_SKEW_US = 10_000_000


class Intake:
    """Between the work queue and the running set. ``work_sequence``: the highest delivery taken over."""

    def __init__(
        self, generations: Generations, frames: FramePublisher, frame_log: FrameLog, worker: str, info: EngineInfo
    ) -> None:
        self.work_sequence = 0
        self._generations = generations
        self._frames = frames
        self._log = frame_log
        self._worker = worker
        self._info = info
        self._held: dict[bytes, list[Delivery]] = {}
        self._spans: dict[bytes, Span] = {}
        self._finished: OrderedDict[bytes, None] = OrderedDict()
        self._cancels: OrderedDict[bytes, float] = OrderedDict()
        self._cancelled: set[bytes] = set()
        self._to_recover: asyncio.Queue[Running] = asyncio.Queue()
        self._to_ack: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        generations.on_end(self._ended)

    @property
    def unsettled(self) -> int:
        """Deliveries taken over and not yet acknowledged."""
        return len(self._held)

    def on_delivery(self, delivery: Delivery) -> None:
        try:
            work = Work.FromString(delivery.data)
        except DecodeError:
            log.error("work that cannot be read is dropped", extra={"sequence": delivery.sequence})
            delivery.ack()
            return
        self.work_sequence = max(self.work_sequence, delivery.sequence)
        key = work.request.request_id
        if delivery.deliveries > 1:
            metrics.REDELIVERIES.labels("WORK").inc()
        if key in self._held:
            # The broker forgot that we hold it. Only the newest handle of a sequence settles; the old ones do nothing.
            self._held[key].append(delivery)
        elif key in self._finished:
            delivery.ack()
        else:
            self._take(work, delivery)

    def on_cancel(self, cancel: Cancel) -> None:
        """Ends the generation; remembered for a while if it has not come yet."""
        key, now = cancel.request_id, clock.monotonic()
        while self._cancels and (len(self._cancels) >= _CANCEL_MEMORY or next(iter(self._cancels.values())) < now):
            self._cancels.popitem(last=False)
        if key in self._held:
            self._cancelled.add(key)  # also while it waits for its recovery, however long
        elif key not in self._finished:
            self._cancels[key] = now + _CANCEL_MEMORY_SECONDS
        self._generations.close(key)

    async def run_recovery(self) -> None:
        """Reads the log for what an earlier process of this name was running; one pass for all that wait."""
        while True:
            batch = [await self._to_recover.get()]
            while not self._to_recover.empty():
                batch.append(self._to_recover.get_nowait())
            try:
                recovered = await self._recover(batch)
            except (InferBusError, StreamApiError) as error:
                log.warning("recovery waits", extra={"error": str(error), "requests": len(batch)})
                await asyncio.sleep(_RETRY_SECONDS)
                for running in batch:
                    self._to_recover.put_nowait(running)
                continue
            for running in batch:
                self._resume(running, recovered[running.key])

    async def _recover(self, batch: list[Running]) -> dict[bytes, Recovered]:
        recovered = {running.key: Recovered() for running in batch}
        _, last = await self._log.bounds()
        for edge in {running.edge for running in batch}:
            since = min(running.accepted_us for running in batch if running.edge == edge) - _CLOCK_SKEW_US
            subject = token_subject(edge, self._worker)
            async for stored in self._log.read(1, last, subject=subject, since_us=since):
                for _, _, data in stored:
                    fold(Frame.FromString(data), recovered)
        return recovered

    async def run_acks(self) -> None:
        """Acknowledges WORK once the Close is stored, in the order of the frames."""
        while True:
            key, sequence = await self._to_ack.get()
            await self._frames.wait_acked(sequence)
            self._settle(key)

    async def settled(self) -> None:
        """Returns when all deliveries taken over are acknowledged."""
        while self._held:
            await asyncio.sleep(0.01)

    def _take(self, work: Work, delivery: Delivery) -> None:
        running = running_of(work, self._info.revision, max(1, delivery.deliveries))
        running.texts = [] if self._info.resumes_by_text else None
        self._held[running.key] = [delivery]
        self._spans[running.key] = span(
            "generate",
            delivery.headers,
            kind=SpanKind.CONSUMER,
            **{
                "gen_ai.operation.name": operation_name(work.request),
                "gen_ai.request.model": self._info.model,
                "inferbus.request_id": uuid_text(running.key),
                "inferbus.worker": self._worker,
            },
        )
        if delivery.deliveries > 1:
            self._to_recover.put_nowait(running)
        else:
            self._begin(running)

    def _resume(self, running: Running, recovered: Recovered) -> None:
        if recovered.closed:
            self._settle(running.key)
            return
        running.attempt = max(running.attempt, recovered.attempt + 1)
        running.ids = recovered.ids
        running.first_started_us = recovered.first_started_us
        if running.texts is not None:
            running.texts = [text for _, text in recovered.texts]
        if recovered.ids:
            running.first_us, running.last_us = recovered.first_us, recovered.last_us
        log.info("resumes", extra={"request_id": uuid_text(running.key), "tokens": len(running.ids)})
        self._begin(running)

    def _begin(self, running: Running) -> None:
        now = clock.now_us()
        if running.key in self._cancelled or self._cancels.get(running.key, 0.0) > clock.monotonic():
            self._generations.refuse(running, Finish.CANCELLED)
        elif running.expire_us and now > running.expire_us:
            self._generations.refuse(running, Finish.ERROR, deadline_exceeded())
        else:
            self._generations.add(running)

    def _ended(self, running: Running, reason: FinishReason.ValueType, sequence: int) -> None:
        ended = self._spans.pop(running.key, None)
        if ended is not None:
            name = FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
            ended.set(**{"gen_ai.response.finish_reasons": name, "inferbus.attempt": str(running.attempt)})
            ended.end(running.verdict)
        self._to_ack.put_nowait((running.key, sequence))

    def _settle(self, key: bytes) -> None:
        self._finished[key] = None
        while len(self._finished) > _FINISHED_MEMORY:
            self._finished.popitem(last=False)
        self._cancels.pop(key, None)
        self._cancelled.discard(key)
        self._spans.pop(key, None)
        for delivery in self._held.pop(key, ()):
            delivery.ack()

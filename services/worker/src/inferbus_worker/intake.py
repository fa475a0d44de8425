"""WORK in: what becomes of each delivery, and when it is acknowledged.

A delivery is acknowledged only when the frame with its Close is stored, or when it is known to be another worker's. It
is for this incarnation of the worker only: what an earlier one had, a scheduler gives to whoever is to go on with it,
with how far it had come. So a delivery that comes again was here already, and is known; or it got lost on its way here,
and then the log says whether it has been moved meanwhile.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from inferbus.bus.v1.control_pb2 import Cancel, Recall
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import Work
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.ids import uuid_text
from inferbus_contracts.operations import operation_name
from inferbus_contracts.recovery import FURTHER_BACK_US, Recovered, begun, fold
from inferbus_contracts.subjects import token_subject
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.telemetry import Span, span
from opentelemetry.trace import SpanKind

from inferbus_worker.core.ends import deadline_exceeded, token_gap
from inferbus_worker.core.running import Running, attempt_of, running_of
from inferbus_worker.core.said import Said
from inferbus_worker.engine import EngineInfo, Finish
from inferbus_worker.generations import Generations

log = logging.getLogger(__name__)

# Acks are not durable across a broker kill: what was finished may come again long after.
_FINISHED_MEMORY = 16384
_RETRY_SECONDS = 0.2
# The broker says when it stored work and frames, maybe on two machines.
_CLOCK_SKEW_US = 2_000_000
# For each reading from further back, which few ever need: whoever waits behind it waits as long.
_FURTHER_SECONDS = 30.0
# Frames that are folded before others get a turn.
_FOLDED_AT_ONCE = 50
_ID_BYTES = 16
# Not this incarnation's: it is for a scheduler to move.
_ASTRAY_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Held:
    """``ended``: its Close is published, and not known to be stored yet. ``stored_us``: when its placement was stored,
    by the broker's clock."""

    running: Running
    deliveries: list[Delivery]
    span: Span
    stored_us: int
    ended: bool = False


class Intake:
    """Between the work queue and the running set. ``work_sequence``: the highest delivery taken over. ``boot``: of the
    incarnation whose work is taken."""

    def __init__(
        self, generations: Generations, frames: FramePublisher, frame_log: FrameLog, worker: str, boot: int,
        info: EngineInfo,
    ) -> None:  # fmt: skip
        self.work_sequence = 0
        self.boot = boot
        self._generations = generations
        self._frames = frames
        self._log = frame_log
        self._worker = worker
        self._info = info
        self._held: dict[bytes, _Held] = {}
        self._finished: OrderedDict[bytes, int] = OrderedDict()  # with the highest attempt that is over here
        self._cancels = Said()
        self._recalls = Said()
        self._cancelled: set[bytes] = set()
        self._recovering: set[bytes] = set()
        self._to_recover: asyncio.Queue[_Held] = asyncio.Queue()
        self._to_ack: asyncio.Queue[tuple[_Held, int]] = asyncio.Queue()
        self._suspect: Callable[[], None] = lambda: None
        generations.on_end(self._ended)

    def on_suspect(self, callback: Callable[[], None]) -> None:
        """Called when a later attempt is taken over, before anything is made of it: it may be what its last worker died
        of, and if this one dies of it too, that it was here must be known."""
        self._suspect = callback

    @property
    def active(self) -> int:
        """How many :meth:`running` has."""
        return len(self._generations.running) + len(self._recovering)

    def running(self) -> list[Running]:
        """All that is this worker's to end, also what still waits to be begun."""
        return [held.running for held in self._held.values() if not held.ended]

    def on_delivery(self, delivery: Delivery) -> None:
        try:
            work = Work.FromString(delivery.data)
        except DecodeError:
            log.error("work that cannot be read is dropped", extra={"sequence": delivery.sequence})
            delivery.ack()
            return
        if work.boot != self.boot:
            log.error("work of another incarnation", extra={"sequence": delivery.sequence, "boot": work.boot})
            delivery.nak(_ASTRAY_SECONDS)
            return
        self.work_sequence = max(self.work_sequence, delivery.sequence)
        if delivery.deliveries > 1:
            metrics.REDELIVERIES.labels("WORK").inc()
        key, attempt = work.request.request_id, attempt_of(work)
        held = self._held.get(key)
        if held is not None and held.running.attempt == attempt:
            # The broker forgot that we hold it. Only the newest handle of a sequence settles; the old ones do nothing.
            held.deliveries.append(delivery)
            return
        if held is not None and held.running.attempt < attempt:
            self._drop(held)  # it was moved, and has come back before we were told
        elif held is not None:
            delivery.ack()
            return
        elif self._is_over(key, attempt):
            self._generations.load.gone(key)
            delivery.ack()
            return
        self._take(work, delivery)

    def _is_over(self, key: bytes, attempt: int) -> bool:
        return max(self._finished.get(key, 0), self._recalls.get(key, clock.monotonic())) >= attempt

    def on_cancel(self, cancel: Cancel) -> None:
        """Ends the generation; remembered for a while if it has not come yet."""
        key = cancel.request_id
        if key in self._held:
            self._cancelled.add(key)  # also while it waits for its recovery, however long
        else:
            self._cancels.say(key, clock.monotonic())
        self._generations.close(key)

    def on_recall(self, recall: Recall) -> bool:
        """These are another worker's now: nothing more is said of them. Remembered for a while of what has not come
        yet. False: it is not for this incarnation."""
        if recall.boot != self.boot:
            return False
        for number, attempt in enumerate(recall.attempts):
            key = recall.request_ids[number * _ID_BYTES : (number + 1) * _ID_BYTES]
            held = self._held.get(key)
            if held is None:
                self._recalls.say(key, clock.monotonic(), attempt)
            elif held.running.attempt <= attempt:
                self._drop(held)
        return True

    def let_go(self) -> None:
        """All that is here is another's from now on. Nothing of it is acknowledged: whoever moves it looks for it."""
        for held in list(self._held.values()):
            held.deliveries.clear()
            self._drop(held)

    def born_again(self, boot: int) -> None:
        """Takes the work of that incarnation and has none of an earlier one."""
        self.let_go()
        self.boot = boot

    async def run_recovery(self) -> None:
        """Reads the log for what was delivered before and did not arrive here; one pass for all that wait."""
        while True:
            batch = [await self._to_recover.get()]
            while not self._to_recover.empty():
                batch.append(self._to_recover.get_nowait())
            try:
                recovered = await self._recover(batch)
            except (InferBusError, StreamApiError) as error:
                log.warning("recovery waits", extra={"error": str(error), "requests": len(batch)})
                await asyncio.sleep(_RETRY_SECONDS)
                for held in batch:
                    self._to_recover.put_nowait(held)
                continue
            for held in batch:
                if self._held.get(held.running.key) is held:
                    self._resume(held, recovered[held.running.key])

    async def _recover(self, batch: list[_Held]) -> dict[bytes, Recovered]:
        """How far each has come, by the log; from further back where that begins in the middle of an answer."""
        _, last = await self._log.bounds()
        recovered: dict[bytes, Recovered] = {}
        for back_us in (_CLOCK_SKEW_US, *FURTHER_BACK_US):
            try:
                async with asyncio.timeout(None if back_us == _CLOCK_SKEW_US else _FURTHER_SECONDS):
                    recovered |= await self._read(batch, last, back_us)
            except TimeoutError:
                break  # what is known has a gap
            batch = [held for held in batch if _is_incomplete(held, recovered[held.running.key])]
            if not batch:
                break
        return recovered

    async def _read(self, batch: list[_Held], last: int, back_us: int) -> dict[bytes, Recovered]:
        recovered = {held.running.key: begun(held.running.request.resume) for held in batch}
        for edge in {held.running.edge for held in batch}:
            since = min(held.stored_us for held in batch if held.running.edge == edge) - back_us
            subject = token_subject(edge, self._worker)
            async for stored in self._log.read(1, last, subject=subject, since_us=since):
                for number, (_, _, data) in enumerate(stored, 1):
                    fold(Frame.FromString(data), recovered)
                    if number % _FOLDED_AT_ONCE == 0:
                        await asyncio.sleep(0)  # what runs here is to be sent
        return recovered

    async def run_acks(self) -> None:
        """Acknowledges WORK once the Close is stored, in the order of the frames."""
        while True:
            held, sequence = await self._to_ack.get()
            await self._frames.wait_acked(sequence)
            self._settle(held)

    async def settled(self) -> None:
        """Returns when all deliveries taken over are acknowledged."""
        while self._held:
            await asyncio.sleep(0.01)

    def _take(self, work: Work, delivery: Delivery) -> None:
        running = running_of(work, self._info.revision, by_text=self._info.resumes_by_text)
        begun = span(
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
        held = self._held[running.key] = _Held(running, [delivery], begun, delivery.stored_us)
        if running.attempt > 1:
            self._suspect()
            log.info("resumes", extra={"request_id": uuid_text(running.key), "tokens": len(running.ids)})
        if delivery.deliveries > 1:
            self._recovering.add(running.key)
            self._to_recover.put_nowait(held)
        else:
            self._begin(running)

    def _resume(self, held: _Held, recovered: Recovered) -> None:
        running = held.running
        self._recovering.discard(running.key)
        if _is_over(held, recovered):
            self._drop(held)  # it has ended, or was fenced off before it came here
            return
        running.ids, running.resumed = recovered.ids, bool(recovered.ids)
        running.first_started_us = recovered.first_started_us
        if running.texts is not None:
            running.texts = [text for _, text in recovered.texts]
        if recovered.ids:
            running.first_us, running.last_us = recovered.first_us, recovered.last_us
        if recovered.gap:
            self._generations.refuse(running, Finish.ERROR, token_gap())
        else:
            self._begin(running)

    def _begin(self, running: Running) -> None:
        now = clock.now_us()
        if running.key in self._cancelled or self._cancels.get(running.key, clock.monotonic()):
            self._generations.refuse(running, Finish.CANCELLED)
        elif running.expire_us and now > running.expire_us:
            self._generations.refuse(running, Finish.ERROR, deadline_exceeded())
        else:
            self._generations.add(running)

    def _drop(self, held: _Held) -> None:
        """Nothing more is said of it, not even its end."""
        key = held.running.key
        if key in self._cancelled:
            self._cancels.say(key, clock.monotonic())  # wherever it goes on, also here
        if key in self._generations.running:
            self._generations.drop(key)
        else:
            self._recovering.discard(key)
            self._generations.load.gone(key)
        held.span.end(None)
        self._settle(held)

    def _ended(self, running: Running, reason: FinishReason.ValueType, sequence: int) -> None:
        held = self._held.get(running.key)
        if held is None or held.running is not running:
            return
        held.ended = True
        name = FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        held.span.set(**{"gen_ai.response.finish_reasons": name, "inferbus.attempt": str(running.attempt)})
        held.span.end(running.verdict)
        self._to_ack.put_nowait((held, sequence))

    def _settle(self, held: _Held) -> None:
        key = held.running.key
        if self._held.get(key) is not held:
            return
        del self._held[key]
        self._finished[key] = max(held.running.attempt, self._finished.pop(key, 0))
        while len(self._finished) > _FINISHED_MEMORY:
            self._finished.popitem(last=False)
        self._cancelled.discard(key)
        for delivery in held.deliveries:
            delivery.ack()


def _is_over(held: _Held, recovered: Recovered) -> bool:
    """It has ended, or was fenced off."""
    return recovered.closed or recovered.attempt > held.running.attempt


def _is_incomplete(held: _Held, recovered: Recovered) -> bool:
    return recovered.gap and not _is_over(held, recovered)

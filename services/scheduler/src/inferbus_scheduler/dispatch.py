"""REQUESTS in, WORK out, wholly in callbacks: no task and no log line per request.

A request is held from its delivery until it is stored on WORK, or until its end is stored on TOKENS; only then REQUESTS
is acknowledged, so whoever dies, it is where it was. WORK knows a request by its id, so publishing it again (after a
crash, or when no answer came) places nothing twice.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.request_pb2 import Work
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Outcome as PublishOutcome
from inferbus_bus.publish import PubAck, Publisher
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime import clock, metrics
from inferbus_runtime.traces import span

from inferbus_scheduler.core import admission
from inferbus_scheduler.core.admission import Limits, Refusal, admit, overdue
from inferbus_scheduler.core.deadlines import Deadlines
from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import Placement, place
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.endings import Endings
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.held import Held, State
from inferbus_scheduler.incoming import request_of

log = logging.getLogger(__name__)
TICK_SECONDS = 0.1
_RESEND_SECONDS = 0.5
# A cancel may overtake its request by the time that a busy broker needs, not by more.
_CANCELS, _CANCEL_SECONDS = 10_000, 30.0
# Acks of REQUESTS that a killed broker lost come back within its restart; WORK may have forgotten the ids by then.
_SETTLED, _SETTLED_SECONDS = 50_000, 600.0
_SEEN_WORKERS = 8


class Dispatcher:
    """Holds what is not placed yet, and moves it when there is room."""

    def __init__(
        self,
        *,
        bus: Bus,
        publisher: Publisher,
        fleet: Fleet,
        endings: Endings,
        queues: Queues,
        knows_model: Callable[[str], bool],
        limits: Limits,
        max_wait: float,
        decisions_kept: int,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._fleet = fleet
        self._endings = endings
        self._queues = queues
        self.knows_model = knows_model
        self._limits = limits
        self._max_wait = max_wait
        self._held: dict[bytes, Held] = {}
        # Published to WORK without an answer: to be published again, since it may be stored.
        self._unanswered: dict[bytes, Held] = {}
        self._resend_at = 0.0
        self._deadlines = Deadlines()
        self._cancels: Remembered[bytes, bool] = Remembered(_CANCELS, _CANCEL_SECONDS)
        self._settled: Remembered[bytes, bool] = Remembered(_SETTLED, _SETTLED_SECONDS)
        self._decisions: Remembered[bytes, Decision] = Remembered(decisions_kept, float("inf"))
        self._counters: dict[str, tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._stopping = False
        fleet.on_room = self.pump

    # --- in ----------------------------------------------------------------------------------------------------

    def on_delivery(self, delivery: Delivery) -> None:
        """One message of REQUESTS; never raises."""
        now = clock.monotonic()
        work = Work()
        message = work.request
        try:
            message.ParseFromString(delivery.data)
        except DecodeError as error:
            self._discard(delivery, repr(error))
            return
        request_id = message.request_id
        held = self._held.get(request_id)
        if held is not None:
            held.delivered_again(delivery)
        elif self._settled.get(request_id, now):
            delivery.ack()
        elif len(request_id) != REQUEST_ID_BYTES or not message.edge or not message.context.model:
            self._discard(delivery, "no request id, edge or model")
        else:
            request = request_of(message, now=now, now_us=clock.now_us(), max_wait=self._max_wait)
            self._arrived(Held(request, work, delivery), now)

    def on_cancel(self, cancel: Cancel) -> None:
        """The client is gone, or an operator says so. What is placed, its worker hears of by itself."""
        now = clock.monotonic()
        held = self._held.get(cancel.request_id)
        if held is None:
            if not self._settled.get(cancel.request_id, now):
                self._cancels.put(cancel.request_id, True, now)
        elif held.state is State.QUEUED:
            self._queues.remove(cancel.request_id)
            self._end(held, None, now)
        else:
            held.cancelled = True

    def _arrived(self, held: Held, now: float) -> None:
        request = held.request
        self._held[request.request_id] = held
        if self._cancels.pop(request.request_id, now):
            self._end(held, None, now)
            return
        refusal = admit(
            request,
            known_model=self.knows_model(request.model),
            ahead=self._queues.ahead(request.model, request.priority),
            limits=self._limits,
            now=now,
        )
        if refusal is not None:
            self._end(held, refusal, now)
            return
        self._queues.push(request)
        self.pump(request.model)
        if held.state is State.QUEUED:
            self._look(held, now)

    def _discard(self, delivery: Delivery, why: str) -> None:
        # Nobody can be answered, and it would come back for ever.
        log.error("a message on REQUESTS is no request", extra={"sequence": delivery.sequence, "why": why})
        metrics.REJECTIONS.labels("unreadable").inc()
        delivery.ack()

    # --- out ---------------------------------------------------------------------------------------------------

    def pump(self, model: str) -> None:
        """Place what waits for ``model``, as far as there is room."""
        if self._stopping or not self._bus.connected:
            return
        now = clock.monotonic()
        while (request := self._queues.first(model)) is not None:
            began = clock.monotonic()
            decision = place(request, self._fleet.view, now)
            if not isinstance(decision, Placement):
                return
            metrics.PLACEMENT_SECONDS.observe(clock.monotonic() - began)
            self._queues.take(request)
            self._place(self._held[request.request_id], decision, now)

    def pump_all(self) -> None:
        for model in self._queues.models():
            self.pump(model)

    def _place(self, held: Held, placement: Placement, now: float) -> None:
        request, work, worker = held.request, held.work, placement.worker
        now_us = clock.now_us()
        held.move(State.PLACING)
        if work.worker != worker:
            work.worker = worker
            held.workers += 1
        work.placed_time.seconds, micros = divmod(now_us, 1_000_000)
        work.placed_time.nanos = micros * 1000
        seen = tuple(self._fleet.view.candidates[request.model][:_SEEN_WORKERS])
        decision = Decision(Outcome.PLACED, request.model, worker, placement.reason, now_us, now, seen)
        self._decisions.put(request.request_id, decision, now)
        attributes: dict[str, Any] = {
            "gen_ai.request.model": request.model,
            "inferbus.worker": worker,
            "inferbus.queue_seconds": now - request.arrived_at,
        }
        held.span = span("scheduler.place", held.traceparent, **attributes)
        self._fleet.reserve(worker, request.request_id, now)
        self._send(held)

    def _send(self, held: Held) -> None:
        held.sends += 1
        headers = held.span.headers() if held.span is not None else None
        self._publisher.publish_then(held.work, lambda outcome: self._answered(held, outcome), headers)

    def _answered(self, held: Held, outcome: PublishOutcome) -> None:
        """Stored, or not known: whatever the error, an earlier publish of it may have been stored."""
        now = clock.monotonic()
        if isinstance(outcome, PubAck):
            self._placed(held, outcome, now)
            return
        if not self._unanswered:
            log.warning("WORK does not take placements; they are published again", extra={"error": str(outcome)})
        self._unanswered[held.request.request_id] = held
        self._resend_at = now + _RESEND_SECONDS

    def _placed(self, held: Held, ack: PubAck, now: float) -> None:
        request = held.request
        # A duplicate of our own sending stands where we sent it; that of a scheduler before us may stand anywhere, and
        # its worker counts it as active by now.
        ours = not ack.duplicate or (held.sends > 1 and held.workers == 1)
        self._fleet.settle(held.work.worker, request.request_id, ack.sequence if ours else None, now)
        if not ours:
            decision = Decision(Outcome.PLACED, request.model, "", "already_placed", clock.now_us(), now)
            self._decisions.put(request.request_id, decision, now)
        if held.span is not None:
            held.span.end()
        self._count(request.model, max(0.0, now - request.arrived_at))
        self._release(held, now)

    def _count(self, model: str, queue_seconds: float) -> None:
        counters = self._counters.get(model)
        if counters is None:
            # Only names that admission knew come here, so this is as bounded as the registry.
            counters = (metrics.PLACEMENTS.labels(model).inc, metrics.QUEUE_TIME.labels(model).observe)
            self._counters[model] = counters
        placed, waited = counters
        placed()
        waited(queue_seconds)

    def _resend(self, now: float) -> None:
        """Publish again what got no answer: to the same worker, or, if that has left, to whom there is room at."""
        if now < self._resend_at or not self._bus.connected:
            return
        unanswered, self._unanswered = self._unanswered, {}
        self._resend_at = now + _RESEND_SECONDS
        for held in unanswered.values():
            if self._fleet.takes_work(held.work.worker):
                self._send(held)
                continue
            self._fleet.settle(held.work.worker, held.request.request_id, None, now)
            held.move(State.QUEUED)
            # From here on it may be ended here, though it may be stored for the worker that has left. That takes a
            # broker and a worker lost within the same second; the worker would then end it once more, as expired.
            if held.cancelled:
                self._end(held, None, now)
            else:
                self._queues.put_back(held.request)
                self._look(held, now)

    # --- ends --------------------------------------------------------------------------------------------------

    def _look(self, held: Held, now: float) -> None:
        """End it if it must not wait any longer, else set when to look again. It waits in the queue."""
        request = held.request
        unserved_since = self._fleet.unserved_since(request.model)
        outcome = overdue(request, unserved_since=unserved_since, limits=self._limits, now=now)
        if isinstance(outcome, Refusal):
            self._queues.remove(request.request_id)
            self._end(held, outcome, now)
        else:
            self._deadlines.set(outcome, request.request_id)

    def _end(self, held: Held, refusal: Refusal | None, now: float) -> None:
        """Close it, as cancelled if there is no refusal."""
        request = held.request
        held.move(State.ENDING)
        outcome = Outcome.REJECTED if refusal is not None else Outcome.CANCELLED
        reason = refusal.reason if refusal is not None else admission.CANCELLED
        seen = tuple(self._fleet.view.candidates.get(request.model, ())[:_SEEN_WORKERS])
        decision = Decision(outcome, request.model, "", reason, clock.now_us(), now, seen)
        self._decisions.put(request.request_id, decision, now)
        metrics.REJECTIONS.labels(reason).inc()
        self._endings.end(held.work.request, refusal, lambda: self._release(held, clock.monotonic()))

    def _release(self, held: Held, now: float) -> None:
        """It is stored where it belongs now: REQUESTS may forget it."""
        request_id = held.request.request_id
        del self._held[request_id]
        self._settled.put(request_id, True, now)
        held.ack()

    # --- time, and the stop ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """A few times a second: publish again, end what is overdue."""
        if self._unanswered:
            self._resend(now)
        for request_id in self._deadlines.due(now):
            held = self._held.get(request_id)
            if held is not None and held.state is State.QUEUED:
                self._look(held, now)
        self._deadlines.compact(len(self._queues), self._queues.__contains__)

    async def drain(self) -> None:
        """Place no more; returns when what was on its way is stored, and the rest is given back for the next one."""
        self._stopping = True
        while self._bus.connected and any(held.state is State.PLACING for held in self._held.values()):
            await asyncio.sleep(0.01)
        await self._endings.flushed()
        for held in list(self._held.values()):
            if held.state is State.QUEUED:
                held.give_back()

    # --- what others ask ---------------------------------------------------------------------------------------

    def decision(self, request_id: bytes) -> Decision | None:
        """What was decided for a recent request; None: not known, or it still waits."""
        return self._decisions.get(request_id, clock.monotonic())

    def waiting(self, request_id: bytes) -> Held | None:
        """The request if it is held and waits for a worker."""
        held = self._held.get(request_id)
        return held if held is not None and held.state is State.QUEUED else None

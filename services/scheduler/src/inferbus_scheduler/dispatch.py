"""REQUESTS in, WORK out, wholly in callbacks: no task and no log line per request.

A request is held from its delivery until it is stored on WORK, or on REQUESTS for a fallback, or until its end is
stored on TOKENS; only then its message on REQUESTS is acknowledged, so whoever dies, it is where it was. WORK knows an
attempt of a request by its id, so publishing it again (after a crash, or when no answer came) places nothing twice.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Outcome as PublishOutcome
from inferbus_bus.publish import PubAck, Publisher
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_contracts.subjects import model_shard
from inferbus_runtime import clock, metrics
from inferbus_runtime.traces import span

from inferbus_scheduler.core import admission
from inferbus_scheduler.core.admission import Refusal
from inferbus_scheduler.core.deadlines import Deadlines
from inferbus_scheduler.core.decisions import Outcome
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.estimates import OutputMeans
from inferbus_scheduler.core.migration import refusal_of
from inferbus_scheduler.core.placement import Placement, Policy
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.core.request import Request
from inferbus_scheduler.core.turns import serve
from inferbus_scheduler.decision_log import DecisionLog
from inferbus_scheduler.endings import Endings
from inferbus_scheduler.fallbacks import sent_to
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.held import Held, State, name_of
from inferbus_scheduler.incoming import request_of
from inferbus_scheduler.making_room import MakingRoom
from inferbus_scheduler.routing import Routing
from inferbus_scheduler.shadowing import Shadowing
from inferbus_scheduler.takeover import Takeover
from inferbus_scheduler.waiting import SendTo, Waiting

log = logging.getLogger(__name__)
TICK_SECONDS = 0.1
_RESEND_SECONDS = 0.5
# What waits is looked at again now and then: a worker may have room of which nothing told.
_PUMP_SECONDS = 0.5
# A cancel may overtake its request by the time that a busy broker needs, or that its move from a dead worker takes.
_CANCELS, _CANCEL_SECONDS = 50_000, 60.0
# Acks of REQUESTS that a killed broker lost come back within its restart; WORK may have forgotten the ids by then.
_SETTLED, _SETTLED_SECONDS = 50_000, 600.0
# Of schedulers before this one: 50 MB at most. What was not acknowledged may come as late as it is kept.
_BEFORE, _BEFORE_SECONDS = 200_000, 3600.0
# Longer than a shard that is being left still gets what waits in it.
_NOT_OURS_SECONDS = 1.0


class Dispatcher:
    """Holds what is not placed yet, and moves it when there is room. ``owns`` and ``holds``: see ModelShards.
    ``without_worker``: of a time (model, from, to; monotonic), the seconds in which the model had no worker."""

    def __init__(
        self,
        *,
        bus: Bus,
        publisher: Publisher,
        fleet: Fleet,
        endings: Endings,
        queues: Queues,
        waiting: Waiting,
        making_room: MakingRoom,
        takeover: Takeover,
        rate: DrainRate,
        decisions: DecisionLog,
        means: OutputMeans,
        policy: Callable[[str], Policy],
        routing: Routing,
        shadowing: Shadowing,
        owns: Callable[[str], bool],
        holds: Callable[[str], bool],
        without_worker: Callable[[str, float, float], float],
        max_wait: float,
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._fleet = fleet
        self._endings = endings
        self._queues = queues
        self._waiting = waiting
        self._making_room = making_room
        self._takeover = takeover
        self._rate = rate
        self._decisions = decisions
        self._means = means
        self._policy = policy
        self._routing = routing
        self._shadowing = shadowing
        self._owns = owns
        self._holds = holds
        self._without_worker = without_worker
        self._max_wait = max_wait
        self._held: dict[bytes, Held] = {}
        # Of them those that wait, by the key under which they are in the queues.
        self._queued: dict[bytes, Held] = {}
        # What came last of a request, by its id: whom a cancel is for.
        self._newest: dict[bytes, Held] = {}
        # Of each shard, how many are under way: not in the queue.
        self._busy: Counter[int] = Counter()
        # Published without an answer: to be published again, since it may be stored.
        self._unanswered: dict[bytes, Held] = {}
        self._resend_at = self._pump_at = 0.0
        self._deadlines = Deadlines()
        self._cancels: Remembered[bytes, bool] = Remembered(_CANCELS, _CANCEL_SECONDS)
        self._settled: Remembered[bytes, bool] = Remembered(_SETTLED, _SETTLED_SECONDS)
        self._before: Remembered[bytes, int] = Remembered(_BEFORE, _BEFORE_SECONDS)
        self._counters: dict[str, tuple[Callable[[], None], Callable[[float], None]]] = {}
        fleet.on_room = self.pump_for

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
        name = name_of(message)
        held = self._held.get(name)
        if held is not None:
            held.delivered_again(delivery)
        elif self._settled.get(name, now) or self._was_settled(message, now):
            delivery.ack()
        elif len(message.request_id) != REQUEST_ID_BYTES or not message.edge or not message.context.model:
            self._discard(delivery, "no request id, edge or model")
        elif self._owns(message.context.model):
            request = request_of(message, self._means, now=now, now_us=clock.now_us(), max_wait=self._max_wait)
            if request.key in self._queued:
                # The same for another model: a scheduler sent it there that had lost its shard meanwhile.
                delivery.ack()
            else:
                self._arrived(Held(name, model_shard(request.model), request, work, delivery), now)
        else:
            # Its shard is being left, or was lost: whoever opens it next makes its consumer anew and has it at once.
            delivery.nak(_NOT_OURS_SECONDS)

    def on_cancel(self, cancel: Cancel) -> None:
        """The client is gone, or an operator says so. What is placed, its worker hears of by itself; remembered it is
        all the same, since it may come back from there before it was told."""
        now = clock.monotonic()
        held = self._newest.get(cancel.request_id)
        if held is None or held.state is State.DEGRADING:
            self._cancels.put(cancel.request_id, True, now)
        elif held.state is State.QUEUED and self._holds(held.request.model):
            self._unqueue(held)
            self._end(held, None, now)
        else:
            held.cancelled = True
            self._cancels.put(cancel.request_id, True, now)

    def _arrived(self, held: Held, now: float) -> None:
        request = held.request
        self._held[held.name] = self._newest[request.request_id] = held
        resume = held.work.request.resume
        if resume.end:
            # That was decided when it was moved, and is not decided again.
            self._end(held, refusal_of(resume), now)
            return
        if request.attempt > 1:
            self._decisions.moved(request, resume, now)
        if self._cancels.pop(request.request_id, now):
            self._end(held, None, now)
            return
        refusal = self._waiting.refusal(request, now)
        if refusal is not None:
            self._end(held, refusal, now)
            return
        self._queues.push(request)
        self._queued[request.key] = held
        if not self._queues.is_behind(request):
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
        if not self._bus.connected or not self._owns(model):
            return
        now, policy = clock.monotonic(), self._policy(model)

        def ask(request: Request) -> bool:
            self._making_room.for_(self._routing.asking(request), policy, now)
            return False  # it comes later, if it does

        def offer(request: Request, policy: Policy) -> str:
            return self._offer(request, policy, now)

        split = self._routing.splits(model)
        serve(self._queues, self._fleet.view, model, policy, now, offer=offer, ask=ask, split=split)

    def _offer(self, request: Request, policy: Policy, now: float) -> str:
        """Place it; empty, or why not."""
        began = clock.monotonic()
        hits = self._fleet.matches(request)
        decision = self._routing.pick(request, self._fleet.view, hits, policy, now)
        metrics.PLACEMENT_SECONDS.observe(clock.monotonic() - began)
        if not isinstance(decision, Placement):
            return decision.reason
        self._queues.take(request)
        waiting = self._queues.first(request.model) is not None
        self._rate.placed(request.model, now, waited=now - request.waits_since, waiting=waiting)
        self._place(self._queued.pop(request.key), decision, hits, policy, now)
        return ""

    def pump_for(self, base: str) -> None:
        """Workers of ``base`` have room: for the model, and for its adapters."""
        for model in self._queues.waiting_for(base):
            self.pump(model)

    def pump_all(self) -> None:
        for model in self._queues.models():
            self.pump(model)

    def _place(self, held: Held, placement: Placement, hits: Mapping[str, int], policy: Policy, now: float) -> None:
        request, work, worker = held.request, held.work, placement.worker
        now_us = clock.now_us()
        boot = self._fleet.boot_of(worker)
        self._move(held, State.PLACING)
        if (work.worker, work.boot) != (worker, boot):
            work.worker, work.boot = worker, boot
            held.workers += 1
        work.attempt = request.attempt
        work.fails_over = self._routing.fails_over(request, self._fleet.revision_of(worker))
        work.placed_time.seconds, micros = divmod(now_us, 1_000_000)
        work.placed_time.nanos = micros * 1000
        cold = self._without_worker(request.model, request.waits_since, now)
        work.cold_start_us = work.request.resume.cold_start_us + round(cold * 1e6)
        self._decisions.placed(request, placement, hits, policy, self._fleet.view, now)
        attributes: dict[str, Any] = {
            "gen_ai.request.model": request.model,
            "inferbus.worker": worker,
            "inferbus.queue_seconds": now - request.arrived_at,
        }
        held.span = span("scheduler.place", held.traceparent, **attributes)
        self._fleet.reserve(worker, request, now, placement.prefix_hits)
        self._send(held)

    def _send(self, held: Held) -> None:
        """Publish it where it goes: on WORK, or on REQUESTS for a fallback."""
        held.sends += 1
        headers = held.span.headers() if held.span is not None else held.traceparent
        self._publisher.publish_then(held.going, lambda outcome: self._answered(held, outcome), headers)

    def _answered(self, held: Held, outcome: PublishOutcome) -> None:
        """Stored, or not known: whatever the error, an earlier publish of it may have been stored."""
        now = clock.monotonic()
        if isinstance(outcome, PubAck):
            if held.state is State.PLACING:
                self._placed(held, outcome, now)
            self._release(held, now)
            return
        if self._held.get(held.name) is not held:
            return  # it went with its shard
        if not self._unanswered:
            log.warning("placements are not taken; they are published again", extra={"error": str(outcome)})
        self._unanswered[held.name] = held
        self._resend_at = now + _RESEND_SECONDS

    def _placed(self, held: Held, ack: PubAck, now: float) -> None:
        request, worker, boot = held.request, held.work.worker, held.work.boot
        # A duplicate of our own sending stands where we sent it; that of a scheduler before us may stand anywhere, and
        # its worker counts it as active by now.
        ours = not ack.duplicate or (held.sends > 1 and held.workers == 1)
        self._fleet.settle(worker, request.key, ack.sequence if ours else None, now)
        if not ours:
            self._decisions.placed_before(request, now)
            self._queues.ended(request.key)
            self._takeover.scan_soon(held.shard)
        elif not self._fleet.knows(worker, boot):
            # It left while this was on its way: its work may have been moved already, and this came behind.
            self._takeover.gone(worker, boot, "worker_lost")
        if held.span is not None:
            held.span.end()
        self._count(request.model, max(0.0, now - request.arrived_at))
        if ours:
            self._shadowing.placed(held.work.request, request)

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
        if now < self._resend_at:
            return
        unanswered, self._unanswered = self._unanswered, {}
        self._resend_at = now + _RESEND_SECONDS
        for held in unanswered.values():
            if not self._holds(held.request.model):
                continue  # it goes with its shard
            worker, boot = held.work.worker, held.work.boot
            if held.state is State.DEGRADING or (self._fleet.takes_work(worker) and self._fleet.knows(worker, boot)):
                self._send(held)
                continue
            self._fleet.settle(worker, held.request.key, None, now)
            self._move(held, State.QUEUED)
            # From here on it may be ended here, though it may be stored for the worker that has left. That takes a
            # broker and a worker lost within the same second; whoever moves that one's work then ends it once more.
            if held.cancelled:
                self._end(held, None, now)
            else:
                self._queues.put_back(held.request)
                self._queued[held.request.key] = held
                self._look(held, now)

    # --- ends --------------------------------------------------------------------------------------------------

    def _look(self, held: Held, now: float) -> None:
        """End it if it must not wait any longer, or send it to another model, else set when to look again. It waits in
        the queue."""
        request = held.request
        outcome = self._waiting.look(held.work.request, request, now)
        if isinstance(outcome, float):
            self._deadlines.set(outcome, held.name)
            return
        self._unqueue(held)
        if isinstance(outcome, SendTo):
            self._degrade(held, outcome.model, now)
        else:
            self._end(held, outcome, now)

    def _degrade(self, held: Held, model: str, now: float) -> None:
        self._move(held, State.DEGRADING)
        held.going = sent_to(held.work.request, model)
        self._decisions.degraded(held.request, now)
        metrics.DEGRADATIONS.labels(held.request.model).inc()
        self._send(held)

    def _end(self, held: Held, refusal: Refusal | None, now: float) -> None:
        """Close it, as cancelled if there is no refusal."""
        self._move(held, State.ENDING)
        reason = refusal.reason if refusal is not None else admission.CANCELLED
        outcome = Outcome.REJECTED if refusal is not None else Outcome.CANCELLED
        self._decisions.ended(held.request, outcome, reason, self._fleet.view, now)
        metrics.REJECTIONS.labels(reason).inc()
        self._endings.end(held.work.request, refusal, lambda: self._release(held, clock.monotonic()))

    def _unqueue(self, held: Held) -> None:
        model = self._queues.remove(held.request.key).model
        del self._queued[held.request.key]
        if self._queues.first(model) is None:
            self._rate.emptied(model, clock.monotonic())

    def _move(self, held: Held, state: State) -> None:
        before = held.state
        held.move(state)
        self._busy[held.shard] += (state is not State.QUEUED) - (before is not State.QUEUED)

    def _release(self, held: Held, now: float) -> None:
        """It is stored where it belongs now: REQUESTS may forget it."""
        self._settled.put(held.name, True, now)
        self._forget(held)
        held.ack()

    def _forget(self, held: Held) -> None:
        if self._held.get(held.name) is not held:
            return  # it went with its shard before
        del self._held[held.name]
        if held.state is not State.QUEUED:
            self._busy[held.shard] -= 1
        if self._newest.get(held.request.request_id) is held:
            del self._newest[held.request.request_id]

    # --- time, and the stop ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """A few times a second: publish again, end what is overdue, look for room."""
        if not self._bus.connected:
            return  # whoever ended something now might end it after somebody else has it
        if self._unanswered:
            self._resend(now)
        for name in self._deadlines.due(now):
            held = self._held.get(name)
            if held is not None and held.state is State.QUEUED and self._owns(held.request.model):
                self._look(held, now)
        self._deadlines.compact(len(self._queues), self._held.__contains__)
        if now >= self._pump_at:
            self._pump_at = now + _PUMP_SECONDS
            self.pump_all()

    def settled_before(self, request_id: bytes, attempt: int) -> None:
        """A scheduler before this one has placed or ended that attempt: if it comes, or one below, it is only to be
        acknowledged."""
        now = clock.monotonic()
        self._before.put(request_id, max(attempt, self._before.get(request_id, now) or 0), now)

    def _was_settled(self, message: GenerateRequest, now: float) -> bool:
        return (self._before.get(message.request_id, now) or 0) >= (message.resume.attempt or 1)

    async def leave(self, shard: int) -> None:
        """Place no more of it, which Shards sees to; returns when all that was under way is stored, and
        what waits has been given back for whoever has the shard next."""
        while self._busy[shard] > 0:
            await asyncio.sleep(0.01)
        self.drop(shard)

    def drop(self, shard: int) -> None:
        """The shard is another's: nothing more is said of what is held of it, but that it can be had."""
        now = clock.monotonic()
        for held in [each for each in self._held.values() if each.shard == shard]:
            request = held.request
            if held.state is State.ENDING:
                continue  # on its way to the log, and acknowledged when it is there
            if held.state is State.QUEUED:
                self._unqueue(held)
            elif held.state is State.PLACING:
                self._fleet.settle(held.work.worker, request.key, None, now)
                self._queues.ended(request.key)
            self._unanswered.pop(held.name, None)
            self._forget(held)
            held.give_back()

    def waiting(self, request_id: bytes) -> Held | None:
        """The request if it is held and waits for a worker."""
        held = self._newest.get(request_id)
        return held if held is not None and held.state is State.QUEUED else None

"""What was decided, told on DECISIONS and remembered for Explain. Nothing waits for it, and it holds nobody up."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from inferbus.bus.v1.decision_pb2 import DecisionOutcome, PlacementDecisions
from inferbus.bus.v1.request_pb2 import Resume
from inferbus_bus.publish import Outcome as PublishOutcome
from inferbus_bus.publish import PubAck, Publisher
from inferbus_runtime import clock, metrics

from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import Placement, Policy, filter_out
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.core.score import alone, for_prefix, for_reading
from inferbus_scheduler.core.view import ClusterView, WorkerView

log = logging.getLogger(__name__)
SEEN_WORKERS = 8
FLUSH_SECONDS = 0.25
# Of one model, in one message: it takes 25 us a decision to write, in which nothing else happens.
_MOST = 128
_OUTCOMES = {
    Outcome.PLACED: DecisionOutcome.DECISION_OUTCOME_PLACED,
    Outcome.REJECTED: DecisionOutcome.DECISION_OUTCOME_REJECTED,
    Outcome.CANCELLED: DecisionOutcome.DECISION_OUTCOME_CANCELLED,
    Outcome.PREEMPTED: DecisionOutcome.DECISION_OUTCOME_PREEMPTED,
    Outcome.MIGRATED: DecisionOutcome.DECISION_OUTCOME_MIGRATED,
    Outcome.DEGRADED: DecisionOutcome.DECISION_OUTCOME_DEGRADED,
}


class DecisionLog:
    """``kept``: of so many requests the last decision is known to :meth:`last`."""

    def __init__(
        self, publisher: Publisher, *, scheduler: str, boot: int, kept: int, policy: Callable[[str], Policy]
    ) -> None:
        self._publisher = publisher
        self._scheduler = scheduler
        self._boot = boot
        self._policy = policy
        self._sequence = 0
        self._last: Remembered[bytes, Decision] = Remembered(kept, float("inf"))
        self._untold: dict[str, list[Decision]] = {}
        self._flush_at = 0.0

    def placed(
        self,
        request: Request,
        placement: Placement,
        hits: Mapping[str, int],
        policy: Policy,
        view: ClusterView,
        now: float,
    ) -> None:
        seen = seen_by(request, view, placement.worker)
        held = tuple((each.name, hits[each.name]) for each in seen if each.name in hits)
        why = placement.reason
        self._put(Decision(Outcome.PLACED, request, placement.worker, why, clock.now_us(), now, seen, held, policy))

    def placed_before(self, request: Request, now: float) -> None:
        """It was on WORK already, from a scheduler before this one, which alone knows for whom."""
        self._put(Decision(Outcome.PLACED, request, "", "already_placed", clock.now_us(), now))

    def ended(self, request: Request, outcome: Outcome, reason: str, view: ClusterView, now: float) -> None:
        """It ends without a place: ``outcome`` is REJECTED or CANCELLED."""
        policy, seen = self._policy(request.model), seen_by(request, view)
        self._put(Decision(outcome, request, "", reason, clock.now_us(), now, seen, policy=policy))

    def degraded(self, request: Request, now: float) -> None:
        """It is sent to a fallback: what becomes of it there is a decision of its own."""
        self._put(Decision(Outcome.DEGRADED, request, "", "over_target", clock.now_us(), now))

    def moved(self, request: Request, resume: Resume, now: float) -> None:
        """It came back from a worker, before its next attempt."""
        outcome = Outcome.PREEMPTED if resume.reason == "preempted" else Outcome.MIGRATED
        self._put(Decision(outcome, request, resume.worker, resume.reason, clock.now_us(), now))

    def last(self, request_id: bytes) -> Decision | None:
        """What was decided last of a recent request; None: not known."""
        return self._last.get(request_id, clock.monotonic())

    def flush(self, now: float) -> None:
        """Tell what is untold: to be called a few times a second."""
        if now < self._flush_at:
            return
        self._flush_at = now + FLUSH_SECONDS
        untold, self._untold = self._untold, {}
        for model, decisions in untold.items():
            self._tell(model, decisions)

    def _put(self, decision: Decision) -> None:
        request = decision.request
        self._last.put(request.request_id, decision, decision.now)
        untold = self._untold.setdefault(request.model, [])
        untold.append(decision)
        if len(untold) >= _MOST:
            self._tell(request.model, self._untold.pop(request.model))

    def _tell(self, model: str, decisions: list[Decision]) -> None:
        self._sequence += 1
        message = columns(decisions)
        message.scheduler, message.boot, message.sequence = self._scheduler, self._boot, self._sequence
        message.model = model
        count = len(decisions)

        def stored(outcome: PublishOutcome) -> None:
            if not isinstance(outcome, PubAck):
                metrics.DECISIONS_LOST.inc(count)
                log.warning("decisions were not stored", extra={"decisions": count, "error": str(outcome)})

        self._publisher.publish_then(message, stored)


def seen_by(request: Request, view: ClusterView, chosen: str = "") -> tuple[WorkerView, ...]:
    """The chosen one, and the best of the others."""
    candidates = view.candidates.get(base_of(request.model))
    if candidates is None:
        return ()
    if not chosen:
        return tuple(candidates[:SEEN_WORKERS])
    others = islice((each for each in candidates if each.name != chosen), SEEN_WORKERS - 1)
    return (candidates.named[chosen], *others)


def columns(decisions: Sequence[Decision]) -> PlacementDecisions:
    """One model's decisions as columns; who published them is left out."""
    numbers: dict[str, int] = {}

    def name(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    requests = [decision.request for decision in decisions]
    # Lists first: a value at a time costs the message five times as much.
    return PlacementDecisions(
        request_ids=b"".join(request.request_id for request in requests),
        time_us=[decision.time_us for decision in decisions],
        attempts=[request.attempt for request in requests],
        outcomes=[_OUTCOMES[decision.outcome] for decision in decisions],
        reasons=[name(decision.reason) for decision in decisions],
        queue_us=[_queue_us(decision) for decision in decisions],
        input_tokens=[request.input_tokens for request in requests],
        output_tokens=[request.output_tokens for request in requests],
        tenants=[name(request.tenant) for request in requests],
        classes=[int(request.priority) for request in requests],
        prefix_chunks=[len(request.prefix) for request in requests],
        candidates=[len(decision.seen) for decision in decisions],
        **_candidates(decisions, name),
        names=list(numbers),
    )


def _candidates(decisions: Sequence[Decision], name: Callable[[str], int]) -> dict[str, Any]:
    """The columns with an entry a candidate."""
    workers, scores, prefix_hits = [], [], []
    seen = [view for decision in decisions for view in decision.seen]
    for decision in decisions:
        request, hits, policy, now = decision.request, dict(decision.hits), decision.policy, decision.now
        weights = policy.weights
        for view in decision.seen:
            held = hits.get(view.name, 0)
            workers.append(name(view.name))
            prefix_hits.append(held)
            obstacle = filter_out(request, view, policy, now)
            alone_now = alone(view, weights) + for_reading(view, now, weights)
            scores.append(0.0 if obstacle else alone_now + for_prefix(held, weights))
    return {
        "workers": workers,
        "scores": scores,
        "prefix_hits": prefix_hits,
        "actives": [view.active + view.on_the_way for view in seen],
        "capacities": [view.capacity for view in seen],
        "kv_permille": [_kv_permille(view) for view in seen],
        "prefill_tokens": [view.unread(decision.now) for decision in decisions for view in decision.seen],
    }


def _kv_permille(view: WorkerView) -> int:
    """0 is said only of what is not known, or not used at all."""
    return min(1000, max(1, round(view.kv_load * 1000))) if view.kv_load > 0 else 0


def _queue_us(decision: Decision) -> int:
    return min(0xFFFFFFFF, max(0, round((decision.now - decision.request.waits_since) * 1e6)))

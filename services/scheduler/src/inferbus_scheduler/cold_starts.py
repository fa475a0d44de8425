"""Cold starts as a scheduler sees them: from the decision that a model gets a worker until that took work, and which
requests waited meanwhile."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.scheduler.v1.deployment_pb2 import ColdStart
from inferbus_runtime import clock, metrics

from inferbus_scheduler.core.request import base_of

# Of so many models, the last gaps without a worker.
_MODELS, _GAPS = 1024, 16


@dataclass(slots=True)
class _Seen:
    """``gaps``: (from, to) without a worker, monotonic seconds. ``decided``: what ended the last one, or is to."""

    gaps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_GAPS))
    since: float | None = None
    decided: ScalingDecision | None = None
    last: ColdStart | None = None


class ColdStarts:
    """``records``: of all workers that have a lease. ``born``: before that nothing is known."""

    def __init__(self, records: Callable[[], Iterable[WorkerRecord]], born: float) -> None:
        self._records = records
        self._born = born
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def decided(self, decision: ScalingDecision) -> None:
        """Of a model that has no worker and is to have one, or of one of its revisions."""
        seen = self._of(decision.model)
        if decision.replicas and not decision.replicas_before and seen.decided is None:
            if not any(one.model == decision.model for one in self._records()):
                seen.decided = decision
        elif not decision.replicas:
            seen.decided = None

    def serving(self, model: str, served: bool, now: float) -> None:
        """Its first worker takes work, or its last one does not any more."""
        seen = self._of(model)
        if not served:
            seen.since = now
            return
        if seen.since is not None:
            seen.gaps.append((seen.since, now))
        elif not self._was_there(model, now):
            seen.gaps.append((self._born, now))
        decision, seen.decided, seen.since = seen.decided, None, None
        if decision is None:
            return
        # The one that has just come.
        worker = max((one for one in self._records() if one.model == model), key=lambda one: one.boot, default=None)
        total = max(0.0, (clock.now_us() - clock.unix_us(decision.decision_time)) / 1e6)
        seen.last = ColdStart(decision_time=decision.decision_time)
        seen.last.total_duration.FromTimedelta(timedelta(seconds=total))
        metrics.COLD_START_SECONDS.labels(model).observe(total)
        if worker is not None:
            seen.last.worker, seen.last.revision = worker.worker, worker.revision
            if worker.HasField("start"):
                seen.last.start.CopyFrom(worker.start)

    def last(self, model: str) -> ColdStart | None:
        seen = self._seen.get(model)
        return seen.last if seen is not None else None

    def waited(self, model: str, since: float, until: float) -> float:
        """Seconds between two moments in which the model, or the base of an adapter, had no worker; a time without one
        that has not been said to be over counts up to ``until``."""
        seen = self._seen.get(base_of(model))
        if seen is None:
            return 0.0
        gaps = seen.gaps if seen.since is None else (*seen.gaps, (seen.since, until))
        return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in gaps)

    def _was_there(self, model: str, now: float) -> bool:
        """A worker of the model is older than this scheduler, which has only just heard of it."""
        born_us = clock.now_us() - round((now - self._born) * 1e6)
        return any(one.model == model and one.boot < born_us for one in self._records())

    def _of(self, model: str) -> _Seen:
        seen = self._seen.setdefault(model, _Seen())
        self._seen.move_to_end(model)
        if len(self._seen) > _MODELS:
            self._seen.popitem(last=False)
        return seen

"""What was decided lately, for Explain."""

from dataclasses import dataclass, field
from enum import Enum

from inferbus_scheduler.core.placement import Policy, Verdict, judge
from inferbus_scheduler.core.request import Request
from inferbus_scheduler.core.view import WorkerView


class Outcome(Enum):
    PLACED = "placed"
    QUEUED = "queued"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    # Taken from its worker, to go on later.
    PREEMPTED = "preempted"
    MIGRATED = "migrated"
    # Sent to a fallback of its deployment.
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and the inputs that explain it. ``seen``: the best workers of the model at that moment and what they
    hold of the request's prefix (immutable views: keeping them costs references, and judging them is left to whoever
    asks)."""

    outcome: Outcome
    request: Request
    worker: str
    reason: str
    # Unix microseconds, and the monotonic seconds by which leases were judged.
    time_us: int
    now: float
    seen: tuple[WorkerView, ...] = ()
    hits: tuple[tuple[str, int], ...] = ()
    policy: Policy = field(default_factory=Policy)

    def verdicts(self) -> tuple[Verdict, ...]:
        return judge(self.request, self.seen, dict(self.hits), self.policy, self.now)

"""What was decided lately, for Explain."""

from dataclasses import dataclass
from enum import Enum

from inferbus_scheduler.core.placement import Verdict, judge
from inferbus_scheduler.core.view import WorkerView


class Outcome(Enum):
    PLACED = "placed"
    QUEUED = "queued"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and the inputs that explain it. ``seen``: the least loaded workers of the model at that moment
    (immutable views: keeping them costs references, and judging them is left to whoever asks)."""

    outcome: Outcome
    model: str
    worker: str
    reason: str
    # Unix microseconds, and the monotonic seconds by which leases were judged.
    time_us: int
    now: float
    seen: tuple[WorkerView, ...] = ()

    def verdicts(self) -> tuple[Verdict, ...]:
        return judge(self.seen, self.model, self.now)

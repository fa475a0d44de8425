"""Which worker: Filter → Scorer → pick, as plain functions.

:func:`judge` is the whole truth about one worker, for operators. :func:`place` gives the same answer as judging all and
taking the best, but reads the view in its order and stops at the first that passes: microseconds, however many workers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_scheduler.core.request import Request
from inferbus_scheduler.core.view import ClusterView, WorkerView

WRONG_MODEL = "wrong_model"
DRAINING = "draining"
LEASE_EXPIRED = "lease_expired"
FULL = "full"
# Reason of a rejection besides FULL: no worker of the model is alive.
NO_WORKER = "no_worker"
LEAST_LOADED = "least_loaded"


@dataclass(frozen=True, slots=True)
class Placement:
    worker: str
    score: float
    reason: str = LEAST_LOADED


@dataclass(frozen=True, slots=True)
class Rejection:
    """Not now. ``reason``: ``full`` or ``no_worker``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was held of one worker. ``reason`` is empty if it is eligible; ``score`` is 0 if it is not."""

    worker: str
    eligible: bool
    reason: str
    score: float


def place(request: Request, view: ClusterView, now: float) -> Placement | Rejection:
    """The best eligible worker, or why there is none. Pure: equal inputs give equal outputs."""
    for worker in view.candidates.get(request.model, ()):
        obstacle = filter_out(worker, request.model, now)
        if obstacle is None:
            return Placement(worker.name, score(worker))
        if obstacle == FULL:
            # In the order of load nobody after a full one has room.
            return Rejection(FULL)
    return Rejection(NO_WORKER)


def filter_out(worker: WorkerView, model: str, now: float) -> str | None:
    """Why ``worker`` must not get a request of ``model`` now; None if it may."""
    if worker.model != model:
        return WRONG_MODEL
    if worker.draining:
        return DRAINING
    if worker.alive_until < now:
        return LEASE_EXPIRED
    if worker.room <= 0:
        return FULL
    return None


def score(worker: WorkerView) -> float:
    """In [0, 1]: the free fraction of its capacity. The highest wins, ties go to the first name."""
    return min(1.0, max(0.0, 1.0 - worker.load))


def judge(workers: Iterable[WorkerView], model: str, now: float) -> tuple[Verdict, ...]:
    """A verdict on each worker, best first: what :func:`place` knew, spelled out."""
    verdicts = [
        Verdict(worker.name, obstacle is None, obstacle or "", score(worker) if obstacle is None else 0.0)
        for worker in workers
        for obstacle in (filter_out(worker, model, now),)
    ]
    return tuple(sorted(verdicts, key=lambda verdict: (not verdict.eligible, -verdict.score, verdict.worker)))

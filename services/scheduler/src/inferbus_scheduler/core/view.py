"""The fleet as a decision sees it: values, ordered so that a decision need not look at every worker."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker. ``on_the_way``: placed there, and not yet in its ``active``. Times are monotonic seconds."""

    name: str
    boot: int
    model: str
    capacity: int
    active: int
    on_the_way: int
    draining: bool
    # The lease is taken to have ended after this, unless the worker is heard again.
    alive_until: float

    @property
    def room(self) -> int:
        return max(0, self.capacity - self.active - self.on_the_way)

    @property
    def load(self) -> float:
        """The taken fraction of its capacity: 1 or more is full."""
        return (self.active + self.on_the_way) / self.capacity if self.capacity else 1.0


def by_load(worker: WorkerView) -> tuple[float, str]:
    """Sort key: least loaded first, ties by name, so that equal fleets are always in equal order."""
    return worker.load, worker.name


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The workers of each model that may be chosen at all (heard, not draining), least loaded first.

    The fleet keeps the sequences up to date in place (:func:`add`, :func:`drop`), so a view is read, never kept.
    """

    candidates: Mapping[str, Sequence[WorkerView]] = field(default_factory=dict)

    @classmethod
    def of(cls, workers: Iterable[WorkerView]) -> "ClusterView":
        """A view of ``workers`` in any order."""
        candidates: dict[str, list[WorkerView]] = {}
        for worker in workers:
            if not worker.draining:
                add(candidates.setdefault(worker.model, []), worker)
        return cls(candidates)


def add(candidates: list[WorkerView], worker: WorkerView) -> None:
    """Put ``worker`` at its place in the order."""
    insort(candidates, worker, key=by_load)


def drop(candidates: list[WorkerView], worker: WorkerView) -> None:
    """Remove ``worker`` (the very view that was added)."""
    at = bisect_left(candidates, by_load(worker), key=by_load)
    if at == len(candidates) or candidates[at] != worker:
        raise ValueError(f"{worker.name} is not among the candidates")
    del candidates[at]

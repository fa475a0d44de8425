"""The fleet as a decision sees it: values, ordered so that a decision need not look at every worker."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, overload

from inferbus_scheduler.core.reading import unread
from inferbus_scheduler.core.request import Request
from inferbus_scheduler.core.score import Weights, alone

if TYPE_CHECKING:
    from inferbus_scheduler.core.placement import Policy

# So many requests that nobody would take are known, and so many changes of workers since.
_FAILED, _CHANGES = 64, 1024


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
    revision: str = ""
    node: str = ""
    # The failure domain: of equal workers, the one in the domain that has the least to do.
    zone: str = ""
    # 0: not known.
    cost_per_hour: float = 0.0
    adapters: frozenset[str] = frozenset()
    # Of its KV cache; 0: not known.
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    kv_block_tokens: int = 0
    # Expected beyond what is used: placements that its heartbeats do not count yet, and the growth of those that run.
    kv_tokens_promised: int = 0
    # Waiting to be read, placements on the way included.
    prefill_tokens: int = 0
    # Since when it reads the first of them, and what a token takes; 0: not known.
    reads_since: float = 0.0
    token_seconds: float = 0.0
    # The last step of its engine; 0: not known.
    step_seconds: float = 0.0
    # Suspect requests there that have not made a token.
    suspects: int = 0

    @property
    def room(self) -> int:
        """Free batch slots."""
        return max(0, self.capacity - self.active - self.on_the_way)

    @property
    def load(self) -> float:
        """The taken fraction of its batch slots: 1 or more is full."""
        return (self.active + self.on_the_way) / self.capacity if self.capacity else 1.0

    def unread(self, now: float) -> int:
        """What of ``prefill_tokens`` it will not have read by ``now``."""
        return unread(self.prefill_tokens, self.reads_since, self.token_seconds, now)

    @property
    def kv_tokens_free(self) -> int:
        """Of its KV cache; less than 0 where more is promised than there is. Says nothing if kv_blocks is 0."""
        return (self.kv_blocks - self.kv_blocks_used) * self.kv_block_tokens - self.kv_tokens_promised

    @property
    def kv_load(self) -> float:
        """The used and promised fraction of its KV cache; 0 if that is not known."""
        whole = self.kv_blocks * self.kv_block_tokens
        return 1.0 - self.kv_tokens_free / whole if whole else 0.0

    def kv_tokens_for(self, tokens: int) -> int:
        """What ``tokens`` take of its KV cache, in whole blocks; what can never fit takes all of it."""
        if not self.kv_block_tokens:
            return tokens
        return min(-(-tokens // self.kv_block_tokens), self.kv_blocks) * self.kv_block_tokens


class Zone:
    """The workers of one model in one failure domain."""

    __slots__ = ("capacity", "keys", "taken", "workers")

    def __init__(self) -> None:
        # Of those that have room, best score first, ties by name: the keys, and the workers under them.
        self.keys: list[tuple[float, str]] = []
        self.workers: list[WorkerView] = []
        # Slots of all, those without room included.
        self.taken = 0
        self.capacity = 0

    @property
    def load(self) -> float:
        return self.taken / self.capacity if self.capacity else 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that no worker would take: as long as it waits, only workers are looked at that changed since ``at``
    (how many changes there had been)."""

    request: Request
    policy: "Policy"
    reason: str
    at: int


class Candidates(Sequence[WorkerView]):
    """The workers of one model that may be chosen, kept in their order in place: O(log n) a change.

    As a sequence: those with room, best first (the score without a prefix, ties by name), then those without.
    """

    __slots__ = (
        "_changes", "_failed", "_first_change", "_keys", "_weights", "full", "named", "readers", "revisions", "zones"
    )  # fmt: skip

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._keys: dict[str, tuple[float, str]] = {}
        self.named: dict[str, WorkerView] = {}
        self.zones: dict[str, Zone] = {}
        self.full: dict[str, WorkerView] = {}
        # How many have room and nothing to read.
        self.readers = 0
        # How many there are of each.
        self.revisions: Counter[str] = Counter()
        # The last ones that failed, by request and whether the policy was sparing; and the last names put.
        self._failed: dict[tuple[bytes, bool], Failed] = {}
        self._changes: list[str] = []
        self._first_change = 0

    @property
    def slots(self) -> int:
        """Of all, taken or not."""
        return sum(zone.capacity for zone in self.zones.values())

    @property
    def free(self) -> int:
        """Slots; less than 0 where workers have taken more than they said that they would."""
        return sum(zone.capacity - zone.taken for zone in self.zones.values())

    def failed(self, request: Request, policy: "Policy") -> Failed | None:
        """If it is known that nobody would take it, but perhaps for those that changed since."""
        found = self._failed.get((request.request_id, policy.sparing))
        if found is None or found.request is not request or found.at < self._first_change or found.policy != policy:
            return None
        return found

    def changed_since(self, at: int) -> set[str]:
        return set(self._changes[at - self._first_change :])

    def remember(self, request: Request, policy: "Policy", reason: str) -> None:
        """Nobody takes it as things are. Of many such ones the last are known."""
        key = (request.request_id, policy.sparing)
        self._failed.pop(key, None)
        self._failed[key] = Failed(request, policy, reason, self._first_change + len(self._changes))
        if len(self._failed) > _FAILED:
            del self._failed[next(iter(self._failed))]

    def forget(self, failed: Failed) -> None:
        self._failed.pop((failed.request.request_id, failed.policy.sparing), None)

    def put(self, worker: WorkerView) -> None:
        """At its place in the order; what was there of that name goes."""
        name = worker.name
        if name in self.named:
            self.remove(name)
        self.named[name] = worker
        self.revisions[worker.revision] += 1
        zone = self.zones.get(worker.zone)
        if zone is None:
            zone = self.zones[worker.zone] = Zone()
        zone.taken += worker.active + worker.on_the_way
        zone.capacity += worker.capacity
        if worker.room:
            key = self._keys[name] = (-alone(worker, self._weights), name)
            at = bisect_left(zone.keys, key)
            zone.keys.insert(at, key)
            zone.workers.insert(at, worker)
            self.readers += not worker.prefill_tokens
        else:
            self.full[name] = worker
        self._changes.append(name)
        if len(self._changes) >= 2 * _CHANGES:
            del self._changes[:_CHANGES]
            self._first_change += _CHANGES

    def remove(self, name: str) -> None:
        """KeyError if it is not there."""
        worker = self.named.pop(name)
        self.revisions[worker.revision] -= 1
        if not self.revisions[worker.revision]:
            del self.revisions[worker.revision]
        zone = self.zones[worker.zone]
        zone.taken -= worker.active + worker.on_the_way
        zone.capacity -= worker.capacity
        key = self._keys.pop(name, None)
        if key is not None:
            at = bisect_left(zone.keys, key)
            del zone.keys[at], zone.workers[at]
            self.readers -= not worker.prefill_tokens
        else:
            del self.full[name]
        if not zone.capacity and not any(other.zone == worker.zone for other in self.named.values()):
            del self.zones[worker.zone]

    def first(self, each: int) -> list[WorkerView]:
        """The best of each zone, at most so many of one, all that have room."""
        return [worker for zone in self.zones.values() for worker in zone.workers[:each]]

    def score_alone(self, worker: WorkerView) -> float:
        """As it stands in the order."""
        key = self._keys.get(worker.name)
        return -key[0] if key is not None else alone(worker, self._weights)

    def __iter__(self) -> Iterator[WorkerView]:
        pairs = merge(*(zip(zone.keys, zone.workers, strict=True) for zone in self.zones.values()))
        yield from (worker for _, worker in pairs)
        # Put in order only for those who come so far.
        yield from (self.full[name] for name in sorted(self.full))

    def __len__(self) -> int:
        return len(self.named)

    @overload
    def __getitem__(self, at: int) -> WorkerView: ...
    @overload
    def __getitem__(self, at: slice) -> list[WorkerView]: ...
    def __getitem__(self, at: int | slice) -> WorkerView | list[WorkerView]:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return list(islice(self, start, stop, step)) if step > 0 else list(self)[at]
        return list(self)[at] if at < 0 else next(islice(self, at, None))


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The workers of each model that may be chosen at all (heard, not draining), in the order of ``weights``.

    The fleet keeps the candidates up to date in place, so a view is read, never kept.
    """

    weights: Weights
    # By base model; none of a model without workers.
    candidates: Mapping[str, Candidates]

    @classmethod
    def of(cls, workers: Iterable[WorkerView], weights: Weights) -> "ClusterView":
        """A view of ``workers`` in any order."""
        candidates: dict[str, Candidates] = {}
        for worker in workers:
            if not worker.draining:
                if worker.model not in candidates:
                    candidates[worker.model] = Candidates(weights)
                candidates[worker.model].put(worker)
        return cls(weights, candidates)

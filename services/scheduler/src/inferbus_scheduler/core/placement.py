"""Which worker: filter, score, pick, as plain functions.

:func:`judge` is the whole truth about all workers, for operators. :func:`place` gives the same answer as judging all
and taking the best, but looks only at the holders of the request's prefix and at the first in each zone that will do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.core.score import Weights, for_prefix, for_reading, parts
from inferbus_scheduler.core.view import Candidates, ClusterView, WorkerView

WRONG_MODEL = "wrong_model"
WRONG_REVISION = "wrong_revision"
DRAINING = "draining"
LEASE_EXPIRED = "lease_expired"
NO_ADAPTER = "no_adapter"
# From here on: not now.
FULL = "full"
PREFILL_BACKLOG = "prefill_backlog"
NO_KV_ROOM = "no_kv_room"
OVER_TARGET = "over_target"
SUSPECT = "suspect"
RESERVED = "reserved"
# Why one was chosen, or none.
BEST_SCORE = "best_score"
PREFIX = "prefix"
NO_WORKER = "no_worker"

# In the order in which they are looked at: the later, the closer it came to being chosen.
_OBSTACLES = (
    WRONG_MODEL,
    WRONG_REVISION,
    DRAINING,
    LEASE_EXPIRED,
    NO_ADAPTER,
    FULL,
    PREFILL_BACKLOG,
    NO_KV_ROOM,
    OVER_TARGET,
    SUSPECT,
    RESERVED,
)
_RANK = {obstacle: rank for rank, obstacle in enumerate(_OBSTACLES)}

# Of max_prefill_tokens who spares takes only one in so many.
_SPARING_PREFILL = 32
# Of each zone so many are compared: what they have read since they were heard is not in their order.
_COMPARED = 8
# Of fewer workers one that reads nothing is too large a part.
_MANY_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """What a deployment wants of placement."""

    weights: Weights = field(default_factory=Weights)
    # Seconds: a worker whose steps take longer gets nothing more as long as it runs something. None: no target.
    itl_target: float | None = None
    # A worker that has more than that still to read gets nothing more to read, so that what it must read at once never
    # makes an interactive request wait for long behind a flood: that waits here, in fair order. 0: no bound.
    max_prefill_tokens: int = 8192
    # For a tenant that runs its whole share while others use the model: of what they all need a part is left to them.
    sparing: bool = False
    # For such a tenant while few workers have nothing to read: it has none of them read what takes long.
    keeps_readers: bool = False
    name: str = "inferbus"


@dataclass(frozen=True, slots=True)
class Placement:
    """``parts``: what the score is made of, by name. ``prefix_hits``: chunks that the worker need not read."""

    worker: str
    score: float
    reason: str = BEST_SCORE
    parts: Mapping[str, float] = field(default_factory=dict)
    prefix_hits: int = 0


@dataclass(frozen=True, slots=True)
class Rejection:
    """Not now. ``reason``: ``no_worker`` (none is alive), or what was in the way where least was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was held of one worker. ``reason`` is empty if it is eligible; ``score`` is 0 if it is not."""

    worker: str
    eligible: bool
    reason: str
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    prefix_hits: int = 0


def place(
    request: Request, view: ClusterView, hits: Mapping[str, int], policy: Policy, now: float
) -> Placement | Rejection:
    """The best eligible worker, or why there is none: equal inputs give equal outputs.

    ``hits``: chunks of the request's prefix that workers hold, by name. Of equal scores: not ``request.avoid``, then
    the zone with the least load, then the first name. A view in the order of other weights than the policy's is put in
    order first.
    """
    candidates = view.candidates.get(base_of(request.model))
    if candidates is None:
        return Rejection(NO_WORKER)
    if policy.weights != view.weights:
        candidates = ClusterView.of(candidates, policy.weights).candidates[base_of(request.model)]
    found: WorkerView | None = None
    best: tuple[float, bool, float, str] | None = None
    eligible, reason = _contenders(request, candidates, hits, policy, now)
    for worker in eligible:
        rank = _rank(request, worker, hits, policy, candidates, now)
        if best is None or rank < best:
            found, best = worker, rank
    if found is None or best is None:
        return Rejection(reason)
    held = hits.get(found.name, 0)
    why = PREFIX if held else BEST_SCORE
    return Placement(found.name, -best[0], why, parts(found, held, policy.weights, now), held)


def judge(
    request: Request, workers: Iterable[WorkerView], hits: Mapping[str, int], policy: Policy, now: float
) -> tuple[Verdict, ...]:
    """A verdict on each worker, best first: what :func:`place` knew, spelled out."""
    workers = list(workers)
    candidates = ClusterView.of(workers, policy.weights).candidates.get(base_of(request.model))
    ranked = []
    for worker in workers:
        held = hits.get(worker.name, 0)
        obstacle = filter_out(request, worker, policy, now)
        if obstacle is None and candidates is not None:
            rank = _rank(request, worker, hits, policy, candidates, now)
            verdict = Verdict(worker.name, True, "", -rank[0], parts(worker, held, policy.weights, now), held)
        else:
            rank = (0.0, False, 0.0, worker.name)
            verdict = Verdict(worker.name, False, obstacle or WRONG_MODEL, 0.0, prefix_hits=held)
        ranked.append((not verdict.eligible, rank, verdict))
    return tuple(verdict for _, _, verdict in sorted(ranked, key=lambda each: each[:2]))


def filter_out(request: Request, worker: WorkerView, policy: Policy, now: float) -> str | None:
    """Why ``worker`` must not get ``request`` now; None if it may."""
    if worker.model != request.model and (obstacle := _not_served(request.model, worker)):
        return obstacle
    if request.revision and worker.revision != request.revision:
        return WRONG_REVISION
    if worker.draining:
        return DRAINING
    if worker.alive_until < now:
        return LEASE_EXPIRED
    if worker.model != request.model and request.model not in worker.adapters:
        return NO_ADAPTER
    if worker.active + worker.on_the_way >= worker.capacity:
        return FULL
    return too_much(request, worker, policy)


def too_much(request: Request, worker: WorkerView, policy: Policy) -> str | None:
    """What besides batch slots ``worker`` has too little of for ``request``; None if it has enough.

    What runs nothing takes whatever its slots allow: of a request that is larger than its bounds, nobody else will be
    the judge.
    """
    if 0 < policy.max_prefill_tokens < worker.prefill_tokens + request.input_tokens and worker.prefill_tokens:
        return PREFILL_BACKLOG
    if (
        worker.kv_blocks
        and (worker.active or worker.on_the_way)
        and worker.kv_tokens_for(request.tokens) > worker.kv_tokens_free
    ):
        return NO_KV_ROOM
    if policy.itl_target is not None and worker.active and worker.step_seconds > policy.itl_target:
        return OVER_TARGET
    if request.suspect and worker.suspects:
        return SUSPECT
    return RESERVED if policy.sparing and _is_left_to_others(request, worker, policy) else None


def _is_left_to_others(request: Request, worker: WorkerView, policy: Policy) -> bool:
    """Whether ``request`` would take of ``worker`` what those have who run less than their share."""
    if request.output_tokens:  # what makes no tokens is read to its end and never told as read: its time is in its slot
        takes_a_reader = worker.prefill_tokens or policy.keeps_readers
        spared = policy.max_prefill_tokens // _SPARING_PREFILL
        if takes_a_reader and worker.prefill_tokens + request.input_tokens > spared > 0:
            return True
    if not worker.kv_blocks or not (worker.active or worker.on_the_way):
        return False
    left = worker.kv_tokens_free - worker.kv_tokens_for(request.tokens)
    return left < part_left(worker.kv_blocks * worker.kv_block_tokens)


def part_left(whole: int) -> int:
    """Of slots, or of tokens of a KV cache: what is left to those who run less than their share."""
    return whole // 16


def readers_left(workers: int) -> int:
    """Of so many workers: how many with room and nothing to read are left to those who run less than their share. Of a
    prompt that an engine has begun to read nothing can be taken back."""
    return max(1, part_left(workers)) if workers >= _MANY_WORKERS else 0


@lru_cache(maxsize=64)
def sparing(policy: Policy, *, keeps_readers: bool = False) -> Policy:
    """The same, for a tenant that has its share."""
    return replace(policy, sparing=True, keeps_readers=keeps_readers)


def _not_served(model: str, worker: WorkerView) -> str | None:
    return None if base_of(model) == worker.model else WRONG_MODEL


def _rank(
    request: Request,
    worker: WorkerView,
    hits: Mapping[str, int],
    policy: Policy,
    candidates: Candidates,
    now: float,
) -> tuple[float, bool, float, str]:
    """The smallest is the best."""
    name = worker.name
    score = candidates.score_alone(worker) + for_reading(worker, now, policy.weights)
    if name in hits:
        score += for_prefix(hits[name], policy.weights)
    return -score, name == request.avoid, candidates.zones[worker.zone].load, name


def _contenders(
    request: Request, candidates: Candidates, hits: Mapping[str, int], policy: Policy, now: float
) -> tuple[list[WorkerView], str]:
    """Eligible workers, among them the best one; or none, and why."""
    failed = candidates.failed(request, policy)
    if failed is not None:
        # Nothing but a change can have made a worker eligible.
        changed = candidates.changed_since(failed.at)
        looked_at = [candidates.named[name] for name in changed if name in candidates.named]
        eligible, reason = _eligible(request, looked_at, policy, now)
        reason = max(reason, failed.reason, key=lambda each: _RANK.get(each, 0))
    else:
        eligible, reason = _best_of_zones(request, candidates, policy, now)
        holders = [candidates.named[name] for name in hits if name in candidates.named]
        eligible += _eligible(request, holders, policy, now)[0]
    if not eligible:
        candidates.remember(request, policy, reason)
    elif failed is not None:
        candidates.forget(failed)
    return eligible, reason


def _eligible(
    request: Request, workers: Iterable[WorkerView], policy: Policy, now: float
) -> tuple[list[WorkerView], str]:
    eligible, reason = [], NO_WORKER
    for worker in workers:
        obstacle = filter_out(request, worker, policy, now)
        if obstacle is None:
            eligible.append(worker)
        else:
            reason = closer(reason, obstacle)
    return eligible, reason


def _best_of_zones(
    request: Request, candidates: Candidates, policy: Policy, now: float
) -> tuple[list[WorkerView], str]:
    """In each zone the best without a prefix, and as many as stand behind one to avoid; while the best ones read, a
    few more."""
    eligible, reason = [], NO_WORKER
    for zone in candidates.zones.values():
        compared = 0
        for worker in zone.workers:
            obstacle = filter_out(request, worker, policy, now)
            if obstacle is None:
                eligible.append(worker)
                compared += 1
                reads = worker.prefill_tokens and worker.token_seconds and compared < _COMPARED
                if worker.name != request.avoid and not reads:
                    break
            else:
                reason = closer(reason, obstacle)
    for worker in () if eligible else candidates.full.values():
        obstacle = filter_out(request, worker, policy, now)
        if obstacle is not None:
            reason = closer(reason, obstacle)
        if obstacle == FULL:  # all that the others may lack is the adapter
            break
    return eligible, reason


def closer(reason: str, obstacle: str) -> str:
    """Of two reasons the one of the worker that came closer to being chosen."""
    if _RANK[obstacle] < _RANK[NO_ADAPTER]:
        return reason
    return obstacle if _RANK[obstacle] > _RANK.get(reason, -1) else reason

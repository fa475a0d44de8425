"""How many workers a deployment should have: more at once, fewer slowly, and never more GPUs than the budget.

A number of workers is needed by what waits and runs, by the KV cache, and by TTFT and ITL against their targets; the
largest need counts. Fewer are enough only where they would have a fifth to spare, and only after they would have been
enough for a whole window: that is why constant load moves nothing.
"""

import heapq
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.signals import WINDOW_SECONDS, Signals

QUEUE, TTFT, ITL, KV = "queue", "ttft", "itl", "kv"
IDLE, COLD_START, MIN, MAX = "idle", "cold_start", "min", "max"
GPU_BUDGET, NO_LOAD = "gpu_budget", "no_load"
# Of a model: its revisions have decisions of their own. Of a revision: it gets its part of the model's.
REVISIONS = "revisions"
# A KV cache this full makes requests wait; so full it should be then, and may be with one worker less.
_KV_FULL, _KV_GOAL, _KV_SPARE = 0.9, 0.8, 0.7
# With one worker less so much of the slots may be in use, and of a target.
_SPARE = 0.8
# A target that is missed by far is not met by far more workers at once: the next look is a minute later.
_MOST_AT_ONCE = 2.0
# A target that more workers did not bring so much nearer is not tried with still more, unless it has got so much worse.
_BETTER, _WORSE = 0.9, 1.25
# Where nothing else is promised, nobody should wait for longer.
_WAIT_SECONDS = 2.0
# What a new worker takes away from a queue that is held back shows after a while.
_PAUSE_SECONDS = 10.0
# Whoever is measured to do next to nothing would be needed without end.
_MOST = 1e6


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """``gpu_budget``: GPUs of all scaled deployments together; 0: no bound. ``down_window``: seconds for which fewer
    workers must have been enough before one is let go."""

    gpu_budget: int = 0
    down_window: float = 120.0


@dataclass(frozen=True, slots=True)
class State:
    """What is kept of one deployment from decision to decision. ``replicas``: the last one."""

    replicas: int
    workers: int = 0
    # Since when there are so many workers: percentiles of the last minute are theirs only after a minute.
    settled_at: float = 0.0
    # Since when fewer would have been enough; None: they would not.
    low_since: float | None = None
    # Of one worker, as long as none is there to be asked.
    slots: float = 0.0
    # (target's name, what was seen) when more were asked for because of it; until it is met.
    tried: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """``replicas``: within the bounds of the deployment. ``wanted``: before them."""

    replicas: int
    wanted: int
    reason: str
    state: State


def desired(
    deployment: Deployment, signals: Signals, state: State, now: float, settings: ScalingSettings | None = None
) -> Desired:
    """Equal inputs give equal outputs. The result's state has the ``replicas`` of the result: what a budget cuts off is
    for :func:`cut` to say."""
    window = (settings or ScalingSettings()).down_window
    state = _observed(deployment, signals, state, now)
    wanted, reason = _more(deployment, signals, state, now)
    if wanted > state.replicas and reason in (TTFT, ITL):
        state = _trying(deployment, signals, state, reason)
    if wanted <= state.replicas:
        enough = _enough(deployment, signals, state)
        wanted, reason, state = _fewer(deployment, signals, state, now, enough=enough, window=window)
    else:
        state = replace(state, low_since=None)
    replicas = min(max(wanted, deployment.min_replicas), deployment.max_replicas)
    if replicas != wanted:
        reason = MIN if replicas > wanted else MAX
    return Desired(replicas, wanted, reason, replace(state, replicas=replicas))


def _observed(deployment: Deployment, signals: Signals, state: State, now: float) -> State:
    slots = signals.slots / signals.workers if signals.workers else state.slots
    missed = {name for seen, target, name in _targets(deployment, signals) if seen > target}
    tried = tuple(one for one in state.tried if one[0] in missed)
    if signals.workers == state.workers:
        return replace(state, slots=slots, tried=tried)
    return replace(state, slots=slots, tried=tried, workers=signals.workers, settled_at=now)


def _trying(deployment: Deployment, signals: Signals, state: State, reason: str) -> State:
    seen = next(seen for seen, _, name in _targets(deployment, signals) if name == reason)
    return replace(state, tried=(*(one for one in state.tried if one[0] != reason), (reason, seen)))


def _in_vain(state: State, reason: str, seen: float) -> bool:
    """More workers were asked for because of it, and they are there; it is as it was. So it is not for too few."""
    return any(name == reason and _BETTER * before < seen < _WORSE * before for name, before in state.tried)


def _more(deployment: Deployment, signals: Signals, state: State, now: float) -> tuple[int, str]:
    """The largest number that something asks for now, and what; (0, "") if nothing does."""
    needs = [_need_of_queue(deployment, signals, state, now)]
    workers = signals.workers
    if signals.kv_used is not None and signals.kv_used > _KV_FULL:
        needs.append((_ceil(workers * signals.kv_used / _KV_GOAL), KV))
    # Not again before those asked for are there, and were for as long as a percentile looks back.
    if workers and workers >= state.replicas and now - state.settled_at >= WINDOW_SECONDS:
        for seen, target, reason in _targets(deployment, signals):
            if seen > target and not _in_vain(state, reason, seen):
                needs.append((max(workers + 1, _ceil(workers * min(_MOST_AT_ONCE, seen / target))), reason))
    return max(needs, key=lambda need: need[0])


def _need_of_queue(deployment: Deployment, signals: Signals, state: State, now: float) -> tuple[int, str]:
    """So many that what waits is placed within the target, and never more than can hold all of it at once."""
    waiting = signals.queued - (signals.slots - signals.running)
    if not signals.queued:
        return 0, ""
    if not signals.workers:
        return max(1, _ceil(signals.queued / state.slots) if state.slots else 1), COLD_START
    if waiting <= 0:
        return _need_of_held_back(deployment, signals, state, now), QUEUE
    together = max(signals.workers + 1, _ceil((signals.running + signals.queued) / state.slots))
    rate, target = signals.placements_per_second, deployment.queue_target
    if not rate or target is None:
        return together, QUEUE
    of_one = rate / signals.workers
    in_time = _ceil((signals.arrivals_per_second or 0.0) / of_one + waiting / (of_one * target))
    return min(together, in_time), QUEUE


def _need_of_held_back(deployment: Deployment, signals: Signals, state: State, now: float) -> int:
    """There are slots, and yet requests wait for longer than they should: for room in the KV cache, or until the
    prompts before them are read. How much one more worker helps is seen only when it is there."""
    missed = _wait(signals) / (deployment.queue_target or _WAIT_SECONDS)
    if missed <= 1 or signals.workers < state.replicas or now - state.settled_at < _PAUSE_SECONDS:
        return 0
    return max(signals.workers + 1, _ceil(signals.workers * min(_MOST_AT_ONCE, missed)))


def _wait(signals: Signals) -> float:
    """How long a request that came now would wait, as things go; 0 with an empty queue."""
    if not signals.queued:
        return 0.0
    if signals.placements_per_second:
        return signals.queued / signals.placements_per_second
    return signals.oldest_seconds or 0.0


def _enough(deployment: Deployment, signals: Signals, state: State) -> int:
    """How many would carry what there is now with something to spare; at least one."""
    load = signals.running + signals.queued
    needs = [1, _ceil(load / (_SPARE * state.slots)) if state.slots else (state.replicas if load else 1)]
    if _wait(signals) > _SPARE * (deployment.queue_target or _WAIT_SECONDS):
        needs.append(state.replicas)
    if signals.kv_used is not None:
        needs.append(_ceil(signals.workers * signals.kv_used / _KV_SPARE))
    needs += [_ceil(signals.workers * seen / (_SPARE * target)) for seen, target, _ in _targets(deployment, signals)]
    return max(needs)


def _fewer(
    deployment: Deployment, signals: Signals, state: State, now: float, *, enough: int, window: float
) -> tuple[int, str, State]:
    idle = signals.idle_seconds if signals.running + signals.queued == 0 else None
    if deployment.min_replicas == 0 and idle is not None and idle >= deployment.idle_time:
        return 0, IDLE, replace(state, low_since=None)
    if enough >= state.replicas:
        return state.replicas, "", replace(state, low_since=None)
    if state.low_since is None:
        return state.replicas, "", replace(state, low_since=now)
    if now - state.low_since < window:
        return state.replicas, "", state
    # All at once only where nothing at all has come meanwhile.
    fewer = enough if idle is not None and idle >= window else state.replicas - 1
    return fewer, NO_LOAD, replace(state, low_since=now)


def _targets(deployment: Deployment, signals: Signals) -> list[tuple[float, float, str]]:
    """(what was seen, what is promised, its name) of those that are both known."""
    pairs = (
        (signals.ttft_seconds, deployment.ttft_target, TTFT),
        (signals.itl_seconds, deployment.itl_target, ITL),
    )
    return [(seen, target, name) for seen, target, name in pairs if seen is not None and target is not None]


def _ceil(value: float) -> int:
    # A quotient that is a whole number but for its last bits must not count as one more.
    return math.ceil(min(value, _MOST) - 1e-9)


# --- the budget ----------------------------------------------------------------------------------------------------


KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Want(Generic[KeyT]):
    """``model``: or one revision of it; they must have an order. ``replicas``: what :func:`desired` says. ``held``:
    workers that are there, those that drain included."""

    model: KeyT
    replicas: int
    gpus: int
    held: int


def share(wants: Iterable[Want[KeyT]], budget: int) -> Mapping[KeyT, int]:
    """Replicas by model that together need no more than ``budget`` GPUs (0: as many as are wanted).

    Each gets the same part of what it wants, one for each before two for any. What others still hold is free only when
    they have left: so also the workers that are there and those that are to come need no more than the budget, unless
    they did before.
    """
    known = {want.model: want for want in wants}
    if budget <= 0:
        return {model: want.replicas for model, want in known.items()}
    fair = _filled(known, dict.fromkeys(known, 0), {model: want.replicas for model, want in known.items()}, budget)
    granted = {model: min(fair[model], want.held) for model, want in known.items()}
    held = sum(want.held * want.gpus for want in known.values())
    return _filled(known, granted, fair, budget - held)


def _filled(
    known: Mapping[KeyT, Want[KeyT]], start: Mapping[KeyT, int], goal: Mapping[KeyT, int], gpus: int
) -> dict[KeyT, int]:
    """``start``, raised towards ``goal`` replica by replica where the least part of what is wanted is granted."""
    granted = dict(start)
    waiting: list[tuple[float, Any]] = [
        (granted[model] / goal[model], model) for model in known if granted[model] < goal[model]
    ]
    heapq.heapify(waiting)
    while waiting:
        _, model = heapq.heappop(waiting)
        need = known[model].gpus
        if need > gpus:
            continue
        gpus -= need
        granted[model] += 1
        if granted[model] < goal[model]:
            heapq.heappush(waiting, (granted[model] / goal[model], model))
    return granted


def cut(decision: Desired, granted: int, reason: str = GPU_BUDGET) -> Desired:
    """``decision`` with what a budget leaves of it."""
    if granted >= decision.replicas:
        return decision
    return replace(decision, replicas=granted, reason=reason, state=replace(decision.state, replicas=granted))

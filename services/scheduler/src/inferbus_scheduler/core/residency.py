"""Who may hold memory, where all models together need more than there is.

A model that is wanted and has no worker gets one as soon as there is memory for it. If there is none, those that have
been idle for longest leave (least recently used), then replicas beyond the first of others; one with work leaves only
for a model that has waited for ``max_wait``, and not before it had ``min_residence``. So two busy models in a budget
for one take turns, neither of them waits without end, and neither is loaded for nothing. Whoever leaves is drained:
its memory is free when it has ended what it runs. What is granted never comes to more than the budget, unless more was
held before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

Unit = tuple[str, str]
"""(model, revision; empty: whatever revision of it)."""
LRU, BUDGET, TOO_LARGE = "lru", "budget", "too_large"


@dataclass(frozen=True, slots=True)
class Rules:
    """``budget`` in bytes, 0: no bound. ``idle_grace``: what was idle for less may just be between two requests. Times
    in seconds."""

    budget: int = 0
    min_residence: float = 20.0
    max_wait: float = 30.0
    idle_grace: float = 2.0


@dataclass(frozen=True, slots=True)
class Claim:
    """One model, or one revision of it, now.

    ``replicas``: how many workers it should have. ``need``: bytes of one; 0: not known, and then it is loaded alone.
    ``taking`` workers are there, ``leaving`` ones drain. ``floor``: so many of those there never leave for others.
    ``idle_seconds`` None: not known. ``disposable``: another revision of its model takes its place.
    """

    unit: Unit
    replicas: int
    need: int
    taking: int = 0
    leaving: int = 0
    floor: int = 0
    queued: int = 0
    running: int = 0
    idle_seconds: float | None = None
    disposable: bool = False

    @property
    def busy(self) -> bool:
        return bool(self.queued or self.running)


@dataclass(frozen=True, slots=True)
class Residence:
    """What is kept of one from decision to decision. ``granted``: replicas, those that are still starting included."""

    granted: int = 0
    # Since when it waits for memory, and since when it has a worker; None: it does not, it has none.
    waiting_since: float | None = None
    loaded_since: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reason``: why it has not what it wants, or has less than before; empty: it has it."""

    replicas: int
    reason: str
    residence: Residence


@dataclass(slots=True)
class _Memory:
    """Bytes. ``coming``: what those that leave will give back. ``promised``: kept for who has waited for longest."""

    free: int
    coming: int
    promised: int = 0
    granted: dict[Unit, int] = field(default_factory=dict)
    evicted: set[Unit] = field(default_factory=set)


def reside(
    claims: Iterable[Claim], before: Mapping[Unit, Residence], rules: Rules, now: float
) -> Mapping[Unit, Verdict]:
    """What each may have. Equal inputs give equal outputs, in whatever order; ``now`` in monotonic seconds."""
    known = {claim.unit: claim for claim in sorted(claims, key=lambda one: one.unit)}
    kept = {unit: before.get(unit, Residence()) for unit in known}
    if rules.budget <= 0:
        return {unit: _verdict(claim, kept[unit], claim.replicas, "", now) for unit, claim in known.items()}
    known = {unit: claim if claim.need else replace(claim, need=rules.budget) for unit, claim in known.items()}
    large = _too_large(known, rules.budget)
    memory = _held(known, kept, large, rules.budget)
    waiting = [claim for unit, claim in known.items() if unit not in large and memory.granted[unit] < claim.replicas]
    # Those that have nothing go first, each in the order in which they came.
    since = {claim.unit: kept[claim.unit].waiting_since for claim in waiting}
    waiting.sort(key=lambda one: (memory.granted[one.unit] > 0, _or(since[one.unit], now), one.unit))
    for claim in waiting:
        _serve(claim, known, kept, memory, rules, now)
    return {
        unit: _verdict(claim, kept[unit], memory.granted[unit], _reason(claim, memory, large), now)
        for unit, claim in known.items()
    }


def _too_large(known: Mapping[Unit, Claim], budget: int) -> set[Unit]:
    """Those that do not fit beside what never leaves, and are not there as such themselves."""
    stays = {unit: min(claim.floor, claim.taking) * claim.need for unit, claim in known.items()}
    whole = sum(stays.values())
    return {unit for unit, claim in known.items() if not stays[unit] and claim.need > budget - whole}


def _held(known: Mapping[Unit, Claim], kept: Mapping[Unit, Residence], large: set[Unit], budget: int) -> _Memory:
    """As it is before anybody gets more."""
    free, coming, granted = budget, 0, {}
    for unit, claim in known.items():
        had = kept[unit].granted
        granted[unit] = 0 if unit in large else min(claim.replicas, max(had, min(claim.floor, claim.taking)))
        free -= (claim.leaving + max(claim.taking, had, granted[unit])) * claim.need
        coming += (claim.leaving + max(0, claim.taking - granted[unit])) * claim.need
    return _Memory(free, coming, granted=granted)


def _serve(
    claim: Claim,
    known: Mapping[Unit, Claim],
    kept: Mapping[Unit, Residence],
    memory: _Memory,
    rules: Rules,
    now: float,
) -> None:
    """Give it what there is memory for; for its first worker others may have to leave."""
    waited = now - _or(kept[claim.unit].waiting_since, now)
    while memory.granted[claim.unit] < claim.replicas:
        if claim.need <= memory.free - memory.promised:
            memory.free -= claim.need
            memory.granted[claim.unit] += 1
            continue
        if memory.granted[claim.unit] == 0:
            short = claim.need - (memory.free + memory.coming - memory.promised)
            leave = _victims(claim, known, kept, memory, rules, now, short=short, waited=waited)
            for unit in leave or ():
                memory.granted[unit] -= 1
                memory.evicted.add(unit)
                memory.coming += known[unit].need
            # Nobody overtakes one for whom others leave, or who has waited for long enough.
            if leave is not None or waited >= rules.max_wait:
                memory.promised += claim.need
        return


def _victims(
    claim: Claim,
    known: Mapping[Unit, Claim],
    kept: Mapping[Unit, Residence],
    memory: _Memory,
    rules: Rules,
    now: float,
    *,
    short: int,
    waited: float,
) -> list[Unit] | None:
    """Who leaves so that ``short`` more bytes come free, an entry a worker; None: those who may are not enough."""
    chosen: list[Unit] = []
    for unit in _order(claim, known, kept, memory, rules, now, waited=waited):
        if sum(known[one].need for one in chosen) >= short:
            break
        chosen.append(unit)
    if sum(known[one].need for one in chosen) < short:
        return None
    # A large one at the end may have made small ones before it needless; of those the last ones stay.
    for unit in list(reversed(chosen)):
        if sum(known[one].need for one in chosen) - known[unit].need >= short:
            chosen.remove(unit)
    return chosen


def _order(
    claim: Claim,
    known: Mapping[Unit, Claim],
    kept: Mapping[Unit, Residence],
    memory: _Memory,
    rules: Rules,
    now: float,
    *,
    waited: float,
) -> list[Unit]:
    """Workers that may leave for ``claim``, whose is to go first at the front, as units. One that is still starting is
    never among them: nobody could stop it."""
    ranked: list[tuple[int, float, Unit, int]] = []
    for unit, other in known.items():
        granted = memory.granted[unit]
        spare = min(granted, other.taking) - other.floor
        if unit == claim.unit or spare <= 0 or other.taking < kept[unit].granted:
            continue
        resided = now - _or(kept[unit].loaded_since, now)
        idle = other.idle_seconds or 0.0
        if other.disposable:
            ranked.append((0, 0.0, unit, spare))
        elif not other.busy and idle >= rules.idle_grace:
            ranked.append((1, -idle, unit, spare))
        elif resided >= rules.min_residence:
            surplus = min(spare, granted - max(1, other.floor))
            ranked.append((2, -float(granted), unit, surplus))
            if waited >= rules.max_wait:
                ranked.append((3, -resided, unit, spare - max(0, surplus)))
    return [unit for _, _, unit, count in sorted(ranked) for _ in range(count)]


def _reason(claim: Claim, memory: _Memory, large: set[Unit]) -> str:
    if claim.unit in large:
        return TOO_LARGE
    if claim.unit in memory.evicted:
        return LRU
    return BUDGET if memory.granted[claim.unit] < claim.replicas else ""


def _verdict(claim: Claim, was: Residence, granted: int, reason: str, now: float) -> Verdict:
    waits = granted < claim.replicas and reason != TOO_LARGE
    loaded = None if not granted or not claim.taking else _or(was.loaded_since, now)
    return Verdict(granted, reason, Residence(granted, _or(was.waiting_since, now) if waits else None, loaded))


def _or(since: float | None, now: float) -> float:
    return now if since is None else since

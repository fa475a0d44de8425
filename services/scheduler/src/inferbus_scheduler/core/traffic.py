"""Which of a model's revisions a request goes to: the parts of a rollout, pins and shadows, as plain functions."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from inferbus.bus.v1.revision_pb2 import RolloutRecord, RolloutState, RolloutStrategy

from inferbus_scheduler.core.request import Request

WHOLE = 1000
"""All requests, in thousandths."""
_TRIED = (RolloutState.ROLLOUT_STATE_RUNNING, RolloutState.ROLLOUT_STATE_PAUSED)


@dataclass(frozen=True, slots=True)
class Traffic:
    """``stable`` serves what ``candidate`` does not, which gets ``weight`` thousandths of the requests. ``pins``:
    tenant to revision. ``shadow``: of so many thousandths, a copy goes there."""

    stable: str
    candidate: str = ""
    weight: int = 0
    pins: Mapping[str, str] = field(default_factory=dict)
    shadow: str = ""
    shadow_permille: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """``revisions``: where it may go, in this order; empty: anywhere. ``waits``: for its revision, also while that has
    no worker."""

    revisions: tuple[str, ...] = ()
    waits: bool = False


ANYWHERE = Route()


def traffic_of(record: RolloutRecord) -> Traffic:
    """As the record stands: a candidate that is not warm gets nothing."""
    tried = record.state in _TRIED and bool(record.candidate_revision)
    return Traffic(
        stable=record.stable_revision,
        candidate=record.candidate_revision if tried else "",
        weight=record.weight_permille if tried else 0,
        pins={pin.tenant_id: pin.revision for pin in record.pins},
        shadow=record.shadow.revision,
        shadow_permille=record.shadow.permille,
    )


def part_of(request_id: bytes) -> int:
    """0 to 999, the same for all attempts of a request, and evenly over requests: below a weight it is of that part.

    CRC-32 of the id, whose random bits are more than it has.
    """
    return zlib.crc32(request_id) % WHOLE


def is_shadowed(request: Request, traffic: Traffic) -> bool:
    """Whether a copy of ``request`` goes to the shadow: of its first attempt, of no copy, and of no request that is the
    shadow's own. By other bits of the id than the candidate's part, so that the one says nothing of the other."""
    if not traffic.shadow or request.attempt > 1 or request.revision:
        return False
    return zlib.crc32(b"shadow" + request.request_id) % WHOLE < traffic.shadow_permille


def route(request: Request, traffic: Traffic, alive: Collection[str]) -> Route:
    """Where ``request`` may go. ``alive``: revisions that have workers.

    A tenant's pin holds, whatever happens. Of the candidate's part all go there where it has room, and else to the
    stable one: a candidate that is slow or full keeps nobody waiting. An answer that was begun goes on where it was, if
    it can. A revision that has failed the request does not
    get it again as long as there is another one. If none of these has a worker, any other is better than none.
    """
    pinned = traffic.pins.get(request.tenant)
    if pinned is not None:
        return Route((pinned,), waits=True)
    wanted = [traffic.stable] if traffic.stable else []
    if traffic.candidate and part_of(request.request_id) < traffic.weight:
        wanted.insert(0, traffic.candidate)
    if request.resumed_tokens and request.last_revision:
        wanted = [request.last_revision, *(each for each in wanted if each != request.last_revision)]
    there = [revision for revision in wanted if revision in alive]
    fresh = [revision for revision in there if revision not in request.failed_revisions]
    if fresh or there:
        return Route(tuple(fresh or there))
    others = tuple(sorted(revision for revision in alive if revision not in request.failed_revisions))
    return Route(others) if others else ANYWHERE


def shares(record: RolloutRecord) -> tuple[tuple[str, int], ...]:
    """Which revisions should have workers, with the thousandths of the requests that they are to serve; empty:
    whatever revision there is.

    A candidate has its workers before it has requests: as for its first step, or all of them if it takes over at once.
    A revision that somebody is pinned to, or that is kept for a return, has some as long as that is so.
    """
    if not record.stable_revision:
        return ()
    parts: dict[str, int] = {record.stable_revision: WHOLE}
    candidate = record.candidate_revision
    if candidate and record.strategy == RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN:
        parts[candidate] = WHOLE
    elif candidate:
        first = record.step_permille[0] if record.step_permille else WHOLE
        parts[candidate] = record.weight_permille or first
        parts[record.stable_revision] = max(1, WHOLE - parts[candidate])
    if record.keep_previous and record.previous_revision:
        parts.setdefault(record.previous_revision, WHOLE)
    if record.shadow.revision:
        parts.setdefault(record.shadow.revision, max(1, record.shadow.permille))
    for pin in record.pins:
        parts.setdefault(pin.revision, 1)
    return tuple(parts.items())


def use_of(record: RolloutRecord, revision: str) -> str:
    """What the revision still serves, and how that is ended; empty: nothing, as of every one that has no
    :func:`shares`."""
    if revision == record.stable_revision:
        return "serves the model: have another one rolled out first"
    if revision == record.candidate_revision:
        return "is being rolled out: roll it back first"
    if record.keep_previous and revision == record.previous_revision:
        return "is kept for a return: let it go first"
    if revision == record.shadow.revision:
        return "is shadowed: end that first"
    pinned = next((pin.tenant_id for pin in record.pins if pin.revision == revision), None)
    return "" if pinned is None else f"is what the tenant `{pinned}` is pinned to: end that first"

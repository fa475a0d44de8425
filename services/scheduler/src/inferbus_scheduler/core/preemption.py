"""Which generations of a lower class to pause, so that an interactive request can start.

A paused generation keeps its tokens and goes on later, on any worker; what is lost is the work of reading them again.
So that all of them come to an end whatever is asked, no attempt is paused before it has made ``least_tokens`` new
tokens for each attempt so far: a generation that was paused n times has made at least n(n+1)/2 times as many, which
soon is all that it was asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from inferbus_scheduler.core.placement import FULL, NO_KV_ROOM, Policy, filter_out
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.view import WorkerView


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may be paused. ``background``: those of class background, too, not only batch."""

    background: bool = False
    # New tokens that the n-th attempt has made, for each of the n, before it may be paused.
    least_tokens: int = 16
    # Seconds since it was placed.
    least_seconds: float = 1.0
    # For one request.
    most: int = 8

    @property
    def above(self) -> Priority:
        """Classes below this one may be paused."""
        return Priority.INTERACTIVE if self.background else Priority.BACKGROUND


@dataclass(frozen=True, slots=True)
class Victims:
    """Generations of one worker. ``lost_tokens``: to be read again."""

    worker: str
    boot: int
    running: tuple[RunningView, ...]
    lost_tokens: int


@dataclass(frozen=True, slots=True)
class RoomToCome:
    """On a worker, for ``request``, which waits for it. ``running`` is paused for that, and no longer counts; none:
    what was paused for others leaves enough."""

    request: Request
    worker: str
    boot: int
    running: tuple[RunningView, ...] = ()


def victims(
    request: Request,
    workers: Iterable[WorkerView],
    running: Mapping[str, Sequence[RunningView]],
    policy: Policy,
    now: float,
    bounds: Bounds = Bounds(),
) -> Victims | None:
    """What to pause on the worker where the fewest tokens are lost, so that ``request`` fits there, and no more than
    that; None: it is not interactive, fits somewhere, or no pausing helps.

    ``running``: by worker; what is there of higher classes is not looked at.
    """
    if request.priority is not Priority.INTERACTIVE:
        return None
    best: tuple[int, int, str] | None = None
    found: Victims | None = None
    for worker in workers:
        obstacle = filter_out(request, worker, policy, now)
        if obstacle is None:
            return None
        if obstacle not in (FULL, NO_KV_ROOM):
            continue
        chosen = _enough(request, worker, _pausable(running.get(worker.name, ()), now, bounds), bounds)
        if chosen is None or not _would_take(request, worker, chosen, policy, now):
            continue
        lost = sum(each.held_tokens for each in chosen)
        rank = (lost, len(chosen), worker.name)
        if best is None or rank < best:
            best, found = rank, Victims(worker.name, worker.boot, tuple(chosen), lost)
    return found


def with_room_to_come(workers: Iterable[WorkerView], rooms: Sequence[RoomToCome]) -> list[WorkerView]:
    """The workers as they will be when those victims have gone and those for whom they went have come."""
    by_worker: dict[tuple[str, int], list[RoomToCome]] = {}
    for room in rooms:
        by_worker.setdefault((room.worker, room.boot), []).append(room)
    return [_as_it_will_be(worker, by_worker.get((worker.name, worker.boot), ())) for worker in workers]


def _as_it_will_be(worker: WorkerView, rooms: Sequence[RoomToCome]) -> WorkerView:
    if not rooms:
        return worker
    gone = [running for room in rooms for running in room.running]
    freed = sum(worker.kv_tokens_for(running.promised_tokens) for running in gone)
    taken = sum(worker.kv_tokens_for(room.request.tokens) for room in rooms)
    return replace(
        worker,
        active=max(0, worker.active - len(gone)),
        on_the_way=worker.on_the_way + len(rooms),
        kv_tokens_promised=worker.kv_tokens_promised - freed + taken,
        prefill_tokens=worker.prefill_tokens + sum(room.request.input_tokens for room in rooms),
    )


def may_pause(running: RunningView, now: float, bounds: Bounds) -> bool:
    """Whether its class is one to be paused, and this attempt has come far enough."""
    lower = running.priority is Priority.BATCH or (bounds.background and running.priority is Priority.BACKGROUND)
    return (
        lower
        and running.sequence > 0
        and now - running.placed_at >= bounds.least_seconds
        and running.made_tokens >= bounds.least_tokens * running.attempt
    )


def _pausable(running: Sequence[RunningView], now: float, bounds: Bounds) -> list[RunningView]:
    """The cheapest first."""
    chosen = [each for each in running if may_pause(each, now, bounds)]
    return sorted(chosen, key=lambda each: (-each.priority, each.held_tokens, each.key))


def _enough(
    request: Request, worker: WorkerView, pausable: list[RunningView], bounds: Bounds
) -> list[RunningView] | None:
    """Of ``pausable`` so many that the slots and the blocks suffice; None: all together do not."""
    slots = worker.active + worker.on_the_way + 1 - worker.capacity
    tokens = worker.kv_tokens_for(request.tokens) - worker.kv_tokens_free if worker.kv_blocks else 0
    chosen: list[RunningView] = []
    for each in pausable:
        if slots <= 0 and tokens <= 0:
            break
        chosen.append(each)
        slots -= 1
        tokens -= worker.kv_tokens_for(each.promised_tokens)
    if slots > 0 or tokens > 0:
        return None
    # What the later ones have made superfluous, the dearest first.
    for each in sorted(chosen, key=lambda each: -each.held_tokens):
        given = worker.kv_tokens_for(each.promised_tokens)
        if slots + 1 <= 0 and tokens + given <= 0:
            chosen.remove(each)
            slots, tokens = slots + 1, tokens + given
    return chosen if 0 < len(chosen) <= bounds.most else None


def _would_take(request: Request, worker: WorkerView, chosen: list[RunningView], policy: Policy, now: float) -> bool:
    """Whether ``worker`` takes ``request`` when these have gone."""
    freed = sum(worker.kv_tokens_for(each.promised_tokens) for each in chosen)
    left = replace(
        worker,
        active=max(0, worker.active - len(chosen)),
        kv_tokens_promised=worker.kv_tokens_promised - freed,
    )
    return filter_out(request, left, policy, now) is None

"""The one way to move generations from a worker: fence, read the log, give back to the queue, clear.

Each step may be made again, by this scheduler or by the next one after a crash, and comes to the same:

1. ``read``: the placements, without taking them.
2. ``keep``: a copy of each, since a worker that is alive after all may end it behind the fence, where its end counts
   for nobody, and acknowledge, and so remove, its own.
3. ``fence``: from here on, in stream order, nothing of the old attempts counts for any reader.
4. ``follow``: how far each had come before the fence, in one pass over the frames of that worker.
5. ``settle``: each goes back to the queue with that, also what is only to be ended there; its placement is deleted
   when that is stored, and the copy last.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Fence, Frame
from inferbus.bus.v1.request_pb2 import Work
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.errors import bus_unavailable
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_contracts.recovery import FURTHER_BACK_US, Recovered, begun, fold
from inferbus_contracts.subjects import subject_token
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_scheduler.core.migration import (
    TOO_LARGE,
    Closed,
    End,
    Fate,
    Orphan,
    Reason,
    Requeue,
    ended,
    with_resume,
)
from inferbus_scheduler.placed import COPIES, Incarnation, Placed, PlacedWork

log = logging.getLogger(__name__)
# Bodies that a move holds; what is above is read again when it is its turn.
_BODY_BYTES = 16 << 20
# Together on their way back to the queue.
_PARALLEL = 32
# The broker says when it stored work and frames, maybe on two machines.
_SKEW_US = 2_000_000
# Frames that are folded before others get a turn.
_FOLDED_AT_ONCE = 50
_FENCES_A_FRAME = 8192
# Far above what the log of the running ones takes; and what each reading from further back, which few ever need, may
# hold up the others of its worker.
_READ_SECONDS, _FURTHER_SECONDS = 120.0, 30.0
# What is known of the log for longer must be read again before it is acted upon: message ids are remembered for ten
# minutes only, and a scheduler that stood still meanwhile is not to send a request back once more.
_FRESH_SECONDS = 240.0
_HEADROOM = 4096
DecideFate = Callable[[Orphan, Recovered], Fate]


@dataclass(slots=True)
class Move:
    """What is moved together: placements of one incarnation. Filled step by step."""

    of: Incarnation
    reason: Reason
    began: float
    orphans: list[Orphan] = field(default_factory=list)
    found: dict[bytes, Recovered] = field(default_factory=dict)
    # Of placements: messages while there is room for them, and sequences of their copies.
    messages: dict[int, Placed] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    fences: list[Frame] = field(default_factory=list)

    @property
    def worker(self) -> str:
        return self.of[0]


@dataclass(frozen=True, slots=True)
class Moved:
    """One request that was moved, or ended in the moving. ``request`` has no input."""

    request_id: bytes
    model: str
    attempt: int
    of: Incarnation
    reason: Reason
    fate: Fate


class Mover:
    """The steps; it decides nothing. Each raises InferBusError UNAVAILABLE, RESOURCE_EXHAUSTED or StreamApiError."""

    def __init__(self, *, bus: Bus, publisher: Publisher, frames: FramePublisher, owns: Callable[[str], bool]) -> None:
        self.placed = PlacedWork(bus, publisher)
        self._bus = bus
        self._publisher = publisher
        self._frames = frames
        self._log = FrameLog(bus)
        self._owns = owns

    async def read(
        self,
        of: Incarnation,
        reason: Reason,
        only: Collection[int] | None = None,
        *,
        undelivered: bool = False,
        taken: int = 0,
    ) -> Move:
        """All placements of one incarnation whose models are ours, or ``only`` those at some sequences.
        ``undelivered``: it is known that its worker had none of them. ``taken``: those up to that sequence it certainly
        had."""
        move = Move(of, reason, clock.monotonic())
        delivered = 0
        if reason is Reason.WORKER_LOST and not undelivered:
            delivered = max(taken, await self.placed.last_delivered(of))
        held = 0
        async for placed in self._placements(of, only):
            orphan = orphan_of(placed, delivered)
            if orphan is None:
                await self._discard(placed)
                continue
            if not self._owns(orphan.model):
                if only is None:
                    break  # one incarnation has one model
                continue
            move.orphans.append(orphan)
            held += len(placed.data)
            if held <= _BODY_BYTES:
                move.messages[orphan.sequence] = placed
        move.found = {orphan.request_id: begun(orphan.resume) for orphan in move.orphans}
        return move

    async def keep(self, move: Move) -> None:
        """Copies; none of what is one. Where WORK is too full for them, it goes on without."""
        if move.of[1] == COPIES:
            return
        slots = asyncio.Semaphore(_PARALLEL)

        async def one(orphan: Orphan) -> None:
            async with slots:
                placed = await self._message(move, orphan)
                if placed is None or not self._owns(orphan.model):
                    return
                try:
                    move.copies[orphan.sequence] = await self.placed.copy(placed)
                except InferBusError as error:
                    if error.error_class is not ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                        raise
                    log.warning("moved without a copy", extra={"worker": move.worker, "error": str(error)})

        await _all(one(orphan) for orphan in move.orphans)

    async def fence(self, move: Move) -> None:
        """Returns when the fences are stored. What is another scheduler's by now is left to it: a fence of ours would
        take from a worker what it makes."""
        self._check_fresh(move)
        move.orphans = [orphan for orphan in move.orphans if self._owns(orphan.model)]
        now_us = clock.now_us()
        by_edge: dict[str, list[Fence]] = {}
        for orphan in move.orphans:
            fence = Fence(request_id=orphan.request_id, attempt=orphan.next_attempt)
            by_edge.setdefault(orphan.edge, []).append(fence)
        for edge, fences in by_edge.items():
            for at in range(0, len(fences), _FENCES_A_FRAME):
                part = fences[at : at + _FENCES_A_FRAME]
                frame = Frame(edge=edge, stead=move.worker, time_us=now_us, fences=part)
                self._frames.publish(frame)
                move.fences.append(frame)
        if move.fences:
            await self._frames.wait_acked(move.fences[-1].sequence)

    async def follow(self, move: Move) -> None:
        """Reads until our own fences were seen, so that whatever a replica has not yet is waited for; from further back
        what begins in the middle of an answer, since the clocks are further apart."""
        orphans = move.orphans
        for back_us in (_SKEW_US, *FURTHER_BACK_US):
            if not orphans:
                return
            before = {orphan.request_id: move.found[orphan.request_id] for orphan in orphans}
            move.found |= {orphan.request_id: begun(orphan.resume) for orphan in orphans}
            try:
                async with asyncio.timeout(_READ_SECONDS if back_us == _SKEW_US else _FURTHER_SECONDS):
                    await self._read_log(move, orphans, back_us)
            except TimeoutError as error:
                if back_us == _SKEW_US:
                    raise bus_unavailable(f"the fences of {move.worker} are stored and cannot be read") from error
                # What was read of them this time may look whole and be short.
                move.found |= before
                break
            orphans = [orphan for orphan in orphans if _incomplete(move.found[orphan.request_id])]
        if orphans:
            log.error("tokens are missing on the log", extra={"worker": move.worker, "requests": len(orphans)})

    async def _read_log(self, move: Move, orphans: Sequence[Orphan], back_us: int) -> None:
        wanted = {orphan.request_id: move.found[orphan.request_id] for orphan in orphans}
        unseen = {(frame.worker, frame.boot, frame.sequence) for frame in move.fences}
        since = min(orphan.stored_us for orphan in orphans) - back_us
        async for frame in self._frames_of(move.worker, since):
            _fold(frame, wanted, move.worker)
            if frame.stead:
                unseen.discard((frame.worker, frame.boot, frame.sequence))
                if not unseen:
                    return

    async def settle(self, move: Move, decide: DecideFate, on_moved: Callable[[Moved], None]) -> None:
        """Back to the queue, or to the end, and off WORK; the oldest placement first."""
        slots = asyncio.Semaphore(_PARALLEL)

        async def one(orphan: Orphan) -> None:
            async with slots:
                outcome = await self._settle(move, orphan, decide(orphan, move.found[orphan.request_id]))
                if outcome is not None:
                    on_moved(Moved(orphan.request_id, orphan.model, orphan.attempt, move.of, move.reason, outcome))

        await _all(one(orphan) for orphan in move.orphans)

    async def _settle(self, move: Move, orphan: Orphan, outcome: Fate) -> Fate | None:
        """None: it is another scheduler's to move, or was."""
        placed = None if isinstance(outcome, Closed) else await self._message(move, orphan)
        self._check_fresh(move)
        if not self._owns(orphan.model):
            return None
        if not isinstance(outcome, Closed):
            if placed is None:
                return None  # whoever has moved it has deleted it; if only this replica is behind, it is found again
            outcome = await self._give_back(move, placed, outcome)
        await self.placed.delete(orphan.sequence)
        if (copy := move.copies.get(orphan.sequence)) is not None:
            await self.placed.delete(copy)
        return outcome

    def _check_fresh(self, move: Move) -> None:
        if clock.monotonic() - move.began > _FRESH_SECONDS:
            raise bus_unavailable(f"what was read of {move.worker} is too old to act upon")

    async def _give_back(self, move: Move, placed: Placed, outcome: Requeue | End) -> Fate:
        """Also what ends: the first message of an attempt that is stored is what becomes of it, whoever makes the move
        again, and whatever he would decide."""
        request = with_resume(Work.FromString(placed.data).request, outcome.resume, move.worker)
        if isinstance(outcome, Requeue) and request.ByteSize() + _HEADROOM > self._bus.nc.max_payload:
            outcome = ended(outcome.resume, TOO_LARGE)
            request = with_resume(request, outcome.resume, move.worker)
        await self._publisher.publish(request, placed.headers)
        return outcome

    async def _placements(self, of: Incarnation, only: Collection[int] | None) -> AsyncIterator[Placed]:
        if only is not None:
            wanted = sorted(only)
            for at in range(0, len(wanted), _PARALLEL):
                for placed in await asyncio.gather(*map(self.placed.one, wanted[at : at + _PARALLEL])):
                    if placed is not None:
                        yield placed
            return
        first = 1
        while page := await self.placed.page(of, first):
            for placed in page:
                yield placed
            first = page[-1].sequence + 1

    async def _message(self, move: Move, orphan: Orphan) -> Placed | None:
        """With its input; a copy where the worker has acknowledged the placement meanwhile."""
        if (placed := move.messages.get(orphan.sequence)) is not None:
            return placed
        placed = await self.placed.one(orphan.sequence)
        if placed is None and (copy := move.copies.get(orphan.sequence)) is not None:
            placed = await self.placed.one(copy)
        return placed

    async def _discard(self, placed: Placed) -> None:
        log.error("a message on WORK is no work", extra={"sequence": placed.sequence})
        await self.placed.delete(placed.sequence)

    async def _frames_of(self, worker: str, since_us: int) -> AsyncIterator[Frame]:
        """For all edges, from ``since_us`` (the broker's clock) on, for ever."""
        count = 0
        subject = f"tok.*.{subject_token(worker)}"
        async with aclosing(self._log.read(1, subject=subject, since_us=since_us)) as batches:
            async for batch in batches:
                for _, _, data in batch:
                    count += 1
                    if count % _FOLDED_AT_ONCE == 0:
                        await asyncio.sleep(0)
                    try:
                        frame = Frame.FromString(data)
                    except DecodeError:
                        log.error("a frame cannot be read", extra={"worker": worker, "bytes": len(data)})
                        continue
                    yield frame


def joined(moves: Sequence[Move]) -> Move:
    """As one move, whose log is read once. They are of one incarnation, for one reason, and equally far; at least
    one."""
    whole = Move(moves[0].of, moves[0].reason, min(move.began for move in moves))
    held = 0
    for move in moves:
        whole.orphans += move.orphans
        whole.found |= move.found
        whole.copies |= move.copies
        whole.fences += move.fences
        for sequence, placed in move.messages.items():
            held += len(placed.data)
            if held <= _BODY_BYTES:
                whole.messages[sequence] = placed
    return whole


def orphan_of(placed: Placed, delivered: int) -> Orphan | None:
    """``delivered``: up to which sequence its work went out to the incarnation. None: no work."""
    try:
        work = Work.FromString(placed.data)
    except DecodeError:
        return None
    request = work.request
    if len(request.request_id) != REQUEST_ID_BYTES or not request.edge or not request.context.model:
        return None
    return Orphan(
        sequence=placed.sequence,
        request_id=request.request_id,
        attempt=work.attempt or 1,
        edge=request.edge,
        model=request.context.model,
        resume=request.resume,
        stored_us=placed.stored_us,
        delivered=placed.sequence <= delivered,
        cold_start_us=work.cold_start_us,
    )


def _fold(frame: Frame, wanted: Mapping[bytes, Recovered], worker: str) -> None:
    try:
        fold(frame, wanted)
    except (IndexError, ValueError) as error:
        # Its columns do not fit together: no reader takes it.
        log.error("a frame is broken", extra={"worker": worker, "sequence": frame.sequence, "error": str(error)})


def _incomplete(found: Recovered) -> bool:
    """A Close stands, whatever was before it."""
    return found.gap and not found.closed


async def _all(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Each to its end, whatever becomes of the others; then the first error, if there is one."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome

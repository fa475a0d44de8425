"""Whose generations are moved, when, and in which order: from a worker one move at a time, again until it is done.

A worker's death, a lease that ended, a drain and a preemption end in the same steps (:mod:`inferbus_scheduler.moving`).
Whoever may still run them is told as soon as the fences are stored, so that their room is free; what a preemption has
paused waits in any case, and goes back to the queue a moment later, all of a worker together: somebody waits for that
room, and many of them often come at once.
What is held here can be lost: the next scheduler finds the work of whoever is gone on WORK.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from inferbus.bus.v1.control_pb2 import Cancel, Heartbeat
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FramePublisher
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import REQUEST_ID_BYTES, uuid_text
from inferbus_contracts.recovery import Recovered
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError
from nats.errors import Error as NatsError

from inferbus_scheduler.core.migration import Closed, Deaths, End, Fate, Orphan, Reason, fate
from inferbus_scheduler.core.preemption import Victims
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.liveness import Liveness
from inferbus_scheduler.moving import Move, Moved, Mover, joined
from inferbus_scheduler.orphans import Describe, Orphans
from inferbus_scheduler.placed import COPIES, Incarnation
from inferbus_scheduler.recalls import Recalls

log = logging.getLogger(__name__)
_MAY_FAIL = (InferBusError, StreamApiError, NatsError, OSError, BufferError)
# Workers whose work is moved at the same time.
_AT_ONCE = 8
_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.2, 2.0
# What is paused on one worker within it goes back to the queue together.
_GATHER_SECONDS = 0.2
# After a whole incarnation was moved: a placement that was on its way may have been stored behind it.
_LOOK_AGAIN_SECONDS = (1.0, 6.0)
# A client may leave while its worker is dead and nobody has noticed yet: the longest is a lease, and a broker's outage.
_CANCELS, _CANCEL_SECONDS = 50_000, 120.0
# Of those that failed and are being moved: after that they are wanted again.
_FAILED, _FAILED_SECONDS = 50_000, 5.0
# Of incarnations that are gone: their successors may be here before their work is moved.
_TAKEN, _TAKEN_SECONDS = 10_000, 600.0


@dataclass(slots=True)
class Wanted:
    """What is to be moved of one incarnation. ``only``: these sequences of WORK; None: all. ``again``: a look at what
    may have come behind a move; it was stored for nobody."""

    of: Incarnation
    reason: Reason
    only: set[int] | None = None
    again: bool = False


@dataclass(slots=True)
class _Line:
    """Of one worker, in order. ``paused``: off the worker, and not back in the queue yet."""

    wanted: list[Wanted] = field(default_factory=list)
    running: bool = False
    paused: list[Move] = field(default_factory=list)
    giving_back: asyncio.Task[None] | None = None


class Takeover:
    """``gone`` and ``preempt`` return at once. ``owns``: whether requests of a model are ours to schedule, also while
    that is being handed over. ``on_moved`` is told of each request that was moved, or ended in the moving."""

    def __init__(
        self,
        *,
        bus: Bus,
        publisher: Publisher,
        frames: FramePublisher,
        fleet: Fleet,
        owns: Callable[[str], bool],
        describe: Describe,
        on_moved: Callable[[Moved], None] | None = None,
    ) -> None:
        self._fleet = fleet
        self._mover = Mover(bus=bus, publisher=publisher, frames=frames, owns=owns)
        self._liveness = Liveness(bus, fleet)
        self._recalls = Recalls(bus)
        self._orphans = Orphans(self._mover.placed, fleet, describe=describe, orphaned=self._orphaned)
        self._told = on_moved
        self._deaths = Deaths()
        self._cancels: Remembered[bytes, bool] = Remembered(_CANCELS, _CANCEL_SECONDS)
        # Up to where each incarnation said that it has taken over its work.
        self._wanted_failed: Remembered[bytes, bool] = Remembered(_FAILED, _FAILED_SECONDS)
        self._taken: Remembered[Incarnation, int] = Remembered(_TAKEN, _TAKEN_SECONDS)
        self._lines: dict[str, _Line] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._ready: asyncio.Queue[str] = asyncio.Queue()

    # --- in ----------------------------------------------------------------------------------------------------

    def gone(self, worker: str, boot: int, reason: str) -> None:
        """All work of that incarnation is to be moved."""
        self._want(Wanted((worker, boot), Reason(reason)))

    def preempt(self, victims: Victims) -> None:
        """These generations of one living worker are to go on later, and anywhere."""
        only = {running.sequence for running in victims.running if running.sequence}
        if only:
            self._want(Wanted((victims.worker, victims.boot), Reason.PREEMPTED, only))

    def _failed(self, beat: Heartbeat, now: float) -> None:
        """What another revision is to do. It is told until it is recalled, and wanted once in a while."""
        known = {view.key: view.sequence for view in self._fleet.running(beat.worker) if view.boot == beat.boot}
        only = set()
        for number, attempt in enumerate(beat.failed_attempts):
            key = beat.failed_ids[number * REQUEST_ID_BYTES : (number + 1) * REQUEST_ID_BYTES]
            key += attempt.to_bytes(2, "big")
            if known.get(key) and not self._wanted_failed.get(key, now):
                self._wanted_failed.put(key, True, now)
                only.add(known[key])
        if only:
            self._want(Wanted((beat.worker, beat.boot), Reason.FAILED, only))

    def on_cancel(self, cancel: Cancel) -> None:
        """Whoever runs it may be dead."""
        self._cancels.put(cancel.request_id, True, clock.monotonic())

    def on_heartbeat(self, beat: Heartbeat) -> None:
        """Of every worker."""
        now = clock.monotonic()
        self._taken.put((beat.worker, beat.boot), beat.work_sequence, now)
        self._recalls.heard(beat, now)
        if beat.failed_ids:
            self._failed(beat, now)

    async def scan(self, shard: int) -> None:
        """At the gain of a shard: see :meth:`Orphans.scan`."""
        await self._orphans.scan(shard)

    def scan_soon(self, shard: int) -> None:
        """Something of ``shard`` may have been placed on who is gone: within about a second it is looked for."""
        self._orphans.soon()

    def _orphaned(self, of: Incarnation) -> None:
        # A copy is of a move that was not ended: for whatever reason it was begun, no death is to be counted twice.
        self._want(Wanted(of, Reason.RECALLED if of[1] == COPIES else Reason.WORKER_LOST))

    def _want(self, wanted: Wanted) -> None:
        line = self._lines.setdefault(wanted.of[0], _Line())
        if wanted.only is None and any(
            other.of == wanted.of and other.only is None and (wanted.again or not other.again) for other in line.wanted
        ):
            return
        line.wanted.append(wanted)
        self._ready.put_nowait(wanted.of[0])

    # --- the moves ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: asks after the silent, looks for orphans, moves what is to be moved."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._liveness.run(), name="liveness")
            group.create_task(self._orphans.run(), name="orphans")
            while True:
                worker = await self._ready.get()
                line = self._lines.get(worker)
                if line is not None and not line.running:
                    line.running = True
                    group.create_task(self._work_off(group, worker, line), name=f"takeover of {worker}")

    async def _work_off(self, group: asyncio.TaskGroup, worker: str, line: _Line) -> None:
        """All that is wanted of one worker, each until it is done."""
        pause = _RETRY_SECONDS
        while line.wanted:
            together = _together(line.wanted)
            wanted = together[0]
            try:
                if wanted.reason is Reason.PREEMPTED:
                    line.paused.append(await self._take_off(_as_one(together)))
                    if line.giving_back is None:
                        task = self._give_back_paused(worker, line)
                        line.giving_back = group.create_task(task, name=f"what is paused on {worker}")
                else:
                    if line.giving_back is not None:
                        await asyncio.wait({line.giving_back})
                    await self._give_back(await self._take_off(wanted), wanted)
            except _MAY_FAIL as error:
                log.warning("generations not moved yet", extra={"worker": worker, "error": str(error)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
                continue
            pause = _RETRY_SECONDS
            line.wanted[:] = [one for one in line.wanted if all(one is not done for done in together)]
            if wanted.only is None and not wanted.again and wanted.of[1] != COPIES:
                self._look_again(wanted)
        line.running = False
        self._forget(worker, line)

    async def _give_back_paused(self, worker: str, line: _Line) -> None:
        """What is paused there, until there is no more of it. What does not go well is wanted once more."""
        while line.paused:
            await asyncio.sleep(_GATHER_SECONDS)
            paused, line.paused = line.paused, []
            of = paused[0].of
            move = joined([each for each in paused if each.of == of])
            line.paused = [each for each in paused if each.of != of]
            wanted = Wanted(of, Reason.PREEMPTED, {orphan.sequence for orphan in move.orphans})
            try:
                await self._give_back(move, wanted)
            except _MAY_FAIL as error:
                log.warning("paused, and not given back yet", extra={"worker": worker, "error": str(error)})
                self._want(wanted)
        line.giving_back = None
        self._forget(worker, line)

    def _forget(self, worker: str, line: _Line) -> None:
        if not line.running and line.giving_back is None and not line.wanted:
            del self._lines[worker]

    def _look_again(self, wanted: Wanted) -> None:
        worker, boot = wanted.of

        def look() -> None:
            # Heard again, or active again after a drain: what it has now is its own.
            if not (self._fleet.knows(worker, boot) and self._fleet.takes_work(worker)):
                self._want(Wanted(wanted.of, wanted.reason, again=True))

        loop = asyncio.get_running_loop()
        for seconds in _LOOK_AGAIN_SECONDS:
            loop.call_later(seconds, look)

    async def _take_off(self, wanted: Wanted) -> Move:
        """From here on nothing that the worker says of them counts, and their room is free when it says so."""
        async with self._slots:
            taken = self._taken.get(wanted.of, clock.monotonic()) or 0
            move = await self._mover.read(wanted.of, wanted.reason, wanted.only, undelivered=wanted.again, taken=taken)
            if move.orphans:
                await self._mover.keep(move)
                await self._mover.fence(move)
        # A worker that is told takes its placement off WORK, so of those without a copy it is told last.
        self._tell(move, [orphan for orphan in move.orphans if orphan.sequence in move.copies])
        return move

    async def _give_back(self, move: Move, wanted: Wanted) -> None:
        if not move.orphans:
            return
        try:
            async with self._slots:
                await self._mover.follow(move)
                await self._settle(move, wanted)
        except _MAY_FAIL:
            # Its worker may have taken placements off WORK, of which there are copies.
            self._orphans.soon()
            raise

    async def _settle(self, move: Move, wanted: Wanted) -> None:
        now, now_us = clock.monotonic(), clock.now_us()
        if wanted.reason is Reason.WORKER_LOST and wanted.only is None and not wanted.again:
            self._deaths.died(now, explained=any(_fruitless(orphan, move) for orphan in move.orphans))
        patience = self._deaths.patience(now)
        revision = self._fleet.revision_of(move.worker)

        def decide(orphan: Orphan, found: Recovered) -> Fate:
            cancelled = self._cancels.get(orphan.request_id, now) is not None
            return fate(
                orphan, found, wanted.reason, cancelled=cancelled, patience=patience, now_us=now_us, revision=revision
            )

        moved: list[Moved] = []
        try:
            await self._mover.settle(move, decide, moved.append)
        finally:
            self._done(move, moved)
        log.info(
            "generations moved",
            extra={
                "worker": move.worker,
                "boot": wanted.of[1],
                "reason": wanted.reason.value,
                "requests": len(moved),
                "seconds": round(clock.monotonic() - move.began, 4),
            },
        )

    def _tell(self, move: Move, taken: Collection[Orphan]) -> None:
        """The worker, and who reckons with its room."""
        now = clock.monotonic()
        self._recalls.moved(move.worker, move.of[1], ((one.request_id, one.attempt) for one in taken), now)
        for one in taken:
            self._fleet.moved(move.worker, one.request_id + one.attempt.to_bytes(2, "big"), now)

    def _done(self, move: Move, moved: list[Moved]) -> None:
        """Also of those that were moved before another one failed."""
        settled = {one.request_id for one in moved}
        without_copy = [orphan for orphan in move.orphans if orphan.sequence not in move.copies]
        self._tell(move, [orphan for orphan in without_copy if orphan.request_id in settled])
        metrics.MIGRATION_SECONDS.observe(clock.monotonic() - move.began)
        for one in moved:
            if isinstance(one.fate, Closed):
                continue
            metrics.MIGRATIONS.labels(move.reason.value).inc()
            if isinstance(one.fate, End) and one.fate.refusal is not None:
                log.error(
                    "a request is not tried again",
                    extra={"request_id": uuid_text(one.request_id), "attempts": one.attempt},
                )
            if self._told is not None:
                self._told(one)


def _together(wanted: list[Wanted]) -> list[Wanted]:
    """The first, and what else is to be paused of the same incarnation: the log of its worker is read once for all."""
    first = wanted[0]
    if first.reason is not Reason.PREEMPTED:
        return [first]
    return [one for one in wanted if one.reason is Reason.PREEMPTED and one.of == first.of]


def _as_one(together: list[Wanted]) -> Wanted:
    if len(together) == 1:
        return together[0]
    return Wanted(together[0].of, together[0].reason, {each for one in together for each in one.only or ()})


def _fruitless(orphan: Orphan, move: Move) -> bool:
    """It may be what its worker died of."""
    found = move.found[orphan.request_id]
    return orphan.delivered and not found.closed and not found.parts and len(found.ids) <= len(orphan.resume.token_ids)

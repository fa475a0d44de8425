"""Clients that come back: their answers are made again from the log, from the first frame on, and go on live.

One pass over the log serves all that wait for the same edge's frames. At the end of it, between two frames, they are
handed to that edge's live reader: this edge's own, or one made for as long as somebody needs it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FrameReader
from inferbus_bus.log import FrameLog
from inferbus_contracts.ids import choice_id, edge_tag, tag_of, unix_ms_of
from inferbus_contracts.subjects import STREAMS, edge_tokens
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_edge.attendance import Attendance
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.wire import CLIENT_GONE

log = logging.getLogger(__name__)

Opened = Callable[[bytes, RequestContext], Answer | None]
"""(reply description, whose request) → what is owed; None: not to this caller."""

# The worker's clock says when a frame was made, the edge's when a request was accepted.
_CLOCK_SKEW_US = 60_000_000
_LOG_US = next(spec for spec in STREAMS if spec.name == "TOKENS").max_age // timedelta(microseconds=1)
# A pass over a long log lets the live streams have their turn after so many frames.
_FRAMES_A_TURN = 32
_RECENT_US = 15 * 60_000_000
# Ids that nobody made must not ask the broker each time.
_LOOK_AGAIN_SECONDS = 0.1
_IDLE_READER_SECONDS = 10.0
_GATHER_SECONDS = 0.02
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(slots=True, eq=False)
class _Join:
    """``found``: the answer, or None if the log does not know the request, or it is not the caller's. ``absent``: what
    to do if the log has nothing of it yet; then it is waited for."""

    first: bytes
    opened: Opened
    absent: Callable[[], None] | None
    found: asyncio.Future[Answer | None]
    answer: Answer | None = None


class _Batch:
    """Those of one pass over the log, from its first frame on. ``wanted``: not begun on the log as far as it was
    read."""

    def __init__(self, joins: list[_Join], attendance: Attendance) -> None:
        self._followed = _Followed(attendance)
        self.streams = Streams(self._followed)
        self.wanted = {join.first: join for join in joins}
        self._attendance = attendance

    def __bool__(self) -> bool:
        return bool(self.wanted) or len(self.streams) > 0

    def on_frame(self, frame: Frame, sequence: int) -> None:
        if self.wanted:
            for one in frame.opens:
                join = self.wanted.pop(choice_id(one.request_id, 0), None)
                if join is not None and not join.found.done():
                    self._open(join, one.reply, frame.contexts[one.context_index])
        if len(self.streams):
            self.streams.on_frame(frame, sequence)

    def _open(self, join: _Join, reply: bytes, context: RequestContext) -> None:
        try:
            join.answer = join.opened(reply, context)
        except Exception as error:  # noqa: BLE001 (this one alone fails: it runs among the frames of all others)
            log.warning("an answer cannot be made again", extra={"error": repr(error)})
            join.found.set_exception(error)
            return
        if join.answer is None:
            join.found.set_result(None)
            return
        self._attendance.arrive(join.answer)
        self.streams.add(join.answer)
        if self._followed.live:
            join.found.set_result(join.answer)

    def caught_up(self, joins: list[_Join]) -> None:
        """Everything that was on the log has been delivered: tell those that wait."""
        self._followed.live = True
        for join in joins:
            if join.found.done():  # refused, or its client left meanwhile
                self.wanted.pop(join.first, None)
                if join.answer is not None:
                    self.streams.leave(join.answer, CLIENT_GONE)
            elif join.answer is not None:
                join.found.set_result(join.answer)
            elif join.absent is None:
                del self.wanted[join.first]
                join.found.set_result(None)
            else:
                join.absent()

    def absorb(self, other: "_Batch") -> bool:
        """Take over what ``other`` has, both being live: a frame is then decoded once for all of them. False if both
        have an answer to the same request."""
        answers = other.streams.answers()
        if any(one in self.streams for answer in answers for one in answer.ids):
            return False
        if self.wanted.keys() & other.wanted.keys():
            return False
        for answer in answers:
            other.streams.release(answer)
            self.streams.add(answer)
        self.wanted |= other.wanted
        return True

    def fail(self, joins: list[_Join], error: InferBusError) -> None:
        self.wanted.clear()
        self.streams.fail_all(error, None)
        for join in joins:
            if not join.found.done():
                join.found.set_exception(error)


@dataclass(slots=True, eq=False)
class _Lane:
    """Those that wait for a pass, and the task that makes one after the other."""

    waiting: list[_Join] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or (self.task is not None and not self.task.done())


class _Tail:
    """The frames of one edge. ``batches``: those that are caught up and live. Who asks for something old has a lane of
    his own: nobody else waits while hours of the log are read."""

    def __init__(self, bus: Bus, edge: str, own: FrameReader | None = None) -> None:
        self.edge = edge
        self.foreign = own is None
        self.reader = own or FrameReader(bus, edge=edge, on_frame=self.on_frame)
        self.started = own is not None
        self.starting = asyncio.Lock()
        self.recent, self.old = _Lane(), _Lane()
        self.batches: list[_Batch] = []
        self.used = clock.monotonic()

    def on_frame(self, frame: Frame, sequence: int) -> None:
        for batch in self.batches:
            batch.on_frame(frame, sequence)


class Following:
    """Made first, since the reader of this edge's own frames calls :meth:`on_own_frame`; then started with it."""

    def __init__(self, bus: Bus, edge: str, attendance: Attendance) -> None:
        self._bus = bus
        self._edge = edge
        self._log = FrameLog(bus)
        self._attendance = attendance
        self._tails: dict[str, _Tail] = {}
        self._edges: list[str] = []
        self._edges_at = -_LOOK_AGAIN_SECONDS

    def start(self, own: FrameReader) -> None:
        self._tails[self._edge] = _Tail(self._bus, self._edge, own)

    async def stop(self) -> None:
        tails, self._tails = list(self._tails.values()), {}
        for tail in tails:
            for lane in (tail.recent, tail.old):
                if lane.task is not None:
                    lane.task.cancel()
            if tail.foreign and tail.started:
                await tail.reader.stop()

    def on_own_frame(self, frame: Frame, sequence: int) -> None:
        own = self._tails.get(self._edge)
        if own is not None and own.batches:
            own.on_frame(frame, sequence)

    def streams(self) -> list[Streams]:
        """All that are followed live."""
        return [batch.streams for tail in self._tails.values() for batch in tail.batches]

    def leave(self, answer: Answer, reason: str) -> None:
        """Its client is gone."""
        for streams in self.streams():
            streams.leave(answer, reason)

    def fail(self, answer: Answer, error: InferBusError, *, cancel: str) -> None:
        """End it with ``error``, and its generations for the reason ``cancel``."""
        for streams in self.streams():
            streams.fail(answer, error, cancel=cancel)

    def release(self, answer: Answer) -> None:
        """Nobody looks at it any more."""
        for streams in self.streams():
            streams.release(answer)

    async def join(
        self, first: bytes, opened: Opened, absent: Callable[[], None] | None = None, edge: str | None = None
    ) -> Answer | None:
        """The answer to the request whose first choice is ``first``, from its beginning on the log; when this returns
        all that was on the log has been delivered. ``edge``: which one accepted it, if that is known.

        If the log has nothing of it: None; or, with ``absent``, that is called and its beginning waited for.
        Raises InferBusError.
        """
        age_us = clock.now_us() - unix_ms_of(first) * 1000
        if not -_CLOCK_SKEW_US <= age_us <= _LOG_US:
            return None  # nobody's id, or the log has forgotten it
        edges = [edge] if edge is not None else await self._candidates(first)
        for number, one in enumerate(edges):
            last = number == len(edges) - 1
            answer = await self._join(one, first, opened, absent if last else None)
            if answer is not None:
                return answer
        return None

    async def _candidates(self, first: bytes) -> list[str]:
        """Edges that may have accepted the request: those whose tag it carries."""
        tag = tag_of(first)
        known = [edge for edge in dict.fromkeys((self._edge, *self._edges)) if edge_tag(edge) == tag]
        if known or clock.monotonic() - self._edges_at < _LOOK_AGAIN_SECONDS:
            return known
        try:
            self._edges = await self._log.edges()
        except StreamApiError as error:
            raise _log_unavailable(str(error)) from error
        self._edges_at = clock.monotonic()
        return [edge for edge in self._edges if edge_tag(edge) == tag]

    async def _join(self, edge: str, first: bytes, opened: Opened, absent: Callable[[], None] | None) -> Answer | None:
        tail = self._tails.get(edge)
        if tail is None:
            tail = self._tails[edge] = _Tail(self._bus, edge)
        join = _Join(first, opened, absent, asyncio.get_running_loop().create_future())
        tail.used = clock.monotonic()
        if clock.now_us() - unix_ms_of(first) * 1000 > _RECENT_US:
            tail.old.waiting.append(join)
            if tail.old.task is None or tail.old.task.done():
                tail.old.task = asyncio.create_task(self._serve_old(tail), name=f"follow {edge}, old")
        else:
            tail.recent.waiting.append(join)
        if tail.recent.task is None or tail.recent.task.done():
            tail.recent.task = asyncio.create_task(self._serve(tail), name=f"follow {edge}")
        try:
            return await join.found
        except asyncio.CancelledError:
            for batch in tail.batches:
                if batch.wanted.get(first) is join:
                    del batch.wanted[first]
            # If it was found in this very moment nobody takes it; else the pass sees that nobody waits any more.
            if join.answer is not None and not join.found.cancelled():
                self.leave(join.answer, CLIENT_GONE)
            raise

    async def _serve(self, tail: _Tail) -> None:
        """Passes over the log as long as somebody waits; then, for another edge, the end of its reader."""
        while True:
            if tail.recent.waiting:
                await self._next_pass(tail, tail.recent)
                continue
            tail.batches = [batch for batch in tail.batches if batch]
            if not tail.foreign:
                return
            if not tail.batches and not tail.old.busy and clock.monotonic() - tail.used > _IDLE_READER_SECONDS:
                self._tails.pop(tail.edge, None)
                await tail.reader.stop()
                return
            # They come in bursts, after an edge has died: this also gathers them into one pass.
            await asyncio.sleep(_GATHER_SECONDS)

    async def _serve_old(self, tail: _Tail) -> None:
        while tail.old.waiting:
            await self._next_pass(tail, tail.old)

    async def _next_pass(self, tail: _Tail, lane: _Lane) -> None:
        joins, lane.waiting = _distinct(lane.waiting)
        await self._pass(tail, joins)

    async def _pass(self, tail: _Tail, joins: list[_Join]) -> None:
        batch = _Batch(joins, self._attendance)
        try:
            async with tail.starting:
                if not tail.started:
                    await tail.reader.start()
                    tail.started = True
            await self._catch_up(tail, joins, batch)
        except Exception as error:  # noqa: BLE001 (those that wait are told, and the next ones have their pass)
            log.warning("a pass over the log failed", extra={"edge": tail.edge, "error": repr(error)})
            batch.fail(joins, _log_unavailable(repr(error)))
            return
        tail.used = clock.monotonic()
        batch.caught_up(joins)
        if not any(live.absorb(batch) for live in tail.batches):
            tail.batches.append(batch)

    async def _catch_up(self, tail: _Tail, joins: list[_Join], batch: _Batch) -> None:
        """All of the log since the oldest of ``joins``, to exactly where the live reader is."""
        since: int | None = min(unix_ms_of(join.first) for join in joins) * 1000 - _CLOCK_SKEW_US
        position, target = 0, tail.reader.last_sequence
        while True:
            read = self._log.read(position + 1, target, subject=edge_tokens(tail.edge), since_us=since)
            async for stored in read:
                for number, (sequence, _, data) in enumerate(stored):
                    _replay(batch, sequence, data)
                    if number % _FRAMES_A_TURN == 0:
                        await asyncio.sleep(0)
            position, since = target, None
            # From here on nothing is awaited until the batch is live, so no frame comes in between.
            target = tail.reader.last_sequence
            if target <= position:
                return


def _replay(batch: _Batch, sequence: int, data: bytes) -> None:
    try:
        frame = Frame.FromString(data)
    except DecodeError:  # as the live reader does
        log.error("a frame cannot be read", extra={"sequence": sequence, "bytes": len(data)})
        return
    batch.on_frame(frame, sequence)


class _Followed:
    """The listener of followed streams: what they do not know is not theirs to judge. Until they are ``live`` a fault
    is one of the reading, not of the generation."""

    def __init__(self, attendance: Attendance) -> None:
        self._attendance = attendance
        self.live = False
        self.left = attendance.left
        self.ended = attendance.ended

    def broken(self, answer: Answer, reason: str) -> None:
        if self.live:
            self._attendance.broken(answer, reason)
        else:
            self._attendance.dropped(answer)

    def stray(self, request_id: bytes, now: float) -> None:
        """The log carries everybody's deltas."""


def _distinct(waiting: list[_Join]) -> tuple[list[_Join], list[_Join]]:
    """(one for each request, the others): a batch delivers a request to one answer."""
    first: dict[bytes, _Join] = {}
    rest = [join for join in waiting if first.setdefault(join.first, join) is not join]
    return list(first.values()), rest


def _log_unavailable(diagnostic: str) -> InferBusError:
    return unavailable(
        "bus_unavailable", "The service is restarting; retry.", retry_after=_RETRY_AFTER, diagnostic=diagnostic
    )

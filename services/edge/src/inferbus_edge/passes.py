"""A pass over the log: answers made again from their first frame on, until they are as far as the live frames.

What comes live while the log is read waits in memory and follows at the end: no quiet moment is needed.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_bus.frames import FrameReader
from inferbus_bus.log import FrameLog
from inferbus_contracts.ids import REQUEST_ID_BYTES, choice_id
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.attendance import Attendance
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.wire import CLIENT_GONE

log = logging.getLogger(__name__)

Opened = Callable[[bytes, RequestContext], Answer | None]
"""(reply description, whose request) → what is owed; None: not to this caller."""

# The live streams have their turn after so long.
_TURN_SECONDS = 0.001
# What is live comes behind so many frames of the log.
_WINDOW = 250
# Live frames that wait for the end of a pass. Above it they are dropped, and the log is read once more.
_MAX_KEPT_FRAMES = 4096
_MAX_KEPT_BYTES = 16 << 20
# Looking for more requests than these costs as much as delivering the frame.
_FEW = 16
# The ids of a client call's choices differ in the last byte only.
_PREFIX = REQUEST_ID_BYTES - 1


@dataclass(slots=True, eq=False)
class Join:
    """``found``: the answer, or None if the log does not know the request, or it is not the caller's. ``absent``: what
    to do if the log has nothing of it yet; True if it is to be waited for then."""

    first: bytes
    opened: Opened
    absent: Callable[[], bool] | None
    found: asyncio.Future[Answer | None]
    answer: Answer | None = None


class Batch:
    """One answer for each of its requests. ``wanted``: not begun on the log as far as it was read."""

    def __init__(self, joins: list[Join], attendance: Attendance) -> None:
        self._followed = _Followed(attendance)
        self.streams = Streams(self._followed)
        self.wanted = {join.first: join for join in joins}
        self._attendance = attendance
        # Of requests that are wanted: an attempt may be fenced off before anything of it is on the log.
        self._fences: dict[bytes, int] = {}
        # Of at least all requests that are left, and what their number was then.
        self._prefixes: tuple[bytes, ...] = ()
        self._size = -1

    def __bool__(self) -> bool:
        return bool(self.wanted) or len(self.streams) > 0

    def may_be_in(self, data: bytes) -> bool:
        """Whether one of its requests may be named in ``data``: a frame as it is stored, or its :func:`names`."""
        size = len(self.wanted) + len(self.streams)
        if size != self._size:
            firsts = (*self.wanted, *(answer.first for answer in self.streams.answers()))
            self._prefixes, self._size = tuple({first[:_PREFIX] for first in firsts}), size
        return len(self._prefixes) > _FEW or any(prefix in data for prefix in self._prefixes)

    def on_frame(self, frame: Frame, sequence: int) -> None:
        if self.wanted:
            for fence in frame.fences:
                if choice_id(fence.request_id, 0) in self.wanted:
                    self._fences[fence.request_id] = max(fence.attempt, self._fences.get(fence.request_id, 0))
            for one in frame.opens:
                join = self.wanted.pop(choice_id(one.request_id, 0), None)
                if join is not None and not join.found.done():
                    self._open(join, one.reply, frame.contexts[one.context_index])
        if len(self.streams):
            self.streams.on_frame(frame, sequence)

    def _open(self, join: Join, reply: bytes, context: RequestContext) -> None:
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
        for one in join.answer.ids:
            self.streams.fence(one, self._fences.pop(one, 0))
        if self._followed.live:
            join.found.set_result(join.answer)

    def caught_up(self, joins: list[Join]) -> None:
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
                self._ask_absent(join, join.absent)
        self._fences = {one: attempt for one, attempt in self._fences.items() if choice_id(one, 0) in self.wanted}

    def _ask_absent(self, join: Join, absent: Callable[[], bool]) -> None:
        try:
            if absent():
                return
        except Exception as error:  # noqa: BLE001 (as above)
            join.found.set_exception(error)
        else:
            join.found.set_result(None)
        del self.wanted[join.first]

    def absorb(self, other: "Batch") -> bool:
        """Take over what ``other`` has, both being live: a frame is then walked once for all of them. False if both
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
        self._fences |= other._fences
        self._size = -1
        return True

    def fail(self, joins: list[Join], error: InferBusError) -> None:
        self.wanted.clear()
        self.streams.fail_all(error, None)
        for join in joins:
            if not join.found.done():
                join.found.set_exception(error)


class Pass:
    """Those of one reading. Its owner gives it the live frames, too, from before :meth:`catch_up` is called until it
    has returned; from then on, without waiting, to its ``batches``."""

    def __init__(self, joins: list[Join], attendance: Attendance) -> None:
        self._layers = _layers(joins)
        self.batches = [Batch(layer, attendance) for layer in self._layers]
        self._kept: deque[tuple[Frame, int, int]] = deque()  # with its sequence and its bytes
        self._kept_bytes = 0
        self._overflown = False

    def on_frame(self, frame: Frame, sequence: int, named: bytes) -> None:
        """A live one: keep it until what was before it is read."""
        if self._overflown or not any(batch.may_be_in(named) for batch in self.batches):
            return
        size = frame.ByteSize()
        self._kept.append((frame, sequence, size))
        self._kept_bytes += size
        if len(self._kept) > _MAX_KEPT_FRAMES or self._kept_bytes > _MAX_KEPT_BYTES:
            self._forget()
            self._overflown = True

    async def catch_up(self, frames: FrameLog, reader: FrameReader, subject: str, since_us: int) -> None:
        """All that is stored since then, to exactly where the live ``reader`` is."""
        position = 0
        since: int | None = since_us
        while self._needed:
            self._forget()
            self._overflown = False
            target = reader.last_sequence  # nothing is awaited in between: what comes after it is kept
            await self._read(frames, position + 1, target, subject, since)
            position, since = target, None
            turn = clock.monotonic() + _TURN_SECONDS
            while self._kept:
                frame, position, size = self._kept.popleft()
                self._kept_bytes -= size
                for batch in self.batches:
                    batch.on_frame(frame, position)
                if clock.monotonic() > turn and self._kept:
                    await asyncio.sleep(0)  # more may come, and be too much: then it goes on from this position
                    turn = clock.monotonic() + _TURN_SECONDS
            if not self._overflown:
                return

    def caught_up(self) -> None:
        for layer, batch in zip(self._layers, self.batches, strict=True):
            batch.caught_up(layer)

    def fail(self, error: InferBusError) -> None:
        for layer, batch in zip(self._layers, self.batches, strict=True):
            batch.fail(layer, error)

    @property
    def _needed(self) -> bool:
        """Somebody waits, and there is an answer that has not ended."""
        return any(self.batches) and not all(join.found.done() for layer in self._layers for join in layer)

    async def _read(self, frames: FrameLog, first: int, last: int, subject: str, since: int | None) -> None:
        turn = clock.monotonic() + _TURN_SECONDS
        async with aclosing(frames.read(first, last, subject=subject, since_us=since, window=_WINDOW)) as read:
            async for stored in read:
                for sequence, _, data in stored:
                    self._replay(sequence, data)
                    if clock.monotonic() > turn:
                        await asyncio.sleep(0)
                        turn = clock.monotonic() + _TURN_SECONDS
                if not self._needed:
                    return

    def _replay(self, sequence: int, data: bytes) -> None:
        concerned = [batch for batch in self.batches if batch.may_be_in(data)]
        if not concerned:
            return
        try:
            frame = Frame.FromString(data)
        except DecodeError:  # as the live reader does
            log.error("a frame cannot be read", extra={"sequence": sequence, "bytes": len(data)})
            return
        for batch in concerned:
            batch.on_frame(frame, sequence)

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0


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


def names(frame: Frame) -> bytes:
    """The ids of all requests that ``frame`` says something of, one after the other."""
    columns = (frame.fences, frame.opens, frame.closes, frame.embeddings, frame.outputs)
    others = (one.request_id for column in columns for one in column)
    return b"".join((frame.request_ids, *others))


def _layers(joins: list[Join]) -> list[list[Join]]:
    """Each has a request once: a batch delivers it to one answer."""
    layers: list[list[Join]] = []
    seen: Counter[bytes] = Counter()
    for join in joins:
        if seen[join.first] == len(layers):
            layers.append([])
        layers[seen[join.first]].append(join)
        seen[join.first] += 1
    return layers

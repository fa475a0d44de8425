"""Clients that come back: their answers are made again from the log, from the first frame on, and go on live.

One pass over the log serves all that wait for the same edge's frames. At the end of it, between two frames, they are
handed to that edge's live reader: this edge's own, or one made for as long as somebody needs it.
"""

import asyncio
import logging
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FrameReader
from inferbus_bus.log import FrameLog
from inferbus_contracts.ids import edge_tag, tag_of, unix_ms_of
from inferbus_contracts.subjects import STREAMS, edge_tokens
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_edge.attendance import Attendance
from inferbus_edge.passes import Batch, Join, Opened, Pass, names
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.wire import CLIENT_GONE

log = logging.getLogger(__name__)

# An edge's clock says when a request was accepted, the broker's when a frame was stored, which is later. So what
# matters is how far an edge's clock may be ahead of the broker's; the workers' clocks do not. Each second costs every
# pass the edge's frames of a second.
_CLOCK_SKEW_US = 5_000_000
_LOG_US = next(spec for spec in STREAMS if spec.name == "TOKENS").max_age // timedelta(microseconds=1)
# Who asks for something older waits in a lane of his own: nobody else waits while hours of the log are read.
_LANES_US = (30_000_000, 15 * 60_000_000)
# Ids that nobody made must not ask the broker each time.
_LOOK_AGAIN_SECONDS = 0.1
_IDLE_READER_SECONDS = 10.0
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(slots=True, eq=False)
class _Lane:
    """Those that wait for a pass, and the task that makes one after the other."""

    waiting: list[Join] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()


class _Tail:
    """The frames of one edge: for the passes that run, and for the ``batches`` of those that have ended."""

    def __init__(self, bus: Bus, edge: str, own: FrameReader | None = None) -> None:
        self.edge = edge
        self.reader = own or FrameReader(bus, edge=edge, on_frame=self.on_frame)
        self.started = own is not None
        self.starting = asyncio.Lock()
        self.lanes = [_Lane() for _ in range(len(_LANES_US) + 1)]
        self.passes: list[Pass] = []
        self.batches: list[Batch] = []
        self.used = clock.monotonic()
        self.watcher: asyncio.Task[None] | None = None  # of another edge's

    @property
    def busy(self) -> bool:
        return bool(self.batches) or any(lane.busy for lane in self.lanes)

    def on_frame(self, frame: Frame, sequence: int) -> None:
        if not self.passes and not self.batches:
            return
        named = names(frame)
        for one in self.passes:
            one.on_frame(frame, sequence, named)
        for batch in self.batches:
            if batch.may_be_in(named):
                batch.on_frame(frame, sequence)

    def go_live(self, batches: list[Batch]) -> None:
        self.tidy()
        for batch in batches:
            if batch and not any(live.absorb(batch) for live in self.batches):
                self.batches.append(batch)

    def tidy(self) -> None:
        self.batches = [batch for batch in self.batches if batch]


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
            for task in (tail.watcher, *(lane.task for lane in tail.lanes)):
                if task is not None:
                    task.cancel()
            if tail.watcher is not None:
                await tail.reader.stop()

    def on_own_frame(self, frame: Frame, sequence: int) -> None:
        own = self._tails.get(self._edge)
        if own is not None:
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
        self, first: bytes, opened: Opened, absent: Callable[[], bool] | None = None, edge: str | None = None
    ) -> Answer | None:
        """The answer to the request whose first choice is ``first``, from its beginning on the log; when this returns
        all that was on the log has been delivered. ``edge``: which one accepted it, if that is known.

        If the log has nothing of it: None; or, with ``absent``, that is called, and if it says so its beginning is
        waited for. Raises InferBusError, also one that ``absent`` raised.
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

    async def _join(self, edge: str, first: bytes, opened: Opened, absent: Callable[[], bool] | None) -> Answer | None:
        tail = self._tails.get(edge)
        if tail is None:
            tail = self._tails[edge] = _Tail(self._bus, edge)
            tail.watcher = asyncio.create_task(self._watch(tail), name=f"watch {edge}")
        join = Join(first, opened, absent, asyncio.get_running_loop().create_future())
        tail.used = clock.monotonic()
        lane = tail.lanes[bisect(_LANES_US, clock.now_us() - unix_ms_of(first) * 1000)]
        lane.waiting.append(join)
        if not lane.busy:
            lane.task = asyncio.create_task(self._serve(tail, lane), name=f"follow {edge}")
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

    async def _serve(self, tail: _Tail, lane: _Lane) -> None:
        """One pass for all that came while the last one ran, which gathers a burst of them, as after an edge's end."""
        while lane.waiting:
            joins, lane.waiting = lane.waiting, []
            await self._pass(tail, joins)

    async def _pass(self, tail: _Tail, joins: list[Join]) -> None:
        one = Pass(joins, self._attendance)
        since_us = min(unix_ms_of(join.first) for join in joins) * 1000 - _CLOCK_SKEW_US
        try:
            async with tail.starting:
                if not tail.started:
                    await tail.reader.start()
                    tail.started = True
            tail.passes.append(one)
            try:
                await one.catch_up(self._log, tail.reader, edge_tokens(tail.edge), since_us)
            finally:
                tail.passes.remove(one)
        except Exception as error:  # noqa: BLE001 (those that wait are told, and the next ones have their pass)
            log.warning("a pass over the log failed", extra={"edge": tail.edge, "error": repr(error)})
            one.fail(_log_unavailable(repr(error)))
            return
        # From the last frame of the pass to here nothing is awaited, so none comes in between.
        one.caught_up()
        tail.go_live(one.batches)

    async def _watch(self, tail: _Tail) -> None:
        """To the end of another edge's reader, which nobody needs any more."""
        while tail.busy or clock.monotonic() - tail.used < _IDLE_READER_SECONDS:
            await asyncio.sleep(_IDLE_READER_SECONDS / 10)
            tail.tidy()
            if tail.busy:
                tail.used = clock.monotonic()
        self._tails.pop(tail.edge, None)
        await tail.reader.stop()


def _log_unavailable(diagnostic: str) -> InferBusError:
    return unavailable(
        "bus_unavailable", "The service is restarting; retry.", retry_after=_RETRY_AFTER, diagnostic=diagnostic
    )

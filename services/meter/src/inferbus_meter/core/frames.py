"""Frames of TOKENS, gathered into one batch: the columns of all frames one after the other.

Ingest and audit read frames only through here, so that they take and refuse the same ones.
"""

from array import array
from calendar import timegm
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.common.v1.context_pb2 import RequestContext
from numpy.typing import NDArray

from inferbus_meter.core.captured_text import CapturedText, Stretch

_ID_BYTES = 16
_MAX_ATTEMPT = (1 << 16) - 1
_MAX_INDEX = (1 << 32) - 1
# What the tables can hold: 1970 to 2106. The difference of any two is a duration that they can hold, too.
_MAX_SECONDS = (1 << 32) - 1
_MAX_NANOS = 999_999_999
_CLOSE_TIMES = (
    "accepted_time", "placed_time", "first_started_time", "started_time", "first_token_time", "last_token_time",
    "end_time",
)  # fmt: skip
# A worker's clock that is further off than this is not believed: it would scatter rows over partitions.
CLOCK_TOLERANCE_US = 24 * 3600 * 1_000_000
# Frames wait in a process until they are full; this many defaults cover any usual frame.
_ONES = array("I", [1]) * 4096
_ZEROS = array("I", [0]) * 4096


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame that breaks the format. Nothing of it is used. ``detail`` holds no content of the frame."""

    sequence: int
    detail: str


@dataclass(frozen=True, slots=True)
class ClosedRequest:
    """One Close with what its frame knows about it. ``time_us``: Unix microseconds of the frame."""

    close: Close
    context: RequestContext
    edge: str
    worker: str
    time_us: int
    sequence: int


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Frames ``first_sequence`` to ``last_sequence`` of the stream, both included, malformed ones left out.

    Columns of deltas have one entry a delta, in stream order; ``token_id`` has one a token. ``context`` and ``frame``
    are indices into ``contexts`` and into the columns of frames.
    """

    first_sequence: int
    last_sequence: int
    request_id: NDArray[np.uint8]
    context: NDArray[np.uint32]
    attempt: NDArray[np.uint32]
    first_index: NDArray[np.uint32]
    token_count: NDArray[np.uint32]
    gap_us: NDArray[np.uint32]
    frame: NDArray[np.uint32]
    token_id: NDArray[np.uint32]
    frame_sequence: NDArray[np.uint64]
    frame_time_us: NDArray[np.int64]
    frame_edge: tuple[str, ...]
    frame_worker: tuple[str, ...]
    contexts: tuple[RequestContext, ...]
    closes: tuple[ClosedRequest, ...]
    malformed: tuple[Malformed, ...]
    captured: tuple[Stretch, ...]


def frame_time(time_us: int, stored_us: int) -> int:
    """The time of a frame's tokens: the worker's own, or when the frame was stored if the worker's clock is far off."""
    return time_us if abs(time_us - stored_us) <= CLOCK_TOLERANCE_US else stored_us


class FrameGather:
    """Collects stored frames in stream order; pure but for its own growth.

    ``add`` says where a batch has to end: rows of two months would go into two partitions, and an insert is atomic
    only within one. The border depends on nothing but the frames, so it is the same whenever they are read again.
    With ``bordered`` false everything is taken: for a reader that inserts nothing. What is kept of a frame is copied
    out of it, so that its text goes: of captured requests, and with ``captures`` only, it is kept.
    """

    def __init__(self, *, bordered: bool = True, captures: bool = False) -> None:
        self._bordered = bordered
        self._captured = CapturedText() if captures else None
        self.first = 0
        self.last = 0
        self.tokens = 0
        self.frames = 0
        self._month: tuple[int, int] | None = None  # Unix microseconds: from, until
        self._ids: list[bytes] = []
        self._context, self._attempt = array("I"), array("I")
        self._first_index, self._token_count, self._gap_us = array("I"), array("I"), array("I")
        self._token_id = array("I")
        self._deltas: list[int] = []
        self._sequences: list[int] = []
        self._times: list[int] = []
        self._edges: list[str] = []
        self._workers: list[str] = []
        self._codes: dict[bytes, int] = {}
        self._contexts: list[RequestContext] = []
        self._closes: list[ClosedRequest] = []
        self._malformed: list[Malformed] = []

    @property
    def ends(self) -> int:
        """Requests that end in it."""
        return len(self._closes)

    @property
    def size(self) -> int:
        """Rows that would be inserted."""
        return self.tokens + self.ends + (0 if self._captured is None else self._captured.size)

    def add(self, sequence: int, stored_us: int, data: bytes) -> bool:
        """Take the frame; False if it belongs to another month and must open the next batch."""
        try:
            frame = Frame.FromString(data)
            fault = _fault(frame)
        except DecodeError:
            frame, fault = Frame(), "not a Frame"
        if fault:
            self._malformed.append(Malformed(sequence, fault))
        else:
            time_us = frame_time(frame.time_us, stored_us)
            if self._month is None:
                self._month = _month_bounds(time_us)
            elif self._bordered and not self._month[0] <= time_us < self._month[1]:
                return False
            self._take(frame, sequence, time_us)
        self.first = self.first or sequence
        self.last = sequence
        return True

    def _take(self, frame: Frame, sequence: int, time_us: int) -> None:
        deltas = len(frame.first_index)
        contexts = [self._intern(context) for context in frame.contexts]
        if deltas:
            self._ids.append(frame.request_ids)
            self._first_index.extend(frame.first_index)
            self._gap_us.extend(frame.gap_us)
            self._token_id.extend(frame.token_id)
            _extend(self._attempt, frame.attempt, _ONES, deltas)
            _extend(self._token_count, frame.token_count, _ONES, deltas)
            if frame.context_index:
                self._context.extend(contexts[index] for index in frame.context_index)
            elif contexts[0] == 0:
                _extend(self._context, (), _ZEROS, deltas)
            else:
                self._context.extend([contexts[0]] * deltas)
        self._deltas.append(deltas)
        self._sequences.append(sequence)
        self._times.append(time_us)
        self._edges.append(frame.edge)
        self._workers.append(frame.worker)
        for one in frame.closes:
            close = Close()
            close.CopyFrom(one)
            context = self._contexts[contexts[close.context_index]]
            self._closes.append(ClosedRequest(close, context, frame.edge, frame.worker, time_us, sequence))
        if self._captured is not None:
            self._captured.take(frame, sequence, time_us)
        self.tokens += len(frame.token_id)
        self.frames += 1

    def _intern(self, context: RequestContext) -> int:
        data = context.SerializeToString()
        code = self._codes.get(data)
        if code is None:
            code = self._codes[data] = len(self._contexts)
            self._contexts.append(RequestContext.FromString(data))
        return code

    def finish(self) -> FrameBatch:
        return FrameBatch(
            first_sequence=self.first,
            last_sequence=self.last,
            request_id=np.frombuffer(b"".join(self._ids), np.uint8).reshape(-1, _ID_BYTES),
            context=_column(self._context),
            attempt=_column(self._attempt),
            first_index=_column(self._first_index),
            token_count=_column(self._token_count),
            gap_us=_column(self._gap_us),
            frame=np.repeat(np.arange(len(self._deltas), dtype=np.uint32), self._deltas),
            token_id=_column(self._token_id),
            frame_sequence=np.array(self._sequences, np.uint64),
            frame_time_us=np.array(self._times, np.int64),
            frame_edge=tuple(self._edges),
            frame_worker=tuple(self._workers),
            contexts=tuple(self._contexts),
            closes=tuple(self._closes),
            malformed=tuple(self._malformed),
            captured=() if self._captured is None else self._captured.stretches,
        )


def _fault(frame: Frame) -> str:
    """What is wrong with the frame's shape; empty if nothing."""
    deltas = len(frame.first_index)
    if len(frame.request_ids) != deltas * _ID_BYTES or len(frame.gap_us) != deltas:
        return "columns of different length"
    if any(len(column) not in (0, deltas) for column in (frame.context_index, frame.attempt, frame.token_count)):
        return "columns of different length"
    tokens = sum(frame.token_count) if frame.token_count else deltas
    if tokens != len(frame.token_id):
        return "token_count does not add up to token_id"
    if deltas and (max(frame.context_index) if frame.context_index else 0) >= len(frame.contexts):
        return "a delta without its context"
    if frame.attempt and max(frame.attempt) > _MAX_ATTEMPT:
        return "attempt out of range"
    if deltas and max(frame.first_index) > _MAX_INDEX - tokens:
        return "index out of range"
    for close in frame.closes:
        if len(close.request_id) != _ID_BYTES:
            return "a close without a request id"
        if close.context_index >= len(frame.contexts):
            return "a close without its context"
        if close.attempt > _MAX_ATTEMPT:
            return "attempt out of range"
        for name in _CLOSE_TIMES:
            stamp: Timestamp = getattr(close, name)
            if not (0 <= stamp.seconds <= _MAX_SECONDS and 0 <= stamp.nanos <= _MAX_NANOS):
                return f"{name} out of range"
    return ""


def _extend(column: "array[int]", values: object, default: "array[int]", count: int) -> None:
    if values:
        column.extend(values)  # type: ignore[arg-type]
    elif count <= len(default):
        column.extend(default[:count])
    else:
        column.extend([default[0]] * count)


def _column(values: "array[int]") -> NDArray[np.uint32]:
    return np.frombuffer(values, np.uint32) if values else np.empty(0, np.uint32)


def _month_bounds(unix_us: int) -> tuple[int, int]:
    at = datetime.fromtimestamp(unix_us // 1_000_000, UTC)
    begin = timegm((at.year, at.month, 1, 0, 0, 0))
    end = timegm((at.year + at.month // 12, at.month % 12 + 1, 1, 0, 0, 0))
    return begin * 1_000_000, end * 1_000_000

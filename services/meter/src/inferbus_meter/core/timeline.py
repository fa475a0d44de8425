"""One request as a timeline: its tokens by attempt, and what happened when. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.delivery_pb2 import DeliveryEnd
from inferbus.meter.v1.requests_pb2 import (
    TimelineAttempt,
    TimelineDelivery,
    TimelineEvent,
    TimelineKind,
)
from numpy.typing import NDArray

# What clients wait for is said to be a stall from here on, as in the rollup token_minutes.
STALL_US = 1_000_000
_MOST_STALLS = 20
_INT = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The rows of ``token_events`` of one request in the order of the log; times in Unix microseconds. ``last_attempt``
    and ``counted``: of its end, 0 if there is none yet. An attempt that made no token opened at what it counts."""

    attempt: _INT
    index: _INT
    time_us: _INT
    gap_us: _INT
    last_attempt: int = 0
    counted: int = 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], last_attempt: int = 0, counted: int = 0) -> "Tokens":
        """``rows``: attempt, index, time, gap."""
        table = np.array(rows, np.int64).reshape(-1, 4)
        return cls(table[:, 0], table[:, 1], table[:, 2], table[:, 3], last_attempt, counted)


def void_tokens(tokens: Tokens) -> NDArray[np.bool_]:
    """Which of them do not count, by the laws of the log: see :mod:`.laws`."""
    attempt, index = tokens.attempt, tokens.index
    if not len(attempt):
        return np.zeros(0, np.bool_)
    in_force = np.maximum.accumulate(attempt)
    # Late: another attempt had opened before it came.
    void: NDArray[np.bool_] = attempt < in_force
    bound = tokens.counted if tokens.last_attempt > in_force[-1] else int(index.max()) + 1
    for number in np.unique(in_force)[::-1]:
        at = np.flatnonzero((attempt == number) & ~void)
        repeated = index[at][1:] <= np.maximum.accumulate(index[at])[:-1]
        void[at[1:][repeated]] = True
        void[at[index[at] >= bound]] = True
        # Where it opened: from there on those before it are void.
        bound = min(bound, int(index[at[0]]))
    return void


def attempts_of(tokens: Tokens, accepted_us: int, workers: dict[int, str]) -> list[TimelineAttempt]:
    """Every attempt up to the last one, by number."""
    void = void_tokens(tokens)
    made = []
    for number in range(1, max(tokens.last_attempt, int(tokens.attempt.max(initial=0))) + 1):
        at = np.flatnonzero(tokens.attempt == number)
        one = TimelineAttempt(number=number, worker=workers.get(number, ""), tokens=len(at))
        if len(at):
            _put_columns(one, tokens, at, void[at], accepted_us)
        made.append(one)
    return made


def _put_columns(
    one: TimelineAttempt, tokens: Tokens, at: NDArray[np.intp], void: NDArray[np.bool_], accepted_us: int
) -> None:
    index = tokens.index[at]
    one.first_index = int(index[0])
    if not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        one.index = index.astype("<u4").tobytes()
    one.offset_us = (tokens.time_us[at] - accepted_us).astype("<i8").tobytes()
    one.gap_us = tokens.gap_us[at].astype("<u4").tobytes()
    one.void_tokens = int(void.sum())
    if one.void_tokens:
        one.void = void.astype(np.uint8).tobytes()


@dataclass(frozen=True, slots=True)
class Ending:
    """What a row of ``bills`` says of when; times in Unix microseconds, None where it never came to that."""

    attempt: int
    placed_us: int | None
    started_us: int | None
    end_us: int
    finish_reason: str
    error_reason: str
    worker: str


@dataclass(frozen=True, slots=True)
class Billed:
    """A charge or what a correction added to it, when it was stored."""

    time_us: int
    rate_version: str
    amount: str
    currency: str
    adjusts: bool = False


def events_of(
    accepted_us: int,
    edge: str,
    tokens: Tokens,
    workers: dict[int, str],
    ending: Ending | None,
    deliveries: Iterable[TimelineDelivery],
    bills: Iterable[Billed],
) -> list[TimelineEvent]:
    """In order of time; what is at the same time in the order in which it happens."""
    events = [_event(accepted_us, TimelineKind.TIMELINE_KIND_ACCEPTED, actor=edge)]
    if ending is not None:
        events += _before_tokens(ending, workers)
    events += _of_tokens(tokens, workers, ended=ending is not None)
    if ending is not None:
        events.append(_end(ending))
    for one in deliveries:
        how = DeliveryEnd.Name(one.end).removeprefix("DELIVERY_END_").lower()
        made = TimelineEvent(
            kind=TimelineKind.TIMELINE_KIND_DELIVERED, actor=one.edge, detail=how, tokens=one.tokens, time=one.time
        )
        events.append(made)
    for bill in bills:
        kind = TimelineKind.TIMELINE_KIND_ADJUSTED if bill.adjusts else TimelineKind.TIMELINE_KIND_BILLED
        made = _event(bill.time_us, kind, detail=bill.rate_version)
        made.amount, made.currency = bill.amount, bill.currency
        events.append(made)
    return sorted(events, key=lambda one: (one.time.seconds, one.time.nanos, one.kind))


def _before_tokens(ending: Ending, workers: dict[int, str]) -> Iterator[TimelineEvent]:
    if ending.placed_us is not None and ending.attempt:
        first = workers.get(1, ending.worker)
        yield _event(ending.placed_us, TimelineKind.TIMELINE_KIND_PLACED, attempt=1, actor=first)
    if ending.started_us is not None:
        kind = TimelineKind.TIMELINE_KIND_STARTED
        yield _event(ending.started_us, kind, attempt=ending.attempt, actor=ending.worker)


def _of_tokens(tokens: Tokens, workers: dict[int, str], *, ended: bool) -> Iterator[TimelineEvent]:
    valid = np.flatnonzero(~void_tokens(tokens))
    openings = np.diff(tokens.attempt[valid], prepend=0) > 0
    for at in valid[openings]:
        first = tokens.index[at] == 0
        kind = TimelineKind.TIMELINE_KIND_FIRST_TOKEN if first else TimelineKind.TIMELINE_KIND_RESUMED
        yield _token(tokens, int(at), kind, workers)
    between = valid[~openings]
    stalls = between[tokens.gap_us[between] > STALL_US]
    for at in stalls[np.argsort(-tokens.gap_us[stalls], kind="stable")][:_MOST_STALLS]:
        yield _token(tokens, int(at), TimelineKind.TIMELINE_KIND_STALLED, workers)
    if ended and len(valid):
        yield _token(tokens, int(valid[-1]), TimelineKind.TIMELINE_KIND_LAST_TOKEN, workers)


def _token(tokens: Tokens, at: int, kind: TimelineKind.ValueType, workers: dict[int, str]) -> TimelineEvent:
    attempt = int(tokens.attempt[at])
    event = _event(int(tokens.time_us[at]), kind, attempt=attempt, actor=workers.get(attempt, ""))
    event.index = int(tokens.index[at])
    event.gap.CopyFrom(micros(int(tokens.gap_us[at])))
    return event


def _end(ending: Ending) -> TimelineEvent:
    kind = TimelineKind.TIMELINE_KIND_ENDED if ending.attempt else TimelineKind.TIMELINE_KIND_REFUSED
    detail = " ".join(filter(None, (ending.finish_reason, ending.error_reason)))
    return _event(ending.end_us, kind, attempt=ending.attempt, actor=ending.worker, detail=detail)


def _event(
    time_us: int, kind: TimelineKind.ValueType, *, attempt: int = 0, actor: str = "", detail: str = ""
) -> TimelineEvent:
    event = TimelineEvent(kind=kind, attempt=attempt, actor=actor, detail=detail)
    event.time.CopyFrom(moment(time_us))
    return event


def moment(unix_us: int) -> Timestamp:
    return Timestamp(seconds=unix_us // 1_000_000, nanos=unix_us % 1_000_000 * 1000)


def micros(value: int) -> Duration:
    return Duration(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000)

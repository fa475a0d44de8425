"""What the log already holds of requests that a worker finds again after its restart."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferbus.bus.v1.frame_pb2 import Frame

_ID_BYTES = 16


@dataclass(slots=True)
class Recovered:
    """``attempt`` 0: nothing is there. Times are Unix microseconds, 0 before the first token."""

    attempt: int = 0
    ids: list[int] = field(default_factory=list)
    first_us: int = 0
    last_us: int = 0
    closed: bool = False


def fold(frame: Frame, wanted: Mapping[bytes, Recovered]) -> None:
    """Takes over what ``frame``, the next in stream order, says of the ``wanted`` requests, by the laws of a frame."""
    request_ids = frame.request_ids
    position = 0
    for number, first_index in enumerate(frame.first_index):
        count = frame.token_count[number] if frame.token_count else 1
        recovered = wanted.get(request_ids[number * _ID_BYTES : (number + 1) * _ID_BYTES])
        if recovered is not None:
            attempt = frame.attempt[number] if frame.attempt else 1
            ids = frame.token_id[position : position + count]
            _take(recovered, attempt, first_index, ids, frame.time_us)
        position += count
    for close in frame.closes:
        closed = wanted.get(close.request_id)
        if closed is not None and close.attempt >= closed.attempt:
            closed.attempt, closed.closed = close.attempt, True


def _take(recovered: Recovered, attempt: int, first_index: int, ids: list[int], time_us: int) -> None:
    if attempt < recovered.attempt:
        return  # void: a later attempt has opened
    if attempt > recovered.attempt:
        recovered.attempt = attempt
        del recovered.ids[first_index:]
    if not ids or first_index != len(recovered.ids):
        return
    recovered.ids += ids
    recovered.last_us = time_us
    if first_index == 0:
        recovered.first_us = time_us

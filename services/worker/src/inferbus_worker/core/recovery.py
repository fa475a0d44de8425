"""What the log already holds of requests that a worker finds again after its restart."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferbus.bus.v1.frame_pb2 import Embedding, Frame, Output

from inferbus_worker.core.timing import unix_us

_ID_BYTES = 16


@dataclass(slots=True)
class Recovered:
    """``attempt`` 0: nothing is there. ``texts``: of each delta, with the number of tokens before it. Times are Unix
    microseconds, 0 before the first token; ``first_started_us``: 0 where the log does not say it."""

    attempt: int = 0
    ids: list[int] = field(default_factory=list)
    texts: list[tuple[int, bytes]] = field(default_factory=list)
    first_started_us: int = 0
    first_us: int = 0
    last_us: int = 0
    closed: bool = False


def fold(frame: Frame, wanted: Mapping[bytes, Recovered]) -> None:
    """Takes over what ``frame``, the next in stream order, says of the ``wanted`` requests, by the laws of a frame."""
    request_ids = frame.request_ids
    position = text_at = 0
    for number, first_index in enumerate(frame.first_index):
        count = frame.token_count[number] if frame.token_count else 1
        recovered = wanted.get(request_ids[number * _ID_BYTES : (number + 1) * _ID_BYTES])
        if recovered is not None:
            attempt = frame.attempt[number] if frame.attempt else 1
            ids = frame.token_id[position : position + count]
            text = frame.text[text_at : text_at + frame.text_size[number]]
            _take(recovered, attempt, first_index, ids, text, frame.time_us)
        position += count
        text_at += frame.text_size[number]
    parts: list[Embedding | Output] = [*frame.embeddings, *frame.outputs]
    for part in parts:
        # Made again as a whole, but under an attempt of its own: what is late of this one is void then.
        if (begun := wanted.get(part.request_id)) is not None:
            begun.attempt = max(begun.attempt, part.attempt or 1)
    for opening in frame.opens:
        opened = wanted.get(opening.request_id)
        if opened is not None and opening.HasField("first_started_time"):
            # Each attempt that knows it hands it on.
            opened.first_started_us = unix_us(opening.first_started_time)
    for close in frame.closes:
        closed = wanted.get(close.request_id)
        if closed is not None and close.attempt >= closed.attempt:
            closed.attempt, closed.closed = close.attempt, True


def _take(recovered: Recovered, attempt: int, first_index: int, ids: list[int], text: bytes, time_us: int) -> None:
    if attempt < recovered.attempt:
        return  # void: a later attempt has opened
    if attempt > recovered.attempt:
        recovered.attempt = attempt
        del recovered.ids[first_index:]
        # What has no tokens of its own stands behind those before it, and goes with them.
        recovered.texts = [one for one in recovered.texts if one[0] < first_index]
    if first_index != len(recovered.ids):
        return
    recovered.texts.append((first_index, text))
    if not ids:
        return
    recovered.ids += ids
    recovered.last_us = time_us
    if first_index == 0:
        recovered.first_us = time_us

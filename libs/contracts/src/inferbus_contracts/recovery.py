"""How far requests have come, by what the log holds of them: for whoever gives them to another worker, and for a worker
that is given one of its own again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Embedding, Frame, Output
from inferbus.bus.v1.request_pb2 import Resume

FURTHER_BACK_US = (60_000_000, 3_600_000_000)
"""So much earlier the log is read again where a gap shows that the clocks were further apart than was thought."""
_ID_BYTES = 16


@dataclass(slots=True)
class Recovered:
    """``attempt`` 0: nothing is there. ``texts``: of each delta, with the number of tokens before it. Times are Unix
    microseconds, 0 before the first token; ``first_started_us``: 0 where the log does not say it. ``parts``: vectors or
    parts of an answer without tokens are there, of an attempt that was read. ``gap``: tokens follow that do not join on
    to ``ids``: what was read begins behind the first of them, and nothing may go on after ``ids``."""

    attempt: int = 0
    ids: list[int] = field(default_factory=list)
    texts: list[tuple[int, bytes]] = field(default_factory=list)
    first_started_us: int = 0
    first_us: int = 0
    last_us: int = 0
    closed: bool = False
    parts: bool = False
    gap: bool = False


def begun(resume: Resume) -> Recovered:
    """What is known before anything is read of the attempt that ``resume`` was placed for; an empty one: the first."""
    if not resume.attempt:
        return Recovered()
    text = [(len(resume.token_ids), resume.text)] if resume.text else []
    return Recovered(
        attempt=resume.attempt,
        ids=list(resume.token_ids),
        texts=text,
        first_started_us=_unix_us(resume.first_started_time),
        first_us=_unix_us(resume.first_token_time),
        last_us=_unix_us(resume.last_token_time),
    )


def fold(frame: Frame, wanted: Mapping[bytes, Recovered]) -> None:
    """Takes over what ``frame``, the next in stream order, says of the ``wanted`` requests, by the laws of a frame.

    ``attempt`` then is the highest that has begun, or that a fence has announced.
    """
    for fence in frame.fences:
        fenced = wanted.get(fence.request_id)
        if fenced is not None:
            fenced.attempt = max(fenced.attempt, fence.attempt)
    # Columns are taken out once: each access to one makes it anew.
    request_ids, text, token_ids = frame.request_ids, frame.text, list(frame.token_id)
    first_indexes = list(frame.first_index)
    counts = list(frame.token_count) or [1] * len(first_indexes)
    attempts = list(frame.attempt) or [1] * len(first_indexes)
    time_us, get = frame.time_us, wanted.get
    position = text_at = id_at = 0
    for first_index, count, attempt, size in zip(first_indexes, counts, attempts, frame.text_size, strict=True):
        recovered = get(request_ids[id_at : id_at + _ID_BYTES])
        if recovered is not None:
            said = text[text_at : text_at + size]
            if count == 1 and attempt == recovered.attempt and 0 < first_index == len(recovered.ids):
                # As _take does; nearly all are such.
                recovered.ids.append(token_ids[position])
                recovered.texts.append((first_index, said))
                recovered.last_us = time_us
            else:
                _take(recovered, attempt, first_index, token_ids[position : position + count], said, time_us)
        position += count
        text_at += size
        id_at += _ID_BYTES
    parts: list[Embedding | Output] = [*frame.embeddings, *frame.outputs]
    for part in parts:
        # Made again as a whole, but under an attempt of its own: what is late of this one is void then.
        made = wanted.get(part.request_id)
        if made is not None and (part.attempt or 1) >= made.attempt:
            made.attempt, made.parts = part.attempt or 1, True
    for opening in frame.opens:
        opened = wanted.get(opening.request_id)
        if opened is not None and opening.HasField("first_started_time"):
            # Each attempt that knows it hands it on.
            opened.first_started_us = _unix_us(opening.first_started_time)
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
        recovered.gap = False
    if first_index != len(recovered.ids):
        recovered.gap = recovered.gap or first_index > len(recovered.ids)
        return
    recovered.texts.append((first_index, text))
    if not ids:
        return
    recovered.ids += ids
    recovered.last_us = time_us
    if first_index == 0:
        recovered.first_us = time_us


def _unix_us(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000

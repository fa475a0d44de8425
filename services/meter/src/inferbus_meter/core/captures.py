"""Text of captured requests: into rows of ``captures``, and out of them into what was said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from inferbus_contracts.ids import unix_ms_of

from inferbus_meter.core.captured_text import INPUT, Stretch
from inferbus_meter.core.native import NativeBlock, uuids
from inferbus_meter.core.rows import TIME, IsErased, Rows

_CONTEXT_COLUMNS = ("tenant_id", "project_id", "key_id", "model", "revision")


def capture_rows(stretches: Iterable[Stretch], is_erased: IsErased) -> list[tuple[str, Rows]]:
    """(day, rows of ``captures``) for each day of their time: an insert is atomic within one partition. What was erased
    is left out: by tenant here, by end user once the request's end says who it was."""
    days: dict[str, list[Stretch]] = {}
    for one in stretches:
        if not is_erased(one.context.tenant_id, "", unix_ms_of(one.request_id) * 1000):
            day = datetime.fromtimestamp(one.time_us // 1_000_000, UTC).strftime("%Y%m%d")
            days.setdefault(day, []).append(one)
    return [(day, _rows(some)) for day, some in days.items()]


def _rows(stretches: Sequence[Stretch]) -> Rows:
    block = NativeBlock(len(stretches))
    ids = b"".join(one.request_id for one in stretches)
    block.fixed("request_id", "UUID", uuids(np.frombuffer(ids, np.uint8).reshape(-1, 16)))
    for name in _CONTEXT_COLUMNS:
        block.strings(name, [getattr(one.context, name) for one in stretches])
    block.strings("kind", [one.kind for one in stretches])
    block.fixed("attempt", "UInt16", np.array([one.attempt for one in stretches], np.uint16))
    block.fixed("truncated", "Bool", np.array([one.truncated for one in stretches], np.uint8))
    for name in ("first_index", "token_count", "text_size"):
        block.arrays(name, "UInt32", [getattr(one, name) for one in stretches], np.uint32)
    block.data("text", [bytes(one.text) for one in stretches])
    accepted = [unix_ms_of(one.request_id) for one in stretches]
    block.fixed("accepted_time", "DateTime64(3, 'UTC')", np.array(accepted, np.int64))
    block.fixed("time", TIME, np.array([one.time_us for one in stretches], np.int64))
    block.fixed("stream_seq", "UInt64", np.array([one.sequence for one in stretches], np.uint64))
    return Rows("captures", len(stretches), block.encode())


@dataclass(frozen=True, slots=True)
class Part:
    """A row of one request as it is read again."""

    kind: str
    attempt: int
    truncated: bool
    first_index: Sequence[int]
    token_count: Sequence[int]
    text_size: Sequence[int]
    text: bytes


@dataclass(frozen=True, slots=True)
class Said:
    """What a request asked and was answered. A character that only a part of was kept of is left out."""

    input: str
    output: str
    input_truncated: bool
    output_truncated: bool


def put_together(parts: Iterable[Part]) -> Said:
    """``parts`` of one request in stream order. By the laws of the log: an attempt opens with its first delta, whether
    it has a token or not, and from there on what lower attempts had from that index on is void."""
    attempt, asked, asked_truncated, truncated = 0, "", False, False
    valid: list[tuple[int, bytes]] = []  # (index after it, text)
    for part in parts:
        if part.kind == INPUT:
            asked, asked_truncated = part.text.decode(errors="ignore"), part.truncated
            continue
        position = 0
        for index, count, size in zip(part.first_index, part.token_count, part.text_size, strict=True):
            begin, position = position, position + size
            if part.attempt < attempt:
                continue
            if part.attempt > attempt:
                attempt = part.attempt
                valid = [one for one in valid if one[0] <= index]
            after = valid[-1][0] if valid else 0
            if index < after:
                continue  # said already
            valid.append((index + count, part.text[begin:position]))
        truncated |= part.truncated
    output = b"".join(text for _, text in valid).decode(errors="ignore")
    return Said(asked, output, asked_truncated, truncated)

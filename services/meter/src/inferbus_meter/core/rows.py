"""A batch of frames as rows for ClickHouse: one row a token, one row a request that ended.

Tokens never become Python objects: columns of deltas are repeated and offset as numpy columns, and strings travel as
codes into short lists of distinct values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Operation, PriorityClass
from numpy.typing import NDArray

from inferbus_meter.core.frames import ClosedRequest, FrameBatch
from inferbus_meter.core.native import NativeBlock, uuids
from inferbus_meter.core.rating import COST_SCALE, Rate, cost, rate_for

TIME = "DateTime64(6, 'UTC')"
_CONTEXT_COLUMNS = ("tenant_id", "project_id", "key_id", "model", "revision")
# What DateTime64(6) and the hours in the sorting key can hold: 1970 to 2106.
_MAX_TIME_US = ((1 << 32) - 1) * 1_000_000
# A day of a rack. Neither infinity nor what is not a number is below it.
_MAX_JOULES = 1e10


@dataclass(frozen=True, slots=True)
class Rows:
    """One insert: ``data`` is a Native block of ``count`` rows."""

    table: str
    count: int
    data: bytes


def token_rows(batch: FrameBatch) -> Rows:
    """Rows of ``token_events``. A delta of n tokens gives n rows; the second and later ones have a gap of 0."""
    counts = batch.token_count
    delta = np.repeat(np.arange(len(counts)), counts)
    # Position of each token inside its delta.
    offset = np.arange(len(delta)) - np.repeat(np.cumsum(counts, dtype=np.int64) - counts, counts)
    frame = batch.frame[delta]
    context = batch.context[delta]
    block = NativeBlock(len(delta))
    for name in _CONTEXT_COLUMNS:
        codes, keys = _distinct([getattr(item, name) for item in batch.contexts])
        block.low_cardinality(name, codes[context], keys)
    for name, values in (("worker", batch.frame_worker), ("edge", batch.frame_edge)):
        codes, keys = _distinct(values)
        block.low_cardinality(name, codes[frame], keys)
    block.fixed("request_id", "UUID", uuids(batch.request_id).reshape(-1, 2)[delta])
    block.fixed("attempt", "UInt16", batch.attempt[delta].astype(np.uint16))
    block.fixed("index", "UInt32", (batch.first_index[delta] + offset).astype(np.uint32))
    block.fixed("token_id", "UInt32", batch.token_id)
    block.fixed("time", TIME, batch.frame_time_us[frame])
    block.fixed("gap_us", "UInt32", np.where(offset == 0, batch.gap_us[delta], 0).astype(np.uint32))
    block.fixed("stream_seq", "UInt64", batch.frame_sequence[frame])
    return Rows("token_events", len(delta), block.encode())


def request_rows(batch: FrameBatch, rates: Mapping[str, Rate]) -> Rows:
    """Rows of ``requests``, one a Close, with its cost."""
    closes = batch.closes
    block = NativeBlock(len(closes))
    ids = np.frombuffer(b"".join(item.close.request_id for item in closes), np.uint8).reshape(-1, 16)
    block.fixed("request_id", "UUID", uuids(ids))
    for name in _CONTEXT_COLUMNS:
        block.strings(name, [getattr(item.context, name) for item in closes])
    for name, text in _TEXTS.items():
        block.strings(name, [text(item) for item in closes])
    for name, type_name, dtype, value in _NUMBERS:
        block.fixed(name, type_name, np.array([value(item) for item in closes], dtype))
    for name, duration in _DURATIONS.items():
        block.nullable(name, "UInt64", [duration(item.close) for item in closes], np.uint64)
    estimated = np.array([item.close.usage.estimated for item in closes], np.uint8)
    block.fixed("estimated", "Bool", estimated)
    block.nullable("energy_j", "Float32", [energy_j(item.close) for item in closes], np.float32)
    _put_costs(block, closes, rates)
    return Rows("requests", len(closes), block.encode())


def _put_costs(block: NativeBlock, closes: Sequence[ClosedRequest], rates: Mapping[str, Rate]) -> None:
    applied = [rate_for(item.context.model, rates) for item in closes]
    amounts: dict[str, list[Decimal]] = {
        "cost": [cost(item.close.usage, rate) for item, rate in zip(closes, applied, strict=True)],
        "input_per_million": [rate.input_per_million for rate in applied],
        "cached_input_per_million": [rate.cached_input_per_million for rate in applied],
        "output_per_million": [rate.output_per_million for rate in applied],
    }
    for name, values in amounts.items():
        block.decimals(name, values, COST_SCALE)
    block.strings("currency", [rate.currency for rate in applied])
    block.strings("rate_version", [rate.version for rate in applied])


def accepted_us(item: ClosedRequest) -> int:
    """When the request was accepted, Unix microseconds.

    Part of the sorting key, by which a second Close of a request is recognised. So without a usable time in the Close
    it is taken from the request id (UUIDv7), which is the same in every Close, and not from the frame.
    """
    if item.close.HasField("accepted_time"):
        given = unix_us(item.close.accepted_time)
        if 0 < given <= _MAX_TIME_US:
            return given
    return min(int.from_bytes(item.close.request_id[:6], "big") * 1000, _MAX_TIME_US)


def unix_us(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def ttft_us(close: Close) -> int | None:
    return _between(close, "accepted_time", "first_token_time")


def e2e_us(close: Close) -> int | None:
    return _between(close, "accepted_time", "last_token_time")


def tpot_us(close: Close) -> int | None:
    """(E2E - TTFT) / (output tokens - 1), which is the time from the first to the last token by the gaps between."""
    spread = _between(close, "first_token_time", "last_token_time")
    gaps = close.usage.output_tokens - 1
    return None if spread is None or gaps < 1 else spread // gaps


def queue_us(close: Close) -> int | None:
    return _between(close, "accepted_time", "started_time")


def energy_j(close: Close) -> float | None:
    """Joules; None if they were not measured, and for what no energy can be: one such row would spoil every sum."""
    joules = close.energy_joules
    return joules if close.HasField("energy_joules") and 0 <= joules < _MAX_JOULES else None


def _between(close: Close, begin: str, end: str) -> int | None:
    """Microseconds; None if either is absent. Clocks of two machines differ, so a negative one counts as 0."""
    if not (close.HasField(begin) and close.HasField(end)):  # type: ignore[arg-type]
        return None
    return max(0, unix_us(getattr(close, end)) - unix_us(getattr(close, begin)))


def _enum_text(enum: object, prefix: str) -> dict[int, str]:
    """``FINISH_REASON_STOP`` -> ``stop``; unspecified is empty."""
    names = {number: name.removeprefix(prefix).lower() for name, number in enum.items()}  # type: ignore[attr-defined]
    return {number: "" if name == "unspecified" else name for number, name in names.items()}


_FINISH = _enum_text(FinishReason, "FINISH_REASON_")
_CLASSES = _enum_text(ErrorClass, "ERROR_CLASS_")
_PRIORITIES = _enum_text(PriorityClass, "PRIORITY_CLASS_")
_OPERATIONS = _enum_text(Operation, "OPERATION_")

_TEXTS: dict[str, Callable[[ClosedRequest], str]] = {
    "engine": lambda item: item.close.engine,
    "edge": lambda item: item.edge,
    "worker": lambda item: item.worker,
    "priority_class": lambda item: _PRIORITIES.get(item.close.priority_class, ""),
    "operation": lambda item: _OPERATIONS.get(item.close.operation, ""),
    "finish_reason": lambda item: _FINISH.get(item.close.finish_reason, ""),
    "error_class": lambda item: _CLASSES.get(item.close.error.error_class, ""),
    "error_reason": lambda item: item.close.error.reason,
}
_NUMBERS: tuple[tuple[str, str, type[np.generic], Callable[[ClosedRequest], int]], ...] = (
    ("attempt", "UInt16", np.uint16, lambda item: item.close.attempt),
    ("accepted_time", TIME, np.int64, accepted_us),
    ("end_time", TIME, np.int64, lambda item: item.time_us),
    ("input_tokens", "UInt32", np.uint32, lambda item: item.close.usage.input_tokens),
    ("cached_input_tokens", "UInt32", np.uint32, lambda item: item.close.usage.cached_input_tokens),
    ("output_tokens", "UInt32", np.uint32, lambda item: item.close.usage.output_tokens),
    ("reasoning_tokens", "UInt32", np.uint32, lambda item: item.close.usage.reasoning_tokens),
    ("stream_seq", "UInt64", np.uint64, lambda item: item.sequence),
)
_DURATIONS: dict[str, Callable[[Close], int | None]] = {
    "queue_us": queue_us,
    "ttft_us": ttft_us,
    "e2e_us": e2e_us,
    "tpot_us": tpot_us,
}


def _distinct(values: Sequence[str]) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
    """Codes of ``values`` and the distinct values they stand for."""
    keys: dict[str, int] = {}
    return np.array([keys.setdefault(value, len(keys)) for value in values], np.uint32), tuple(keys)

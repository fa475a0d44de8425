"""A batch of frames as rows for ClickHouse: one row a token, one row a request that ended.

Tokens never become Python objects: columns of deltas are repeated and offset as numpy columns, and strings travel as
codes into short lists of distinct values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.context_pb2 import Labels
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Operation, PriorityClass
from inferbus_contracts.erasure import ERASED
from inferbus_contracts.ids import choice_of
from inferbus_rating import UNRATED, PriceBook, Rate, Scope, cost, is_answered
from inferbus_rating.amounts import SCALE
from numpy.typing import NDArray

from inferbus_meter.core.epochs import UNKNOWN, Epoch
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.frames import ClosedRequest, FrameBatch
from inferbus_meter.core.native import Block, NativeBlock, uuids

TIME = "DateTime64(6, 'UTC')"
IsErased = Callable[[str, str, int], bool]
"""Of tenant, end user and acceptance (Unix microseconds): see :mod:`.erasing`."""
_NO_LABELS = Labels(end_user=ERASED)
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


def token_rows(batch: FrameBatch, epoch: Epoch | None = None) -> Rows:
    """Rows of ``token_events``. A delta of n tokens gives n rows; the second and later ones have a gap of 0. ``epoch``:
    of which stream; None: not known."""
    block = NativeBlock(len(batch.token_id))
    put_tokens(block, batch, epoch)
    return Rows("token_events", len(batch.token_id), block.encode())


def put_tokens(block: Block, batch: FrameBatch, epoch: Epoch | None) -> None:
    """The columns of :func:`token_rows`."""
    counts = batch.token_count
    delta = np.repeat(np.arange(len(counts)), counts)
    # Position of each token inside its delta.
    offset = np.arange(len(delta)) - np.repeat(np.cumsum(counts, dtype=np.int64) - counts, counts)
    frame = batch.frame[delta]
    context = batch.context[delta]
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
    _put_epoch(block, batch.frame_sequence[frame], epoch)


def request_rows(
    batch: FrameBatch,
    book: PriceBook,
    charged: Mapping[bytes, Rate] = MappingProxyType({}),
    is_erased: IsErased = nobody_erased,
    epoch: Epoch | None = None,
) -> Rows:
    """Rows of ``requests``, one a Close, with its cost. ``charged``: by id, the rates by which requests were charged
    before; they are charged by those again. ``is_erased``: whose labels do not go in. ``epoch``: see
    :func:`token_rows`.
    """
    block = NativeBlock(len(batch.closes))
    put_requests(block, batch.closes, book, charged, is_erased, epoch)
    return Rows("requests", len(batch.closes), block.encode())


def put_requests(
    block: Block,
    closes: Sequence[ClosedRequest],
    book: PriceBook,
    charged: Mapping[bytes, Rate],
    is_erased: IsErased,
    epoch: Epoch | None,
) -> None:
    """The columns of :func:`request_rows`."""
    erased = [is_erased(item.context.tenant_id, item.close.labels.end_user, accepted_us(item)) for item in closes]
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
    labels = [_NO_LABELS if gone else item.close.labels for item, gone in zip(closes, erased, strict=True)]
    block.texts("end_user", [one.end_user for one in labels])
    block.maps("tags", [one.tags for one in labels])
    block.nullable("energy_j", "Float32", [energy_j(item.close) for item in closes], np.float32)
    _put_epoch(block, np.array([item.sequence for item in closes], np.uint64), epoch)
    _put_costs(block, closes, book, charged)


# The columns that a charge can be recomputed from, beside the tokens of the row.
RATE_COLUMNS = (
    "input_per_million",
    "cached_input_per_million",
    "output_per_million",
    "reasoning_per_million",
    "per_call",
    "minimum",
    "factor",
)


def _put_epoch(block: Block, sequences: NDArray[np.uint64], epoch: Epoch | None) -> None:
    written = np.full(len(sequences), UNKNOWN, np.uint32) if epoch is None else epoch.written_of(sequences)
    block.fixed("stream_epoch", "UInt32", written)


def _put_costs(block: Block, closes: Sequence[ClosedRequest], book: PriceBook, charged: Mapping[bytes, Rate]) -> None:
    applied = [charged.get(item.close.request_id) or rate_of(item, book) for item in closes]
    charges = [charge_of(item.close, rate) for item, rate in zip(closes, applied, strict=True)]
    block.decimals("cost", charges, SCALE)
    for name in RATE_COLUMNS:
        block.decimals(name, [getattr(rate, name) for rate in applied], SCALE)
    block.strings("currency", [rate.currency for rate in applied])
    block.strings("rate_version", [rate.version for rate in applied])


def rate_of(item: ClosedRequest, book: PriceBook) -> Rate:
    """By the price that was in force when the request was accepted."""
    of = item.context
    scope = Scope(of.tenant_id, of.project_id, of.model, of.revision)
    return book.rate_at(scope, item.close.operation, item.close.priority_class, accepted_us(item))


def rate_named(item: ClosedRequest, book: PriceBook, version: str) -> Rate | None:
    """By the price of that name; None if the book does not have it any more."""
    if not version:
        return UNRATED
    named = [price for price in book.named(version) if price.scope.model in ("", item.context.model)]
    return named[0].rate(item.close.operation, item.close.priority_class) if named else None


def charge_of(close: Close, rate: Rate) -> Decimal:
    first_choice = choice_of(close.request_id) == 0
    return cost(close.usage, rate, first_choice=first_choice, answered=is_answered(close.finish_reason))


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


def placed_us(close: Close) -> int | None:
    return _between(close, "accepted_time", "placed_time")


def queue_us(close: Close) -> int | None:
    """Until an engine had it first. Of one that was tried again this may not be known: when its last attempt began says
    nothing of it."""
    return _between(close, "accepted_time", "first_started_time" if close.attempt > 1 else "started_time")


def started_us(close: Close) -> int | None:
    """Until the engine had it in its last attempt."""
    return _between(close, "accepted_time", "started_time")


def cold_start_us(close: Close) -> int | None:
    """Of its waiting, that for a model without a worker; None if there was none."""
    return close.cold_start_us or None


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
    "failed_revisions": lambda item: ",".join(item.close.failed_revisions),
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
    "placed_us": placed_us,
    "queue_us": queue_us,
    "started_us": started_us,
    "ttft_us": ttft_us,
    "e2e_us": e2e_us,
    "tpot_us": tpot_us,
    "cold_start_us": cold_start_us,
}


def _distinct(values: Sequence[str]) -> tuple[NDArray[np.uint32], tuple[str, ...]]:
    """Codes of ``values`` and the distinct values they stand for."""
    keys: dict[str, int] = {}
    return np.array([keys.setdefault(value, len(keys)) for value in values], np.uint32), tuple(keys)

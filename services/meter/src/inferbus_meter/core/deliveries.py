"""Messages of the stream DELIVERIES as rows for ClickHouse: one row a choice of an answer that ended at an edge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from inferbus.bus.v1.delivery_pb2 import Deliveries, DeliveryEnd

from inferbus_meter.core.frames import frame_time
from inferbus_meter.core.native import NativeBlock, uuids
from inferbus_meter.core.rows import TIME, Rows

_ID_BYTES = 16
_MONTH = "datetime64[M]"
_ENDS = {number: name.removeprefix("DELIVERY_END_").lower() for name, number in DeliveryEnd.items()}


@dataclass(frozen=True, slots=True)
class Received:
    """One message: ``stored_us`` Unix microseconds."""

    sequence: int
    stored_us: int
    message: Deliveries


def received(sequence: int, stored_us: int, data: bytes) -> Received | None:
    """None for what is no such message, or has columns that do not fit together."""
    try:
        message = Deliveries.FromString(data)
    except DecodeError:
        return None
    count = len(message.tokens)
    columns = (message.context_index, message.end, message.time_us)
    if len(message.request_ids) != count * _ID_BYTES or any(len(column) != count for column in columns):
        return None
    if count and max(message.context_index) >= len(message.contexts):
        return None
    return Received(sequence, stored_us, message)


def by_month(messages: Sequence[Received]) -> list[Rows]:
    """Rows of ``deliveries``, a block for each month of their storing, in stream order: an insert is atomic within one
    partition."""
    months: dict[str, list[tuple[Received, int, int]]] = {}
    for one in messages:
        into = months.setdefault(str(np.datetime64(one.stored_us, "us").astype(_MONTH)), [])
        into += [(one, item, frame_time(given, one.stored_us)) for item, given in enumerate(one.message.time_us)]
    return [_rows(entries) for entries in months.values() if entries]


def _rows(entries: Sequence[tuple[Received, int, int]]) -> Rows:
    block = NativeBlock(len(entries))
    ids = b"".join(one.message.request_ids[item * _ID_BYTES : (item + 1) * _ID_BYTES] for one, item, _ in entries)
    block.fixed("request_id", "UUID", uuids(np.frombuffer(ids, np.uint8).reshape(-1, _ID_BYTES)))
    contexts = [one.message.contexts[one.message.context_index[item]] for one, item, _ in entries]
    for name in ("tenant_id", "project_id", "key_id"):
        block.strings(name, [getattr(context, name) for context in contexts])
    block.strings("edge", [one.message.edge for one, _, _ in entries])
    block.strings("end", [_ENDS.get(one.message.end[item], "") for one, item, _ in entries])
    numbers = (
        ("boot", "UInt64", np.uint64, [one.message.boot for one, _, _ in entries]),
        ("sequence", "UInt64", np.uint64, [one.message.sequence for one, _, _ in entries]),
        ("item", "UInt32", np.uint32, [item for _, item, _ in entries]),
        ("tokens", "UInt32", np.uint32, [one.message.tokens[item] for one, item, _ in entries]),
        ("time", TIME, np.int64, [time_us for _, _, time_us in entries]),
        ("stored_time", TIME, np.int64, [one.stored_us for one, _, _ in entries]),
        ("stream_seq", "UInt64", np.uint64, [one.sequence for one, _, _ in entries]),
    )
    for name, type_name, dtype, values in numbers:
        block.fixed(name, type_name, np.array(values, dtype))
    return Rows("deliveries", len(entries), block.encode())

"""Tensors of the Open Inference Protocol: from JSON values and typed contents to bytes, and from bytes to JSON.

Raw is a tensor as it lies in memory: little-endian, row after row; elements of BYTES each after their length (4 bytes).
"""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson
from inferbus.inference.v1.inference_pb2 import InferTensorContents
from inferbus_dialect.schema import MAX_VALUES
from inferbus_runtime.errors import InferBusError, invalid

BYTES, _BF16 = "BYTES", "BF16"
_NUMBERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
# numpy has no such type: the upper half of an FP32.
_SIZES = {_BF16: 2, **{name: dtype.itemsize for name, dtype in _NUMBERS.items()}}
DATATYPES = (*_SIZES, BYTES)
# The field of InferTensorContents that holds a datatype's elements; FP16 and BF16 have none.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_LENGTH = struct.Struct("<I")
# Elements of BYTES, however they are sent: each takes the event loop half a microsecond.
MAX_TEXTS = 50_000
# Of a shape's lengths, those of 0 left out: what a model's server makes of them stays far below 64 bits.
MAX_PRODUCT = 1 << 48
# What JSON may give for an element, by the kind of its numpy type.
_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class TensorError(Exception):
    """``str()`` goes after the tensor's name, for the caller."""


class Room:
    """For the elements that all tensors of one call, or of one answer, may have together: each takes the event loop's
    time."""

    def __init__(self) -> None:
        self._values = MAX_VALUES
        self._texts = MAX_TEXTS

    def take_values(self, count: int) -> None:
        """Raises TensorError if there is no room for so many."""
        self._values -= count
        if self._values < 0:
            raise TensorError(f"has more than {MAX_VALUES} elements outside of binary data, with those before it")

    def take_texts(self, count: int) -> None:
        """As :meth:`take_values`."""
        self._texts -= count
        if self._texts < 0:
            raise TensorError(f"has more than {MAX_TEXTS} texts, with those before it")

    @property
    def texts(self) -> int:
        """For which there is room."""
        return self._texts


def check_raw(datatype: str, shape: Sequence[int], raw: bytes, room: Room) -> None:
    """Raises TensorError if ``raw`` is not what a tensor of this datatype and shape is."""
    if math.prod(max(one, 1) for one in shape) > MAX_PRODUCT:
        raise TensorError(f"has the shape {shown(shape)}, which is too large")
    count = math.prod(shape)
    size = _SIZES.get(datatype)
    if size is None:
        found = len(_ends(raw, room))
        if found != count:
            raise TensorError(f"has the shape {shown(shape)}, which is {count} elements, and holds {found}")
    elif len(raw) != count * size:
        raise TensorError(
            f"has the shape {shown(shape)} of {datatype}, which is {count * size} bytes, and holds {len(raw)}"
        )


def raw_of_json(datatype: str, values: Sequence[Any], room: Room) -> bytes:
    """``values`` as JSON had them, flat or nested as the shape is. Raises TensorError."""
    if datatype == _BF16:
        raise TensorError("is of BF16, which JSON has no values for; send it as binary data")
    flat = _flat(values)
    found = set(map(type, flat))
    if datatype == BYTES:
        if found - {str}:
            raise TensorError("is of BYTES: its elements are texts in JSON")
        room.take_texts(len(flat))
        try:
            return _joined([one.encode() for one in flat])
        except UnicodeEncodeError:
            raise TensorError("holds half a character; send what is no text as binary data") from None
    dtype = _NUMBERS[datatype]
    if found - _TYPES[dtype.kind]:
        kind = {"b": "true or false", "f": "numbers"}.get(dtype.kind, "whole numbers")
        raise TensorError(f"is of {datatype}: its elements are {kind}")
    array = _array(datatype, flat)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise TensorError(f"holds a number that {datatype} cannot have; send NaN and infinities as binary data")
    return array.tobytes()


def raw_of_contents(datatype: str, contents: InferTensorContents, room: Room) -> bytes:
    """Raises TensorError."""
    field = _CONTENTS.get(datatype)
    if field is None:
        raise TensorError(f"is of {datatype}, which 'contents' has no field for; use raw_input_contents")
    given = {one.name for one, _ in contents.ListFields()}
    if given - {field}:
        raise TensorError(f"is of {datatype}: its elements stand in 'contents.{field}' and nowhere else")
    values = getattr(contents, field)
    if datatype == BYTES:
        room.take_texts(len(values))
    else:
        room.take_values(len(values))
    return _joined(values) if datatype == BYTES else _array(datatype, list(values)).tobytes()


def json_of(datatype: str, raw: bytes, room: Room) -> bytes:
    """A JSON list of the elements; NaN and infinities are null. Raises TensorError if JSON cannot hold them, and
    ValueError if ``raw`` is no such tensor."""
    if datatype == BYTES:
        try:
            return orjson.dumps([one.decode() for one in _elements(raw, room)])
        except UnicodeDecodeError:
            raise TensorError("holds bytes that are no text") from None
    room.take_values(len(raw) // _SIZES[datatype])
    if datatype == _BF16:
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, _NUMBERS[datatype])
    if datatype == "FP16":
        values = values.astype(np.float32)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def shown(shape: Sequence[int]) -> str:
    """As JSON has it; what is endless is cut."""
    few = [str(one) for one in shape[:16]]
    return f"[{','.join(few)}{',…' * (len(shape) > len(few))}]"


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    while values and isinstance(values[0], list):
        if not all(isinstance(one, list) for one in values):
            raise TensorError("mixes elements and lists of elements")
        values = list(chain.from_iterable(values))
    return values


def _array(datatype: str, values: Sequence[Any]) -> np.ndarray[Any, Any]:
    dtype = _NUMBERS[datatype]
    try:
        if dtype.kind != "f":
            return np.array(values, dtype)
        with np.errstate(over="ignore"):  # what is too large is infinite then
            return np.array(values, np.float64).astype(dtype)
    except OverflowError:
        raise TensorError(f"holds a number that {datatype} cannot have") from None


def _joined(texts: Sequence[bytes]) -> bytes:
    return b"".join(part for one in texts for part in (_LENGTH.pack(len(one)), one))


def _elements(raw: bytes, room: Room) -> list[bytes]:
    """Raises TensorError as :func:`_ends`."""
    ends = _ends(raw, room)
    return [raw[start + _LENGTH.size : end] for start, end in zip((0, *ends), ends, strict=False)]


def _ends(raw: bytes, room: Room) -> list[int]:
    """Where each element of BYTES ends. Raises TensorError if ``raw`` is none, or more than there is room for."""
    found: list[int] = []
    at, last = 0, len(raw) - _LENGTH.size
    while at <= last:
        at += _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
        found.append(at)
        if len(found) > room.texts:
            break
    room.take_texts(len(found))
    if at != len(raw):
        raise TensorError("ends within an element: each stands after its length in 4 bytes")
    return found


def refusal(kind: str, name: str, error: TensorError, param: str, reason: str = "invalid_value") -> InferBusError:
    """``kind``: Input or Output."""
    return invalid(f"{kind} '{name[:64]}' {error}.", param=param, reason=reason)

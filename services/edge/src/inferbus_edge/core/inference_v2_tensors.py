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
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.schema import MAX_VALUES

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
# Of a tensor of BYTES, however it is sent: each takes the event loop half a microsecond.
MAX_TEXTS = 50_000
# What JSON may give for an element, by the kind of its numpy type.
_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class TensorError(Exception):
    """``str()`` goes after the tensor's name, for the caller."""


def check_raw(datatype: str, shape: Sequence[int], raw: bytes) -> None:
    """Raises TensorError if ``raw`` is not what a tensor of this datatype and shape is."""
    count = math.prod(shape)
    size = _SIZES.get(datatype)
    if size is None:
        found = len(_ends(raw))
        if found != count:
            raise TensorError(f"has the shape {shown(shape)}, which is {count} elements, and holds {found}")
    elif len(raw) != count * size:
        raise TensorError(
            f"has the shape {shown(shape)} of {datatype}, which is {count * size} bytes, and holds {len(raw)}"
        )


def raw_of_json(datatype: str, values: Sequence[Any]) -> bytes:
    """``values`` as JSON had them, flat or nested as the shape is. Raises TensorError."""
    if datatype == _BF16:
        raise TensorError("is of BF16, which JSON has no values for; send it as binary data")
    flat = _flat(values)
    found = set(map(type, flat))
    if datatype == BYTES:
        if found - {str}:
            raise TensorError("is of BYTES: its elements are texts in JSON")
        _check_texts(flat)
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


def raw_of_contents(datatype: str, contents: InferTensorContents) -> bytes:
    """Raises TensorError."""
    field = _CONTENTS.get(datatype)
    if field is None:
        raise TensorError(f"is of {datatype}, which 'contents' has no field for; use raw_input_contents")
    given = {one.name for one, _ in contents.ListFields()}
    if given - {field}:
        raise TensorError(f"is of {datatype}: its elements stand in 'contents.{field}' and nowhere else")
    values = getattr(contents, field)
    if len(values) > MAX_VALUES:
        raise TensorError(f"has more than {MAX_VALUES} elements in 'contents'; use raw_input_contents")
    if datatype == BYTES:
        _check_texts(values)
    return _joined(values) if datatype == BYTES else _array(datatype, list(values)).tobytes()


def json_of(datatype: str, raw: bytes) -> bytes:
    """A JSON list of the elements; NaN and infinities are null. Raises TensorError if JSON cannot hold them, and
    ValueError if ``raw`` is no such tensor."""
    if datatype == BYTES:
        try:
            return orjson.dumps([one.decode() for one in _elements(raw)])
        except UnicodeDecodeError:
            raise TensorError("holds bytes that are no text") from None
    if len(raw) > MAX_VALUES * _SIZES[datatype]:
        raise TensorError(f"has more than {MAX_VALUES} elements")
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


def _check_texts(texts: Sequence[Any]) -> None:
    if len(texts) > MAX_TEXTS:
        raise TensorError(f"has more than {MAX_TEXTS} elements")


def _joined(texts: Sequence[bytes]) -> bytes:
    return b"".join(part for one in texts for part in (_LENGTH.pack(len(one)), one))


def _elements(raw: bytes) -> list[bytes]:
    """Raises TensorError as :func:`_ends`."""
    ends = _ends(raw)
    return [raw[start + _LENGTH.size : end] for start, end in zip((0, *ends), ends, strict=False)]


def _ends(raw: bytes) -> list[int]:
    """Where each element of BYTES ends. Raises TensorError if ``raw`` is none, or more than MAX_TEXTS."""
    found: list[int] = []
    at, last = 0, len(raw) - _LENGTH.size
    while at <= last:
        at += _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
        found.append(at)
        if len(found) > MAX_TEXTS:
            raise TensorError(f"has more than {MAX_TEXTS} elements")
    if at != len(raw):
        raise TensorError("ends within an element: each stands after its length in 4 bytes")
    return found


def refusal(kind: str, name: str, error: TensorError, param: str, reason: str = "invalid_value") -> InferBusError:
    """``kind``: Input or Output."""
    return invalid(f"{kind} '{name[:64]}' {error}.", param=param, reason=reason)

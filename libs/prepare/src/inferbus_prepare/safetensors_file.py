"""What is wrong with a safetensors file, without reading its weights.

The format: 8 bytes, little-endian, how long the header is; the header, a JSON object of tensors with their type, shape
and place; the weights, which fill the file to its end (huggingface/safetensors, README, "Format").
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16},
    **{"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4},
}


def fault_of_safetensors(path: Path) -> str | None:
    """Why it is none that can be read; None: it is whole. Raises OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            return f"{path.name} has {size} bytes: too few for a header"
        (length,) = _LENGTH.unpack(start)
        if length > min(_MOST_HEADER_BYTES, size - _LENGTH.size):
            return f"{path.name} has a header of {length:,} bytes in a file of {size:,}"
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            return f"{path.name} has a header that is no JSON: {error}"
    if not isinstance(header, dict):
        return f"{path.name} has a header that is no object"
    weights = size - _LENGTH.size - length
    end = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            try:
                fault, stop = _fault_of_tensor(tensor)
            except (KeyError, TypeError, ValueError) as error:
                fault, stop = f"is not described: {error!r}", 0
            if fault:
                return f"{path.name}: tensor {name} {fault}"
            end = max(end, stop)
    return None if end == weights else f"{path.name} has {weights:,} bytes of weights, and its header names {end:,}"


def _fault_of_tensor(tensor: Any) -> tuple[str, int]:
    """(what is wrong or empty, where it ends)."""
    start, stop = tensor["data_offsets"]
    if tensor["dtype"] not in _BITS:
        return f"has the type {tensor['dtype']!r}, which is not known", 0
    needed = math.prod(tensor["shape"]) * _BITS[tensor["dtype"]] // 8
    if not 0 <= start <= stop or stop - start != needed:
        return f"needs {needed:,} bytes and has those from {start} to {stop}", 0
    return "", stop

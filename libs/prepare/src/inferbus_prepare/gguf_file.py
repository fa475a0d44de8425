"""What is wrong with a GGUF file, found before an engine loads it: cut off, overlapping, weights that are none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from inferbus_prepare.errors import DamagedError
from inferbus_prepare.header import Header, Tensor, read_header

_K = gguf.GGMLQuantizationType
# Of the types that are made of blocks: where in a block its scales (f16) are.
_SCALES = {
    _K.Q4_0: (0,), _K.Q4_1: (0, 2), _K.Q5_0: (0,), _K.Q5_1: (0, 2), _K.Q8_0: (0,),
    _K.Q2_K: (80, 82), _K.Q3_K: (108,), _K.Q4_K: (0, 2), _K.Q5_K: (0, 2), _K.Q6_K: (208,),
}  # fmt: skip
_CHUNK_BYTES = 1 << 26


def fault_of(path: Path) -> str | None:
    """The first fault of the file, for people; None: its structure is sound. Reads all of it, bounded in memory.

    A flipped bit that leaves a number is none: figures or a digest show that. Raises OSError if it cannot be read.
    """
    try:
        header = read_header(path)
        _check_places(header, path.stat().st_size)
        for tensor in header.tensors:
            _check_numbers(path, tensor)
    except DamagedError as error:
        return str(error)
    return None


def kinds_of(header: Header) -> dict[str, int]:
    """How many bytes of the weights are of which type, by its name in lower case; the largest first."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.kind.name.lower()] = sizes.get(tensor.kind.name.lower(), 0) + tensor.size_bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _check_places(header: Header, file_bytes: int) -> None:
    if not header.tensors:
        raise DamagedError("it holds no tensors")
    end = 0
    for tensor in sorted(header.tensors, key=lambda one: one.offset):
        if tensor.offset < end:
            raise DamagedError(f"tensor {tensor.name!r} begins inside the one before it")
        end = tensor.offset + tensor.size_bytes
        if end > file_bytes:
            missing = header.size_bytes - file_bytes
            raise DamagedError(f"it is cut off: {missing:,} bytes are missing, from tensor {tensor.name!r} on")


def _check_numbers(path: Path, tensor: Tensor) -> None:
    """Raises DamagedError if a number, or the scale of a block, is infinite or none."""
    for values in _numbers(path, tensor):
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            what = "scales of blocks" if tensor.kind in _SCALES else "numbers"
            raise DamagedError(f"tensor {tensor.name!r}: {bad:,} {what} are infinite or not a number")


def _numbers(path: Path, tensor: Tensor) -> Iterator[Any]:
    """Arrays of what of a tensor must be finite, part by part. Nothing for types whose layout is not known here."""
    if tensor.kind in _SCALES:
        block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind][1]
    elif tensor.kind in (_K.F16, _K.F32, _K.F64, _K.BF16):
        block_bytes = 1
    else:
        return
    step = max(1, _CHUNK_BYTES // block_bytes // 8 * 8) * block_bytes
    with path.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.size_bytes
        while left:
            part = np.frombuffer(file.read(min(step, left)), dtype=np.uint8)
            left -= len(part)
            if tensor.kind in _SCALES:
                blocks = part.reshape(-1, block_bytes)
                for at in _SCALES[tensor.kind]:
                    yield np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
            elif tensor.kind == _K.BF16:
                yield (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                yield part.view({_K.F16: np.float16, _K.F32: np.float32, _K.F64: np.float64}[tensor.kind])

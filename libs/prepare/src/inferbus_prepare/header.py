"""The header of a GGUF file, read with a bound on everything: a damaged one ends in a DamagedError, in no other way.

Layout: magic, version, number of tensors, number of fields; the fields; of each tensor its name, shape, type and
offset; padding; the tensors. Little endian.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf

from inferbus_prepare.errors import DamagedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_MAX_NAME = 65_536
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_ARRAY, _STRING = 9, 8
# By GGUF's number of a value's type.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """``shape``: slowest dimension first, as numpy's. ``offset``, ``size_bytes``: in the file."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """``fields``: by name; an array has its length only. ``size_bytes``: that the file must have at least."""

    fields: dict[str, Any]
    tensors: tuple[Tensor, ...]
    size_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])

    def number(self, name: str, otherwise: int | None = None) -> int:
        """Of the architecture's own fields: ``block_count``. Raises DamagedError if it has no such whole number."""
        value = self.fields.get(f"{self.architecture}.{name}", otherwise)
        if not isinstance(value, int):
            raise DamagedError(f"its header has no whole number {self.architecture}.{name}")
        return value

    def kv_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """What a token takes in the KV cache. A model whose layers differ is taken by its largest number of heads."""
        heads = self.number("attention.head_count")
        kv_heads = self.number("attention.head_count_kv", heads)
        head = self.number("embedding_length") // max(heads, 1)
        length = self.number("attention.key_length", head) + self.number("attention.value_length", head)
        return self.number("block_count") * kv_heads * length * bytes_per_number


def read_header(path: Path) -> Header:
    """Raises DamagedError for anything that is not a whole header, OSError if the file cannot be read."""
    with path.open("rb") as file:
        try:
            return _header(file)
        except (struct.error, UnicodeDecodeError) as error:
            raise DamagedError(
                f"{path.name}: its header is cut off or garbled at byte {file.tell()}: {error}"
            ) from None
        except DamagedError as error:
            raise DamagedError(f"{path.name}: {error}") from None


def _header(file: BinaryIO) -> Header:
    if (magic := file.read(4)) != MAGIC:
        raise DamagedError(f"it begins with {magic!r} and not with {MAGIC!r}: it is no GGUF file")
    version, tensor_count, field_count = _take(file, "IQQ")
    if version not in VERSIONS:
        raise DamagedError(f"it is of GGUF's version {version}, known are {VERSIONS}")
    if tensor_count > _MAX_ITEMS or field_count > _MAX_ITEMS:
        raise DamagedError(f"its header tells of {tensor_count} tensors and {field_count} fields")
    fields = {}
    for _ in range(field_count):
        name = _text(file)
        fields[name] = _value(file, _one(file, "I"))
    if not isinstance(fields.get("general.architecture"), str):
        raise DamagedError("its header names no architecture")
    described = [_described(file) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise DamagedError(f"its alignment is {alignment!r}")
    start = -(-file.tell() // alignment) * alignment
    tensors = tuple(_placed(one, start, alignment) for one in described)
    if len({one.name for one in tensors}) != len(tensors):
        raise DamagedError("two of its tensors have the same name")
    return Header(fields, tensors, max((one.offset + one.size_bytes for one in tensors), default=start))


def _take(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _one(file: BinaryIO, layout: str) -> Any:
    return _take(file, layout)[0]


def _bytes(file: BinaryIO, bound: int = _MAX_NAME) -> bytes:
    length = _one(file, "Q")
    if length > bound:
        raise DamagedError(f"a text of {length} bytes at byte {file.tell()} of its header")
    read = file.read(length)
    if len(read) != length:
        raise DamagedError(f"its header is cut off at byte {file.tell()}")
    return read


def _text(file: BinaryIO) -> str:
    return _bytes(file).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _one(file, _SCALARS[kind])
    if kind == _STRING:
        return _bytes(file, 1 << 26).decode(errors="replace")  # a chat template may be long, a token no UTF-8
    if kind != _ARRAY:
        raise DamagedError(f"a value of the unknown type {kind} at byte {file.tell()} of its header")
    inner, length = _take(file, "IQ")
    if length > _MAX_ITEMS or inner == _ARRAY:
        raise DamagedError(f"an array of {length} values of the type {inner} at byte {file.tell()} of its header")
    if inner in _SCALARS:
        size = struct.calcsize(f"<{_SCALARS[inner]}") * length
        if len(file.read(size)) != size:
            raise DamagedError(f"its header is cut off at byte {file.tell()}")
    else:
        for _ in range(length):
            _value(file, inner)
    return length


def _described(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, number of its type, offset)."""
    name = _text(file)
    dimensions = _one(file, "I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise DamagedError(f"tensor {name!r} has {dimensions} dimensions")
    shape = _take(file, f"{dimensions}Q")[::-1]
    kind, offset = _take(file, "IQ")
    return name, shape, kind, offset


def _placed(described: tuple[str, tuple[int, ...], int, int], start: int, alignment: int) -> Tensor:
    name, shape, number, offset = described
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise DamagedError(f"tensor {name!r} is of the unknown type {number}") from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block or 0 in shape:
        raise DamagedError(f"tensor {name!r} of {kind.name} has the shape {shape}, whose rows are no whole blocks")
    if offset % alignment:
        raise DamagedError(f"tensor {name!r} begins at {offset}, which is not a multiple of {alignment}")
    count = 1
    for length in shape:
        count *= length
    return Tensor(name, kind, shape, start + offset, count // block * block_bytes)

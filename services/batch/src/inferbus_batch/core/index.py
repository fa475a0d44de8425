"""Where each line is in its input, in the order in which lines run."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Little-endian: offset (8 bytes), bytes (4), number (4).
_ENTRY = struct.Struct("<QII")
ENTRY_BYTES = _ENTRY.size


class Place(NamedTuple):
    """Of line ``number`` (from 1): ``size`` bytes from ``offset`` on, its end not included."""

    offset: int
    size: int
    number: int


def packed(places: Iterable[Place]) -> Iterator[bytes]:
    return (_ENTRY.pack(*place) for place in places)


def place_at(data: bytes | memoryview, position: int) -> Place:
    """Entry ``position`` (from 0) of an index."""
    return Place(*_ENTRY.unpack_from(data, position * ENTRY_BYTES))

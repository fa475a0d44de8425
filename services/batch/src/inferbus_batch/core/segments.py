"""A file is its segments, one after the other: where in them a range of it is."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """``length`` bytes of segment number ``segment``, from ``offset`` on."""

    segment: int
    offset: int
    length: int


def pieces(sizes: Sequence[int], offset: int, length: int) -> Iterator[Piece]:
    """The pieces that make the range, in order; none of them is empty. What lies behind the end is left out."""
    for segment, size in enumerate(sizes):
        if length <= 0:
            return
        if offset < size:
            taken = min(size - offset, length)
            yield Piece(segment, offset, taken)
            length -= taken
            offset = 0
        else:
            offset -= size

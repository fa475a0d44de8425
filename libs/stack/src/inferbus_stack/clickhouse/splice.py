"""Joining the pieces of a streamed result.

chDB encodes every piece as a whole document of its format. For formats made of rows these join by themselves; where
each piece opens with a header, the later headers are cut. Formats not listed here (JSON, Parquet, Pretty, ...) cannot
be joined: they are fetched whole.
"""

from __future__ import annotations

from collections.abc import Callable

_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def _nothing(piece: bytes) -> int:
    return 0


def _lines(count: int) -> Callable[[bytes], int]:
    def header(piece: bytes) -> int:
        at = 0
        for _ in range(count):
            at = piece.index(b"\n", at) + 1
        return at

    return header


def _quoted_lines(count: int) -> Callable[[bytes], int]:
    """As `_lines`, where names are in double quotes and may hold line breaks (CSV)."""

    def header(piece: bytes) -> int:
        at = 0
        for _ in range(count):
            end = piece.index(b"\n", at)
            while piece.count(b'"', at, end) % 2:
                end = piece.index(b"\n", end + 1)
            at = end + 1
        return at

    return header


def _row_binary(rows_of_names: int) -> Callable[[bytes], int]:
    """A varint count, then that many names (and as many types), each with its length before it."""

    def header(piece: bytes) -> int:
        columns, at = _varint(piece, 0)
        for _ in range(columns * rows_of_names):
            length, at = _varint(piece, at)
            at += length
        return at

    return header


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _arrow_schema(piece: bytes) -> int:
    """The schema message opens a stream: a marker, the length of its metadata, no body."""
    return 8 + int.from_bytes(piece[4:8], "little")


_HEADERS: dict[str, Callable[[bytes], int]] = {
    **dict.fromkeys(
        (
            "native", "tabseparated", "tsv", "tabseparatedraw", "tsvraw", "raw", "csv", "jsoneachrow", "jsonlines",
            "ndjson", "jsonl", "rowbinary", "jsoncompacteachrow", "jsonstringseachrow", "jsoncompactstringseachrow",
            "tskv", "lineasstring",
        ),
        _nothing,
    ),
    **dict.fromkeys(
        (
            "tabseparatedwithnames", "tsvwithnames", "tabseparatedrawwithnames", "tsvrawwithnames",
            "jsoncompacteachrowwithnames", "jsoncompactstringseachrowwithnames",
        ),
        _lines(1),
    ),
    **dict.fromkeys(
        (
            "tabseparatedwithnamesandtypes", "tsvwithnamesandtypes", "tabseparatedrawwithnamesandtypes",
            "tsvrawwithnamesandtypes", "jsoncompacteachrowwithnamesandtypes",
            "jsoncompactstringseachrowwithnamesandtypes",
        ),
        _lines(2),
    ),
    "csvwithnames": _quoted_lines(1),
    "csvwithnamesandtypes": _quoted_lines(2),
    "rowbinarywithnames": _row_binary(1),
    "rowbinarywithnamesandtypes": _row_binary(2),
    "arrowstream": _arrow_schema,
}  # fmt: skip


class Splicer:
    """Turns the pieces of one result into one document: `first`, then `next` for each, then `end`."""

    def __init__(self, format_name: str) -> None:
        self._header = _HEADERS[format_name.lower()]
        self._arrow = format_name.lower() == "arrowstream"

    @staticmethod
    def can_join(format_name: str) -> bool:
        return format_name.lower() in _HEADERS

    def first(self, piece: bytes) -> bytes:
        return piece.removesuffix(_STREAM_END) if self._arrow else piece

    def next(self, piece: bytes) -> bytes:
        return self.first(piece[self._header(piece) :]) if piece else b""

    def end(self) -> bytes:
        return _STREAM_END if self._arrow else b""

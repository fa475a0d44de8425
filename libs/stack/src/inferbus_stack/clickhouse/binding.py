"""The one file that touches chDB's native module, which ships without types.

Traps of chDB that shape everything above it:
- a handle serialises its queries; handles run in parallel and release the GIL;
- after a failure part-way, the same handle's next result starts with the failed query's rows: drop it;
- send_insert/insert_append/insert_done hide what fails at the push into table and views: not used (see spool.py);
- `SET readonly` cannot be undone on a handle;
- the engine stops when the last handle closes, and one process can open one path only.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from typing import Any, NamedTuple

from chdb import _chdb as _untyped

from inferbus_stack.clickhouse.errors import ClickHouseError, from_engine

_chdb: Any = _untyped


class StatementClass(IntEnum):
    """What a text would do to state that outlives it, by the engine's own parser."""

    READ_ONLY = 0
    MUTATING = 1
    MUTATING_GLOBAL = 2
    CONTROL = 3
    UNKNOWN = 4


class Classified(NamedTuple):
    kind: StatementClass
    statements: int


class Piece(NamedTuple):
    """A part of a result (or all of it), as bytes in the asked format."""

    data: bytes
    rows: int
    read_rows: int
    read_bytes: int


class Written(NamedTuple):
    rows: int
    bytes: int


def quote(value: str) -> str:
    """A string literal of ClickHouse SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Handle:
    """One connection to the engine. Not for two threads at once; any method may raise ClickHouseError.

    After any error the handle must be closed, never used again (stale rows).
    """

    def __init__(self, connection_string: str) -> None:
        try:
            self._raw: Any = _chdb.connect(connection_string)
        except RuntimeError as error:
            raise from_engine(error) from None
        self._stream: Any = None

    def query(self, sql: str, format_name: str = "TabSeparatedRaw", params: dict[str, str] | None = None) -> Piece:
        """Runs a statement and returns its whole result."""
        try:
            result = self._raw.query(sql, format_name, params=params or {})
            # bytes() hands out a copy; the engine's own buffer goes with `result`.
            return Piece(result.bytes(), result.rows_read(), result.storage_rows_read(), result.storage_bytes_read())
        except RuntimeError as error:
            raise from_engine(error) from None

    def text(self, sql: str, params: dict[str, str] | None = None) -> str:
        return self.query(sql, params=params).data.decode("utf-8", "backslashreplace")

    def classify(self, sql: str) -> Classified:
        """Asks the engine's parser, running nothing."""
        report = self._raw.classify_query(sql, "")
        return Classified(StatementClass(int(report["query_class"])), int(report["statement_count"]))

    def start_stream(self, sql: str, format_name: str, params: dict[str, str]) -> None:
        """Starts a SELECT whose pieces `next_piece` fetches. Each piece is a whole document of its format."""
        try:
            self._stream = self._raw.send_query(sql, format_name, params=params)
        except RuntimeError as error:
            raise from_engine(error) from None

    def next_piece(self) -> Piece:
        """The next piece; one with no rows is the last (it may still carry bytes: totals, or an empty result)."""
        try:
            result = self._raw.streaming_fetch_result(self._stream)
            return Piece(result.bytes(), result.rows_read(), result.storage_rows_read(), result.storage_bytes_read())
        except RuntimeError as error:
            raise from_engine(error) from None

    def insert(self, sql: str, params: dict[str, str]) -> Written:
        """Runs an INSERT ... FROM INFILE. On return the rows are in the table and its views."""
        try:
            result = self._raw.query(sql, "Null", params=params)
        except RuntimeError as error:
            raise from_engine(error) from None
        return Written(result.rows_written(), result.bytes_written())

    def set_all(self, settings: Iterable[tuple[str, str]]) -> None:
        """Sets settings on this handle in one statement. Names must have been validated as identifiers."""
        assignments = ", ".join(f"{name} = {quote(value)}" for name, value in settings)
        if assignments:
            self.query(f"SET {assignments}")

    def close(self) -> None:
        """Cancels what is open and closes. Idempotent."""
        raw, self._raw = self._raw, None
        if raw is None:
            return
        with suppress(RuntimeError):  # it may be over already
            if self._stream is not None:
                raw.streaming_cancel_query(self._stream)
        self._stream = None
        with suppress(RuntimeError):
            raw.close()


def disable_engine_signal_handlers() -> None:
    """Must run before the first Handle: the engine would otherwise take SIGTERM from us."""
    _chdb.set_signal_handlers_enabled(0)


__all__ = [
    "Classified",
    "ClickHouseError",
    "Handle",
    "Piece",
    "StatementClass",
    "Written",
    "disable_engine_signal_handlers",
    "quote",
]

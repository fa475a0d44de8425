"""One statement on one handle, from parsing to the last byte. Everything here blocks: it runs on a worker thread."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field

from inferbus_stack.clickhouse.binding import Handle, Piece, StatementClass
from inferbus_stack.clickhouse.catalog import DATABASE
from inferbus_stack.clickhouse.engine import Engine
from inferbus_stack.clickhouse.errors import (
    ACCESS_DENIED,
    BAD_ARGUMENTS,
    READONLY,
    SYNTAX_ERROR,
    UNKNOWN_FORMAT,
    ClickHouseError,
)
from inferbus_stack.clickhouse.guard import Guard
from inferbus_stack.clickhouse.splice import Splicer
from inferbus_stack.clickhouse.spool import Spool
from inferbus_stack.clickhouse.statement import InsertHead, shape_of, split_insert
from inferbus_stack.clickhouse.wire import Request

# ClickHouse's own max_query_size.
_LONGEST_GUARDED = 262_144
# After a GROUP BY the engine hands out pieces of a few hundred rows: they are gathered up to this size or this long.
_ENOUGH_BYTES = 256 << 10
_LONGEST_GATHERING_SECONDS = 0.1
# Totals and extremes come apart from the rows, and an array of rows has an end: such results do not come in pieces.
_NOT_IN_PIECES = frozenset({"totals", "extremes", "output_format_json_array_of_rows"})
_SELECTS = frozenset({"SELECT", "WITH", "FROM"})
_READS = _SELECTS | {"SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS"}


@dataclass(slots=True)
class Progress:
    """What X-ClickHouse-Summary reports."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, piece: Piece) -> None:
        self.read_rows += piece.read_rows
        self.read_bytes += piece.read_bytes
        self.result_rows += piece.rows
        self.result_bytes += len(piece.data)

    def summary(self) -> dict[str, str]:
        return {
            "read_rows": str(self.read_rows),
            "read_bytes": str(self.read_bytes),
            "written_rows": str(self.written_rows),
            "written_bytes": str(self.written_bytes),
            "total_rows_to_read": "0",
            "result_rows": str(self.result_rows),
            "result_bytes": str(self.result_bytes),
            "elapsed_ns": str(int((time.monotonic() - self.started) * 1e9)),
        }


class Execution:
    """Runs one Request; `only_reads` says whether stopping it half-way leaves no trace.

    Call `begin`; while `wants_data`, `append`; while `more`, `next`; always `close`.

    Any of them may raise ClickHouseError, after which only `close` may be called.
    """

    def __init__(self, engine: Engine, guard: Guard, request: Request, session_handle: Handle | None = None) -> None:
        """`session_handle` is what the request's session kept, None when it has none or there is no session."""
        self._engine = engine
        self._guard = guard
        self._request = request
        self._in_session = request.in_session
        self._handle = session_handle
        self._kept: Handle | None = None
        self._insert: InsertHead | None = None
        self._spool: Spool | None = None
        self._splicer: Splicer | None = None
        self._held: Piece | None = None
        self._set: list[str] = []
        self.progress = Progress()
        self.format_name = ""
        self.wants_data = False
        self.more = False
        self.only_reads = False

    def begin(self, raw: bytes, complete: bool) -> bytes:
        """Parses, guards and starts the statement with the first piece of the body. Returns the first of the result."""
        data = self._request.decoder.decode(raw)
        if complete:
            data += self._request.decoder.finish()
        body = self._request.query + b"\n" + data if self._request.query else data
        text = body.decode("latin-1")
        insert = split_insert(text)
        if insert is not None:
            self._begin_insert(insert, body)
            if complete:
                self._finish_insert()
            return b""
        if not complete:
            raise ClickHouseError(SYNTAX_ERROR, "Max query size exceeded.")
        result = self._begin_query(_utf8(body).strip())
        if self.more and len(result) < _ENOUGH_BYTES:
            result += self.next()
        if not self.more:
            self._release(complete=True)
        return result

    def append(self, raw: bytes, complete: bool) -> None:
        """More of an INSERT's data; with the last piece, runs it. Nothing is inserted before."""
        data = self._request.decoder.decode(raw)
        if complete:
            data += self._request.decoder.finish()
        if self._spool is not None:
            self._spool.write(data)
        if complete:
            self._finish_insert()

    def next(self) -> bytes:
        """The next part of the result, while `more`."""
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + _LONGEST_GATHERING_SECONDS
        while self._held is not None and self._splicer is not None:
            piece, self._held = self._held, None
            parts.append(self._splicer.next(piece.data) + self._advance(self._splicer))
            size += len(parts[-1])
            if size >= _ENOUGH_BYTES or time.monotonic() > deadline:
                break
        if not self.more:
            self._release(complete=True)
        return b"".join(parts)

    def close(self) -> None:
        """Stops and closes what is open. Idempotent."""
        self._release(complete=False)

    @property
    def closed(self) -> bool:
        """Whether there is nothing left to close."""
        return self._handle is None

    def take_kept_handle(self) -> Handle | None:
        """The handle for the session to keep: only one whose statement succeeded, for others may hold stale rows."""
        kept, self._kept = self._kept, None
        return kept

    def _release(self, complete: bool) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if self._in_session and complete:
            with suppress(ClickHouseError):
                if self._set:
                    defaults = ", ".join(f"{name} = DEFAULT" for name in self._set)
                    handle.query(f"SET {defaults}, log_queries = 0")  # as fresh handles have it
                self._kept = handle
                return
        handle.close()

    @property
    def _live(self) -> Handle:
        if self._handle is None:
            raise RuntimeError("begin() opens the handle, close() gives it up")
        return self._handle

    def _begin_query(self, sql: str) -> bytes:
        if not sql:
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error: Empty query.")
        if self._request.user.profile.guarded and len(sql) > _LONGEST_GUARDED:
            raise ClickHouseError(SYNTAX_ERROR, "Max query size exceeded.")
        shape = shape_of(sql)
        self.format_name = self._output_format(shape.format_name)
        self._prepare()
        if self._request.user.profile.guarded:
            self._guard.check_query(self._request.user.profile, sql, self._params)
        if self._request.read_only and self._live.classify(sql).kind is not StatementClass.READ_ONLY:
            raise ClickHouseError(READONLY, "Cannot execute query in readonly mode. GET requests are for reading.")
        if ";" in sql and self._live.classify(sql).statements > 1:
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error: Multi-statements are not allowed.")
        self._apply_settings()
        words = {word.lower() for word in shape.words}
        self.only_reads = shape.first_word in _READS and "insert" not in words
        in_pieces = _NOT_IN_PIECES.isdisjoint(words) and _NOT_IN_PIECES.isdisjoint(self._request.settings)
        if shape.first_word in _SELECTS and in_pieces and Splicer.can_join(self.format_name):
            try:
                self._live.start_stream(sql, self.format_name, self._params)
            except ClickHouseError as error:
                # WITH ... INSERT looks like a query and is none. Nothing has run.
                if not (error.code == BAD_ARGUMENTS and error.detail.startswith("Streaming query is not supported")):
                    raise
            else:
                return self._first_piece()
        piece = self._live.query(sql, self.format_name, self._params)
        self.progress.add(piece)
        return piece.data

    def _first_piece(self) -> bytes:
        splicer = self._splicer = Splicer(self.format_name)
        piece = self._live.next_piece()
        self.progress.add(piece)
        if piece.rows == 0:
            return piece.data
        return splicer.first(piece.data) + self._advance(splicer)

    def _advance(self, splicer: Splicer) -> bytes:
        """Looks one piece ahead, so that a result of one piece is known to be whole."""
        piece = self._live.next_piece()
        self.progress.add(piece)
        self.more = piece.rows > 0
        if self.more:
            self._held = piece
            return b""
        return splicer.next(piece.data) + splicer.end()

    def _begin_insert(self, insert: InsertHead, body: bytes) -> None:
        if self._request.read_only:
            raise ClickHouseError(READONLY, "Cannot execute query in readonly mode. GET requests are for reading.")
        profile = self._request.user.profile
        self._prepare()
        if profile.guarded:
            self._guard.check_query(profile, _utf8(insert.statement.encode("latin-1")), self._params)
        self._apply_settings()
        self._insert = insert
        self._spool = self._engine.open_spool()
        self._spool.write(body[insert.data_at :])
        self.wants_data = True

    def _finish_insert(self) -> None:
        if self._insert is None or self._spool is None:
            raise RuntimeError("begin() comes first")
        sql = _utf8(self._insert.reading(self._spool.path).encode("latin-1"))
        written = self._live.insert(sql, self._params)
        self.wants_data = False
        self.progress.written_rows, self.progress.written_bytes = written.rows, written.bytes
        self._release(complete=True)

    def _prepare(self) -> None:
        if self._handle is None:
            self._handle = self._engine.open_handle()
        database = self._request.database
        if database and database != DATABASE:
            if self._request.user.profile.guarded:
                raise ClickHouseError(ACCESS_DENIED, f"Not enough privileges: database {database[:80]}.")
            self._handle.query("USE `" + database.replace("\\", "\\\\").replace("`", "\\`") + "`")
        elif database and self._in_session:
            self._handle.query(f"USE {DATABASE}")

    def _apply_settings(self) -> None:
        settings = self._request.user.profile.effective(self._request.settings)
        settings["log_comment"] = self._request.log_comment
        profile = self._request.user.profile
        if not profile.writes:
            settings["readonly"] = "1"  # last: nothing can be set after it
        elif self._request.read_only and not self._in_session:
            settings["readonly"] = "2"
        self._live.set_all(settings.items())
        if self._in_session:
            self._set = [name for name in settings if name not in ("readonly", "log_queries")]

    def _output_format(self, in_query: str | None) -> str:
        asked = in_query or self._request.forced_format or self._request.default_format
        name = self._engine.catalog.formats.get(asked.lower())
        if name is None:
            if in_query is not None:
                return self._output_format(None)  # the word FORMAT was something else; the engine will tell
            raise ClickHouseError(UNKNOWN_FORMAT, f"Unknown format {asked[:80]}.")
        if not self._request.user.profile.may_use_format(name):
            raise ClickHouseError(ACCESS_DENIED, f"Not enough privileges: format {name} is not for this user.")
        return name

    @property
    def _params(self) -> dict[str, str]:
        return self._request.params


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ClickHouseError(SYNTAX_ERROR, "Syntax error: the query is not UTF-8.") from None

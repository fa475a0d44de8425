"""An HTTP request read into a Request: ClickHouse's URL parameters, headers and form fields."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from aiohttp import BodyPartReader, StreamReader, web

from inferbus_stack.clickhouse.catalog import DATABASE
from inferbus_stack.clickhouse.compression import Decoder, decoder
from inferbus_stack.clickhouse.errors import BAD_ARGUMENTS, NOT_IMPLEMENTED, SYNTAX_ERROR, ClickHouseError
from inferbus_stack.clickhouse.profiles import SETTING_NAME
from inferbus_stack.clickhouse.users import User

# Parameters of the transport; every other one is a setting. Those read nowhere below are accepted and have no effect.
_TRANSPORT = frozenset(
    {
        "query", "database", "default_format", "user", "password", "session_id", "session_timeout", "session_check",
        "query_id", "quota_key", "compress", "decompress", "wait_end_of_query", "buffer_size",
        "client_protocol_version", "role", "stacktrace", "close_session",
    }
)  # fmt: skip
PIECE_BYTES = 1 << 20
_MAX_FORM_FIELD = 4 << 20
_MAX_SESSION_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class SessionRequest:
    id: str
    timeout_seconds: float
    must_exist: bool
    close: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One statement as asked for, not yet parsed. `settings` are what the user set, before the profile's word."""

    user: User
    query_id: str
    query: bytes
    params: dict[str, str]
    settings: dict[str, str]
    database: str
    default_format: str
    forced_format: str | None  # X-ClickHouse-Format replaces the default, as default_format does
    read_only: bool
    wait_end: bool
    accept_encoding: str
    session: SessionRequest | None
    decoder: Decoder
    log_comment: str

    @property
    def in_session(self) -> bool:
        return self.session is not None and self.user.profile.sessions

    @property
    def compresses(self) -> bool:
        asked = self.settings.get("enable_http_compression", self.user.profile.defaults.get("enable_http_compression"))
        return asked is not None and asked.lower() in ("1", "true")


async def read_request(request: web.Request, user: User) -> Request:
    """Reads everything but the body (of a form: the body too). Raises ClickHouseError."""
    values = dict(request.query)
    if request.method == "POST" and request.content_type == "multipart/form-data":
        values |= await _form_fields(request)
    if values.get("compress", "0") not in ("0", "") or values.get("decompress", "0") not in ("0", ""):
        raise ClickHouseError(
            NOT_IMPLEMENTED, "ClickHouse's native block compression (compress=1, decompress=1) is not supported: "
            "use Content-Encoding, or Accept-Encoding with enable_http_compression=1.",
        )  # fmt: skip
    settings: dict[str, str] = {}
    params: dict[str, str] = {}
    for name, value in values.items():
        if name.startswith("param_"):
            params[name.removeprefix("param_")] = value
        elif name not in _TRANSPORT:
            settings[name] = value
    for name in (*settings, *params):
        if SETTING_NAME.match(name) is None:
            raise ClickHouseError(BAD_ARGUMENTS, f"Not a name of a setting or parameter: {name[:80]!r}.")
    query_id = values.get("query_id") or request.headers.get("X-ClickHouse-Query-Id") or str(uuid.uuid4())
    if not query_id.isprintable() or len(query_id) > 200:
        raise ClickHouseError(BAD_ARGUMENTS, "query_id must be printable and at most 200 characters.")
    database = values.get("database") or request.headers.get("X-ClickHouse-Database") or ""
    return Request(
        user=user,
        query_id=query_id,
        query=values.get("query", "").encode(),
        params=params,
        settings=settings,
        # `default` is what clients say when they mean none; the engine's own `default` reads files as tables.
        database=DATABASE if database == "default" else database,
        default_format=values.get("default_format") or "TabSeparated",
        forced_format=request.headers.get("X-ClickHouse-Format"),
        read_only=request.method == "GET",
        wait_end=values.get("wait_end_of_query", "0") in ("1", "true"),
        accept_encoding=request.headers.get("Accept-Encoding", ""),
        session=_session(values),
        decoder=decoder(request.headers.get("Content-Encoding", "")),
        # Finds the statement in system.processes and system.query_log: chDB knows no users and no query ids of ours.
        log_comment=json.dumps(
            {
                "user": user.name,
                "query_id": query_id,
                "id": uuid.uuid4().hex,
                "comment": settings.pop("log_comment", ""),
            }
        ),
    )


def _session(values: dict[str, str]) -> SessionRequest | None:
    if not values.get("session_id"):
        return None
    try:
        timeout = float(values.get("session_timeout") or 60)
    except ValueError:
        raise ClickHouseError(BAD_ARGUMENTS, "Invalid session timeout.") from None
    if not 0 < timeout <= _MAX_SESSION_SECONDS:
        raise ClickHouseError(BAD_ARGUMENTS, f"Session timeout must be above 0 and at most {_MAX_SESSION_SECONDS:.0f}.")
    return SessionRequest(
        id=values["session_id"],
        timeout_seconds=timeout,
        must_exist=values.get("session_check", "0") == "1",
        close=values.get("close_session", "0") == "1",
    )


async def _form_fields(request: web.Request) -> dict[str, str]:
    fields: dict[str, str] = {}
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise ClickHouseError(BAD_ARGUMENTS, "Cannot read a part of the form.")
        if part.filename is not None:
            raise ClickHouseError(NOT_IMPLEMENTED, "External data (files in a form) is not supported.")
        if part.name.endswith(("_format", "_structure", "_types")) and part.name != "default_format":
            raise ClickHouseError(NOT_IMPLEMENTED, "External data (files in a form) is not supported.")
        data = bytearray()
        while chunk := await part.read_chunk():
            data += chunk
            if len(data) > _MAX_FORM_FIELD:
                raise ClickHouseError(SYNTAX_ERROR, "Max query size exceeded.")
        fields[part.name] = data.decode()
    return fields


class Body:
    """The rest of a request's body, in pieces of about a mebibyte: few hand-overs to a thread, bounded memory."""

    def __init__(self, request: web.Request) -> None:
        form = request.content_type == "multipart/form-data"
        self._stream: StreamReader | None = None if form or not request.can_read_body else request.content
        self.complete = self._stream is None

    async def piece(self) -> bytes:
        """The next piece; `complete` says whether it was the last (which may be empty)."""
        parts: list[bytes] = []
        size = 0
        while self._stream is not None and size < PIECE_BYTES:
            chunk = await self._stream.readany()
            if not chunk and self._stream.at_eof():
                self.complete = True
                break
            parts.append(chunk)
            size += len(chunk)
        if self._stream is not None and self._stream.at_eof():
            self.complete = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

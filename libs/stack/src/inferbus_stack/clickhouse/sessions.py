"""Sessions: handles kept between requests, for temporary tables and SET. Lives on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from inferbus_stack.clickhouse.binding import Handle
from inferbus_stack.clickhouse.errors import (
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    ClickHouseError,
)
from inferbus_stack.clickhouse.wire import SessionRequest

_MOST = 256


@dataclass(slots=True)
class _Session:
    handle: Handle | None = None
    busy: bool = False
    expiry: asyncio.TimerHandle | None = None


class Sessions:
    """At most 256; the 257th is refused. One request at a time in each, as in ClickHouse (373)."""

    def __init__(self, dispose: Callable[[Handle], object]) -> None:
        self._dispose = dispose
        self._sessions: dict[tuple[str, str], _Session] = {}

    def take(self, user: str, asked: SessionRequest) -> Handle | None:
        """The session's handle, None when it has none yet. Give it back with `give_back`, whatever happens."""
        key = (user, asked.id)
        session = self._sessions.get(key)
        if session is None:
            if asked.must_exist:
                raise ClickHouseError(SESSION_NOT_FOUND, f"Session {asked.id[:80]} not found.")
            if len(self._sessions) >= _MOST:
                raise ClickHouseError(TOO_MANY_SIMULTANEOUS_QUERIES, f"Too many sessions. Maximum: {_MOST}.")
            session = self._sessions[key] = _Session()
        if session.busy:
            raise ClickHouseError(SESSION_IS_LOCKED, f"Session {asked.id[:80]} is locked by a concurrent client.")
        session.busy = True
        if session.expiry is not None:
            session.expiry.cancel()
        handle, session.handle = session.handle, None
        return handle

    def give_back(self, user: str, asked: SessionRequest, handle: Handle | None) -> None:
        """`handle` is None when the request failed: the next request of the session gets a fresh one."""
        key = (user, asked.id)
        session = self._sessions[key]
        session.handle = handle
        session.busy = False
        if asked.close:
            self._drop(key)
        else:
            session.expiry = asyncio.get_running_loop().call_later(asked.timeout_seconds, self._drop, key)

    def close(self) -> None:
        for key in list(self._sessions):
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        session = self._sessions.pop(key)
        if session.expiry is not None:
            session.expiry.cancel()
        if session.handle is not None:
            self._dispose(session.handle)

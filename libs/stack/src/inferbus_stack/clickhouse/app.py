"""The HTTP application: its routes, its errors and its log. Wiring only; `answer.py` does the work."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from inferbus_stack.clickhouse.answer import Answer, Parts, common_headers, elapsed_ms, scrubbed
from inferbus_stack.clickhouse.engine import Engine
from inferbus_stack.clickhouse.errors import AUTHENTICATION_FAILED, ClickHouseError, from_engine
from inferbus_stack.clickhouse.log import log
from inferbus_stack.clickhouse.users import Users, credentials_of
from inferbus_stack.clickhouse.wire import Request, read_request


class ClickHouseApp:
    """The application of one engine. Build on the event loop that serves it; `close` before the engine's own."""

    def __init__(self, engine: Engine, users: Users) -> None:
        self._engine = engine
        self._users = users
        self._parts = Parts.make(engine)
        self.web = web.Application()
        self.web.router.add_get("/ping", self._ping)
        self.web.router.add_get("/replicas_status", self._ping)
        self.web.router.add_route("GET", "/", self._query)
        self.web.router.add_route("POST", "/", self._query)

    async def close(self) -> None:
        """Ends what keeps handles. Statements must have ended."""
        self._parts.sessions.close()
        await asyncio.to_thread(self._parts.threads.shutdown)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _query(self, http: web.Request) -> web.StreamResponse:
        if http.method in ("GET", "HEAD") and "query" not in http.query:
            return web.Response(text="Ok.\n")
        started = time.monotonic()
        request: Request | None = None
        name = ""
        try:
            credentials = credentials_of(http.headers, http.query)
            name = credentials.name if credentials is not None else "default"
            user = self._users.authenticate(credentials)
            request = await read_request(http, user)
            answer = Answer(self._parts, http, request)
            response = await answer.respond()
            if answer.late_error is not None:
                _log_failure(name, request, answer.late_error, started)
            return response
        except ClickHouseError as error:
            _log_failure(name, request, error, started)
            return self._refusal(request, error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours: the client gets ClickHouse's shape, the log gets the type
            failure = from_engine(error)
            _log_failure(name, request, failure, started, fault=type(error).__name__)
            return self._refusal(request, failure)

    def _refusal(self, request: Request | None, error: ClickHouseError) -> web.Response:
        headers = common_headers(self._engine, request.query_id if request is not None else "")
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        if error.code == AUTHENTICATION_FAILED:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        text = scrubbed(error, request, self._engine).text(self._engine.version)
        return web.Response(status=error.http_status, text=text + "\n", headers=headers)


def _log_failure(user: str, request: Request | None, error: ClickHouseError, started: float, fault: str = "") -> None:
    """One JSON line to stderr. Never the statement, its data or the engine's text: they may quote customers' words."""
    log(
        "error" if fault else "warning",
        "query_failed",
        user=user[:80],
        query_id=request.query_id if request is not None else "",
        code=error.code,
        name=error.name,
        duration_ms=elapsed_ms(started),
        **({"fault": fault} if fault else {}),
    )


__all__ = ["ClickHouseApp"]

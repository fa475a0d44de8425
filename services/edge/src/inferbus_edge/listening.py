"""Connections: aiohttp's low-level server, with our limits and our answer to what its parser refuses.

Not its application: that answers errors in text, and its parser's errors pass by any middleware. Here all of them end
in :func:`.server.error_response`.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from aiohttp import web
from inferbus_dialect.errors import of_status
from inferbus_runtime import clock
from inferbus_runtime.tls import TlsFiles, server_context

from inferbus_edge.cors import Cors
from inferbus_edge.server import Front, Routes, error_response, new_request_id

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 1.0
# Of a request's head: fields, bytes of its first line, bytes of one field. More is a 400.
_MAX_HEADERS, _MAX_LINE, _MAX_FIELD = 128, 8190, 8190
_BACKLOG = 1024


class _Connection(web.RequestHandler):
    """aiohttp's connection, with our body for what its parser refuses, and an end for who does not read."""

    def __init__(self, server: "_Server", *, unread_seconds: float, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._unread_ms = round(unread_seconds * 1000)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # The kernel ends a connection whose client takes nothing for so long: closing it would wait for the client.
        connected = transport.get_extra_info("socket")
        if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._unread_ms)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("a request failed outside of its route", exc_info=exc)
        else:
            log.debug("bad HTTP", extra={"error": repr(exc)})
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out: no other can be sent")
        response = error_response(of_status(status), new_request_id("", clock.now_us()))
        response.force_close()
        return response


class _Server(web.Server):
    """web.Server that makes our kind of connection."""

    def __init__(self, handler: Any, *, unread_seconds: float, **settings: Any) -> None:
        super().__init__(handler, **settings)
        settings.pop("handler_cancellation")
        settings.pop("request_factory")
        self._unread_seconds = unread_seconds
        self._settings = settings

    def __call__(self) -> web.RequestHandler:
        loop = asyncio.get_running_loop()
        return _Connection(self, loop=loop, unread_seconds=self._unread_seconds, **self._settings)


@asynccontextmanager
async def listen(
    host: str,
    port: int,
    routes: Routes,
    *,
    edge: str,
    max_body_bytes: int,
    idle_timeout: timedelta,
    unread_timeout: timedelta,
    cors: Cors,
    tls: TlsFiles | None = None,
) -> AsyncIterator[str]:
    """Serve ``routes`` until the context ends; gives "host:port" really bound. Raises OSError if it is taken.

    ``idle_timeout``: a connection without a whole request head for so long is closed. ``unread_timeout``: one whose
    client takes nothing of what is on its way.
    """
    loop = asyncio.get_running_loop()

    def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=max_body_bytes)

    server = _Server(
        Front(routes, edge, cors).handle,
        request_factory=request,
        handler_cancellation=True,  # a client that leaves cancels its handler, and so its generation
        keepalive_timeout=idle_timeout.total_seconds(),
        unread_seconds=unread_timeout.total_seconds(),
        max_headers=_MAX_HEADERS,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_FIELD,
        auto_decompress=False,
        access_log=None,
    )
    runner = web.ServerRunner(server, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    context = None if tls is None else server_context(tls)
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG, ssl_context=context).start()
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()

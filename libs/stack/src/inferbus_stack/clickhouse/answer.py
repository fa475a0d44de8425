"""The way of one request: gate, session, execution on worker threads, response."""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from inferbus_stack.clickhouse.compression import Encoder, encoder, negotiate
from inferbus_stack.clickhouse.engine import Engine
from inferbus_stack.clickhouse.errors import ClickHouseError
from inferbus_stack.clickhouse.execution import Execution
from inferbus_stack.clickhouse.gate import Gate
from inferbus_stack.clickhouse.guard import Guard
from inferbus_stack.clickhouse.profiles import PROFILES
from inferbus_stack.clickhouse.sessions import Sessions
from inferbus_stack.clickhouse.wire import Body, Request

T = TypeVar("T")
DISPLAY_NAME = "inferbus"
# With wait_end_of_query a result up to this size is held back until it is whole, so that an error in it still sets
# the status. A larger one is streamed after all: memory is bounded, and clients understand a late error.
_HELD_BACK_BYTES = 32 << 20
# How long a client may neither read nor send while its statement holds a slot.
_PEER_SECONDS = 120.0

_CONTENT_TYPES = {
    "json": "application/json; charset=UTF-8",
    "tab": "text/tab-separated-values; charset=UTF-8",
    "tsv": "text/tab-separated-values; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8",
    "row": "application/octet-stream",
    "native": "application/octet-stream",
    "arrow": "application/octet-stream",
    "parquet": "application/octet-stream",
    "orc": "application/octet-stream",
    "avro": "application/octet-stream",
    "xml": "application/xml; charset=UTF-8",
}


def content_type(format_name: str) -> str:
    lowered = format_name.lower()
    found = (kind for prefix, kind in _CONTENT_TYPES.items() if lowered.startswith(prefix))
    return next(found, "text/plain; charset=UTF-8")


@dataclass(frozen=True, slots=True)
class Parts:
    """What every request works with."""

    engine: Engine
    guard: Guard
    sessions: Sessions
    gates: dict[str, Gate]
    threads: ThreadPoolExecutor

    @classmethod
    def make(cls, engine: Engine) -> Parts:
        threads = ThreadPoolExecutor(sum(profile.running for profile in PROFILES.values()), "query")
        return cls(
            engine=engine,
            guard=Guard(engine.catalog, engine.open_handle),
            sessions=Sessions(lambda handle: threads.submit(handle.close)),
            gates={name: Gate(profile) for name, profile in PROFILES.items()},
            threads=threads,
        )


class Answer:
    """Answers one Request. `respond` returns the finished response or raises ClickHouseError before any byte left."""

    def __init__(self, parts: Parts, http: web.Request, request: Request) -> None:
        self._parts = parts
        self._http = http
        self._request = request
        self._exception_tag = "".join(random.choices(string.ascii_lowercase, k=16))  # noqa: S311 - a marker, no secret
        self.late_error: ClickHouseError | None = None

    async def respond(self) -> web.StreamResponse:
        """The whole way. Slot, handle and session are free again when it returns or raises."""
        response = await self._in_slot()
        if self.late_error is not None:
            # The chunked body stays without its end: whoever does not know the exception block sees a broken transfer.
            # The pause lets the block arrive first; some clients throw away what they have when the connection breaks.
            await asyncio.sleep(0.05)
            if self._http.transport is not None:
                self._http.transport.close()
        return response

    async def _in_slot(self) -> web.StreamResponse:
        asked = self._request
        body = Body(self._http)
        piece = await body.piece()  # before the slot: a slow sender keeps nobody waiting
        async with self._parts.gates[asked.user.profile.name].slot():
            kept = None
            if asked.session is not None and asked.in_session:
                kept = self._parts.sessions.take(asked.user.name, asked.session)
            execution = Execution(self._parts.engine, self._parts.guard, asked, kept)
            try:
                return await self._run(execution, piece, body)
            finally:
                if not execution.closed:
                    await self._in_thread(execution, execution.close)
                if asked.session is not None and asked.in_session:
                    self._parts.sessions.give_back(asked.user.name, asked.session, execution.take_kept_handle())

    async def _run(self, execution: Execution, piece: bytes, body: Body) -> web.StreamResponse:
        result = await self._in_thread(execution, partial(execution.begin, piece, body.complete))
        while execution.wants_data:
            async with asyncio.timeout(_PEER_SECONDS):
                piece = await body.piece()
            await self._in_thread(execution, partial(execution.append, piece, body.complete))
        if self._request.wait_end:
            held = [result]
            size = len(result)
            while execution.more and size < _HELD_BACK_BYTES:
                held.append(await self._in_thread(execution, execution.next))
                size += len(held[-1])
            result = b"".join(held)
        encoding = negotiate(self._request.accept_encoding) if self._request.compresses and result else ""
        headers = self._headers(execution, encoding)
        encode = encoder(encoding)
        if execution.more:
            return await self._stream(execution, result, headers, encode)
        if encoding:
            result = await self._in_thread(execution, lambda: encode.encode(result) + encode.finish())
        return web.Response(body=result, headers=headers)

    async def _stream(
        self, execution: Execution, result: bytes, headers: dict[str, str], encode: Encoder
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(self._http)
        data = await self._in_thread(execution, lambda: encode.encode(result))
        try:
            while True:
                if data:
                    async with asyncio.timeout(_PEER_SECONDS):
                        await response.write(data)
                if not execution.more:
                    break
                data = await self._in_thread(execution, lambda: encode.encode(execution.next()))
        except ClickHouseError as error:
            self.late_error = error
            await response.write(encode.encode(self._exception_block(error)) + encode.finish())
            return response
        await response.write(encode.finish())
        await response.write_eof()
        return response

    def _exception_block(self, error: ClickHouseError) -> bytes:
        """A late error as servers since 25.11 write it; clients find it by the tag that the headers announced."""
        tag = self._exception_tag
        text = scrubbed(error, self._request, self._parts.engine).text(self._parts.engine.version) + "\n"
        return f"\r\n__exception__\r\n{tag}\r\n{text}{len(text.encode())} {tag}\r\n__exception__\r\n".encode()

    def _headers(self, execution: Execution, encoding: str) -> dict[str, str]:
        headers = common_headers(self._parts.engine, self._request.query_id)
        headers["X-ClickHouse-Summary"] = json.dumps(execution.progress.summary(), separators=(",", ":"))
        headers["X-ClickHouse-Exception-Tag"] = self._exception_tag
        if execution.format_name:
            headers["X-ClickHouse-Format"] = execution.format_name
            headers["Content-Type"] = content_type(execution.format_name)
        else:
            headers["Content-Type"] = "text/plain; charset=UTF-8"
        if encoding:
            headers["Content-Encoding"] = encoding
        return headers

    async def _in_thread(self, execution: Execution, work: Callable[[], T]) -> T:
        """Runs `work` on a thread. When the client goes away meanwhile, a query is told to stop and waited for: a
        handle is never closed under a running statement, and the slot is not given away early.
        """
        future = asyncio.get_running_loop().run_in_executor(self._parts.threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await _uninterrupted(self._stop(execution, future))
            raise

    async def _stop(self, execution: Execution, future: asyncio.Future[Any]) -> None:
        while not future.done():
            # What writes goes on to its end, as on a server. The rest is killed, and again: it may still be between
            # parsing and running. Not on `threads`: all of them may be busy with what must stop.
            if execution.only_reads:
                await asyncio.to_thread(self._parts.engine.kill, self._request.log_comment)
            await asyncio.wait([future], timeout=0.5)
        future.exception()


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work` to its end even when this task is cancelled again."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue


def common_headers(engine: Engine, query_id: str) -> dict[str, str]:
    return {
        "X-ClickHouse-Server-Display-Name": DISPLAY_NAME,
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Timezone": engine.timezone,
    }


def scrubbed(error: ClickHouseError, request: Request | None, engine: Engine) -> ClickHouseError:
    """The error as this user may see it."""
    if request is None or request.user.profile.hides_paths:
        return error.without_path(engine.path)
    return error


def elapsed_ms(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)

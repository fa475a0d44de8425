"""POST /v1/chat/completions, unary and streaming."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate

from aiohttp import HttpVersion11, web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import uuid_text
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.telemetry import Span, span
from opentelemetry.trace import SpanKind

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.core.errors import internal
from inferbus_edge.core.openai import ChatRequest, parse_chat_request
from inferbus_edge.core.sse import StreamFacts
from inferbus_edge.core.translate import generate_request
from inferbus_edge.measure import Timing
from inferbus_edge.routes.models import model_not_found
from inferbus_edge.server import Call, Routes, WrittenResponse, json_response, read_body
from inferbus_edge.sinks import CLIENT_GONE, Collector, EventStream
from inferbus_edge.streaming import Replies, Reply

log = logging.getLogger(__name__)

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """See the fields of the same names in ``config``."""

    request_timeout: timedelta
    body_timeout: timedelta
    max_unsent_bytes: int


class ChatRoutes:
    def __init__(
        self,
        *,
        edge: str,
        auth: Auth,
        models: Registry[ModelRecord],
        publisher: Publisher,
        replies: Replies,
        limits: ChatLimits,
    ) -> None:
        self._edge = edge
        self._auth = auth
        self._models = models
        self._publisher = publisher
        self._replies = replies
        self._limits = limits

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", PATH, self.complete)

    async def complete(self, call: Call) -> web.StreamResponse:
        """The answer, or InferBusError as long as nothing of it was sent."""
        key = self._auth.require(call.http.headers, INFERENCE)
        chat = parse_chat_request(await read_body(call, self._limits.body_timeout))
        if self._models.get(chat.model) is None:
            raise model_not_found(chat.model)
        self._replies.admit()
        headers: Mapping[str, str] = call.http.headers
        with span(
            f"chat {chat.model}",
            headers,
            kind=SpanKind.SERVER,
            **{
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": chat.model,
                "inferbus.request_id": uuid_text(call.request_id),
                "inferbus.tenant_id": key.tenant_id,
            },
        ) as current:
            return await (self._stream if chat.stream else self._unary)(call, chat, key, current)

    async def _unary(self, call: Call, chat: ChatRequest, key: KeyRecord, current: Span) -> web.StreamResponse:
        created = call.accepted_us // 1_000_000
        sink = Collector(request_id=call.request_id, created=created, model=chat.model)
        reply = Reply(call.request_id, sink, Timing(chat.model, call.accepted_us))
        await self._run(reply, call, chat, key, current)
        if reply.error is not None:
            raise reply.error
        return json_response(sink.body, call.request_id)

    async def _stream(self, call: Call, chat: ChatRequest, key: KeyRecord, current: Span) -> web.StreamResponse:
        transport = call.http.transport
        if transport is None:
            raise ConnectionResetError("the client left before its answer began")
        chunked = call.http.version >= HttpVersion11
        keep_alive = chunked and call.http.keep_alive
        created = call.accepted_us // 1_000_000

        def facts(revision: str) -> StreamFacts:
            return StreamFacts(call.request_id, created, chat.model, revision, chat.include_usage)

        sink = EventStream(
            transport,
            head=_head(call.request_id, created, chunked=chunked, keep_alive=keep_alive),
            facts=facts,
            chunked=chunked,
            max_unsent_bytes=self._limits.max_unsent_bytes,
            now=clock.monotonic(),
        )
        reply = Reply(call.request_id, sink, Timing(chat.model, call.accepted_us))
        await self._run(reply, call, chat, key, current)
        if reply.error is not None and not sink.started and not reply.gone:
            raise reply.error
        # In HTTP/1.0 the end of the connection is the end of the answer.
        return WrittenResponse(keep_alive=keep_alive and not reply.gone)

    async def _run(self, reply: Reply, call: Call, chat: ChatRequest, key: KeyRecord, current: Span) -> None:
        """From the publish to the end of the request; how it ended is in ``reply``.

        Raises InferBusError if the request was not accepted, CancelledError if the client left: then its generation
        is cancelled already.
        """
        timeout = self._limits.request_timeout
        message = generate_request(
            chat,
            request_id=call.request_id,
            edge=self._edge,
            key=key,
            accepted_us=call.accepted_us,
            expire_us=call.accepted_us + timeout // timedelta(microseconds=1),
        )
        self._replies.add(reply)
        try:
            await self._publisher.publish(message, current.headers())
            async with asyncio.timeout(timeout.total_seconds()):
                await reply.done
        except InferBusError as error:
            # It may be stored all the same (only its ack was lost), so the generation is cancelled as well.
            self._replies.fail(reply, error, cancel="not_accepted")
        except TimeoutError:
            self._replies.fail(reply, _timed_out(timeout), cancel="deadline")
        except asyncio.CancelledError:
            self._replies.abandon(reply, CLIENT_GONE)
            raise
        except Exception:
            log.exception("a request failed", extra={"request_id": uuid_text(call.request_id)})
            self._replies.fail(reply, internal(), cancel="edge_error")
        if reply.usage is not None:
            current.set(
                **{
                    "gen_ai.usage.input_tokens": reply.usage.input_tokens,
                    "gen_ai.usage.output_tokens": reply.usage.output_tokens,
                }
            )
        current.end(reply.error)


def _timed_out(timeout: timedelta) -> InferBusError:
    seconds = timeout.total_seconds()
    return InferBusError(
        ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, "request_deadline", f"The request took longer than {seconds:g} s."
    )


def _head(request_id: bytes, unix_seconds: int, *, chunked: bool, keep_alive: bool) -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        "Server: inferbus",
        "Content-Type: text/event-stream; charset=utf-8",
        "Cache-Control: no-cache",
        "X-Accel-Buffering: no",  # nginx would hold tokens back
        f"Date: {formatdate(unix_seconds, usegmt=True)}",
        f"x-request-id: {uuid_text(request_id)}",
    ]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    if not keep_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()

"""The sink that fits a call, and what is left to say to the HTTP server when the answer is written."""

from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from aiohttp import HttpVersion11, web
from inferbus_contracts.ids import uuid_text
from inferbus_dialect.form import Headed
from inferbus_runtime import clock

from inferbus_edge.answers import WrittenResponse
from inferbus_edge.core.forms import form_of
from inferbus_edge.server import Asked, Call, body_response, json_response
from inferbus_edge.sinks import Body, ChatBody, ChatFacts, ChatStream, FormBody, FormStream, Stream
from inferbus_edge.streaming import Answer
from inferbus_edge.wire import Line


def sink_of(
    call: Asked,
    reply: Mapping[str, Any],
    fields: Mapping[str, str],
    max_unsent_bytes: int,
    *,
    stream: bool,
    after: int = 0,
    corked: bool = False,
) -> Stream | Body:
    """For an answer in one piece, or an event stream on the call's connection. ``reply``: the request's description of
    it; ``fields``: further headers of a stream; the rest: see :class:`Line`.

    Raises ConnectionResetError if the client of a stream has left.
    """
    first, plain = call.request_id, reply.get("plain", False)
    if not stream:
        if plain and reply["n"] == 1:
            return ChatBody(_facts(first, reply))
        return FormBody(form_of(first, reply, stream=False))
    transport = call.http.transport if isinstance(call, Call) else None
    if not isinstance(call, Call) or transport is None:
        raise ConnectionResetError("the client left before its answer began")
    chunked = call.http.version >= HttpVersion11
    line = Line(transport, first, _head(call, fields, chunked=chunked), chunked, max_unsent_bytes, after, corked)
    now = clock.monotonic()
    return (
        ChatStream(_facts(first, reply), line, now)
        if plain
        else FormStream(form_of(first, reply, stream=True), line, now)
    )


def response_of(answer: Answer, call: Asked, fields: Mapping[str, str]) -> web.StreamResponse:
    """After the end of ``answer``. Raises its error as long as nothing of it was sent."""
    sink = answer.sink
    if isinstance(sink, Body):
        if answer.error is not None:
            raise answer.error
        body = sink.body
        if isinstance(sink, FormBody) and isinstance(sink.form, Headed):
            return body_response(body, call.request_id, {**fields, **sink.form.fields()})
        return json_response(body, call.request_id, headers=fields)
    if answer.error is not None and not sink.started and not answer.gone:
        raise answer.error
    # In HTTP/1.0 the end of the connection is the end of the answer.
    return WrittenResponse(keep_alive=isinstance(call, Call) and _keeps_alive(call) and not answer.gone)


def _facts(first: bytes, reply: Mapping[str, Any]) -> ChatFacts:
    return ChatFacts(first, reply["created"], reply["model"], reply.get("include_usage", False), reply["n"])


def _keeps_alive(call: Call) -> bool:
    return call.http.version >= HttpVersion11 and bool(call.http.keep_alive)


def _head(call: Call, fields: Mapping[str, str], *, chunked: bool) -> bytes:
    lines = [
        "HTTP/1.1 200 OK",
        "Server: inferbus",
        "Content-Type: text/event-stream; charset=utf-8",
        "Cache-Control: no-cache",
        "X-Accel-Buffering: no",  # nginx would hold tokens back
        f"Date: {formatdate(call.accepted_us // 1_000_000, usegmt=True)}",
        f"x-request-id: {uuid_text(call.request_id)}",
        f"request-id: {uuid_text(call.request_id)}",
        *(f"{name}: {value}" for name, value in {**fields, **call.headers}.items()),
    ]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    if not _keeps_alive(call):
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()

"""The bytes of an OpenAI stream: events made from a prefix per request and the escaped text of a delta.

Each event carries ``id: <request uuid>:<index>``, where index counts the output tokens delivered with that event and
before it: the index at which a resumed stream goes on.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import uuid_text
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.errors import error_body
from inferbus_edge.core.translate import completion_id, usage_object

KEEPALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"

# What JSON must escape, and the line ends that only some clients take for line ends (NEL, U+2028, U+2029).
_ESCAPE = re.compile(rb'["\\\x00-\x1f\x7f]|\xc2\x85|\xe2\x80[\xa8\xa9]')
_ESCAPED = {bytes((code,)): b"\\u%04x" % code for code in (*range(0x20), 0x7F)} | {
    b'"': b'\\"', b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t",
    b"\xc2\x85": b"\\u0085", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029",
}  # fmt: skip


def needs_escape(text: bytes) -> bool:
    """Asked once of a frame's whole text, so that its deltas need no look of their own where the answer is no."""
    return _ESCAPE.search(text) is not None


def escape(text: bytes) -> bytes:
    """UTF-8 as the inside of a JSON string."""
    return _ESCAPE.sub(lambda match: _ESCAPED[match[0]], text)


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What every event of a stream says about its request. ``created`` in Unix seconds."""

    request_id: bytes
    created: int
    model: str
    revision: str
    include_usage: bool


@dataclass(frozen=True, slots=True)
class Template:
    """All bytes of a request's delta events that do not change from one to the next.

    With ``chunked`` an event is an HTTP/1.1 chunk of its own, and the end of the chunk is part of ``after``.
    """

    before: bytes  # up to the index
    between: bytes  # from the index to the text
    after: bytes  # from the text to the end
    overhead: int  # bytes of the event besides index and text
    chunked: bool


def template(facts: StreamFacts, *, chunked: bool) -> Template:
    before = _id_mark(facts)
    # The choice is the last thing in a chunk that holds text of ours, so the last match is the right one.
    head, mark, tail = _chunk(facts, [_choice({"content": ""}, None)]).rpartition(b'"content":"')
    between, after = b"\ndata: " + head + mark, tail + b"\n\n"
    overhead = len(before) + len(between) + len(after)
    return Template(before, between, after + b"\r\n" if chunked else after, overhead, chunked)


def delta_event(form: Template, index: int, escaped: bytes) -> bytes:
    """The event of one delta, ready for the transport: one join, since this runs for every token."""
    digits = b"%d" % index
    if not form.chunked:
        return b"".join((form.before, digits, form.between, escaped, form.after))
    size = b"%x\r\n" % (form.overhead + len(digits) + len(escaped))
    return b"".join((size, form.before, digits, form.between, escaped, form.after))


def role_event(facts: StreamFacts) -> bytes:
    """The first event: who speaks."""
    return _event(facts, 0, _chunk(facts, [_choice({"role": "assistant", "content": "", "refusal": None}, None)]))


def end_events(facts: StreamFacts, index: int, finish_reason: str, usage: Usage) -> bytes:
    """The last events of a good end: finish reason, usage if it was asked for, ``[DONE]``."""
    events = _event(facts, index, _chunk(facts, [_choice({}, finish_reason)]))
    if facts.include_usage:
        events += _event(facts, index, _chunk(facts, [], usage_object(usage)))
    return events + DONE


def error_event(error: InferBusError) -> bytes:
    """The last event of a bad end: the body that the client would have got, had nothing been sent before."""
    return b"data: " + error_body(error) + b"\n\n"


def http_chunk(data: bytes) -> bytes:
    """``data`` (not empty: that would be the last chunk) in HTTP/1.1's chunked framing."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _id_mark(facts: StreamFacts) -> bytes:
    return b"id: %s:" % uuid_text(facts.request_id).encode()


def _event(facts: StreamFacts, index: int, chunk: bytes) -> bytes:
    return b"%s%d\ndata: %s\n\n" % (_id_mark(facts), index, chunk)


def _choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _chunk(facts: StreamFacts, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
    chunk = {
        "id": completion_id(facts.request_id),
        "object": "chat.completion.chunk",
        "created": facts.created,
        "model": facts.model,
        "system_fingerprint": facts.revision,
        "choices": choices,
    }
    # As OpenAI does it: null in every chunk before the one that has it.
    return orjson.dumps(chunk | {"usage": usage} if facts.include_usage else chunk)

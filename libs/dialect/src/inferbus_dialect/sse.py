"""The bytes of a plain chat stream: events made from a prefix per choice and the escaped text of a delta.

Each event of any stream carries ``id: <request uuid>:<number>``; the number counts the answer's events from 1. What the
log says decides what the events are, so the number names the same event at every edge: there a stream is resumed.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import parse_uuid, uuid_text
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.errors import error_body
from inferbus_dialect.translate import completion_id, usage_object

# Without an empty line: after an event with an id, OpenAI's Python SDK takes one for an event, and breaks on its data.
KEEPALIVE = b": keep-alive\n"
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
    """All bytes of a choice's delta events that do not change from one to the next.

    With ``chunked`` an event is an HTTP/1.1 chunk of its own, and the end of the chunk is part of ``after``.
    """

    before: bytes  # up to the event's number
    between: bytes  # from the number to the text
    after: bytes  # from the text to the end
    overhead: int  # bytes of the event besides number and text
    chunked: bool


def template(facts: StreamFacts, choice: int, *, chunked: bool) -> Template:
    before = id_mark(facts.request_id)
    # The choice is the last thing in a chunk that holds text of ours, so the last match is the right one.
    head, mark, tail = _chunk(facts, [_choice(choice, {"content": ""}, None)]).rpartition(b'"content":"')
    between, after = b"\ndata: " + head + mark, tail + b"\n\n"
    overhead = len(before) + len(between) + len(after)
    return Template(before, between, after + b"\r\n" if chunked else after, overhead, chunked)


def delta_event(form: Template, number: int, escaped: bytes) -> bytes:
    """The event of one delta, ready for the transport: one join, since this runs for every token."""
    digits = b"%d" % number
    if not form.chunked:
        return b"".join((form.before, digits, form.between, escaped, form.after))
    size = b"%x\r\n" % (form.overhead + len(digits) + len(escaped))
    return b"".join((size, form.before, digits, form.between, escaped, form.after))


def role_event(facts: StreamFacts, choice: int) -> bytes:
    """The first event of a choice: who speaks."""
    delta = {"role": "assistant", "content": "", "refusal": None}
    return event(_chunk(facts, [_choice(choice, delta, None)]))


def end_event(facts: StreamFacts, choice: int, finish_reason: str) -> bytes:
    """The last event of a choice."""
    return event(_chunk(facts, [_choice(choice, {}, finish_reason)]))


def usage_event(facts: StreamFacts, usage: Usage) -> bytes:
    """The last event of all, if it was asked for."""
    return event(_chunk(facts, [], usage_object(usage)))


def error_event(error: InferBusError) -> bytes:
    """The last event of a bad end: the body that the client would have got, had nothing been sent before."""
    return event(error_body(error))


def event(data: bytes) -> bytes:
    return b"data: %s\n\n" % data


def numbered(request_id: bytes, number: int, one: bytes) -> bytes:
    """An event with its ``id:`` line."""
    return b"%s%d\n%s" % (id_mark(request_id), number, one)


def http_chunk(data: bytes) -> bytes:
    """``data`` (not empty: that would be the last chunk) in HTTP/1.1's chunked framing."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def id_mark(request_id: bytes) -> bytes:
    return b"id: %s:" % uuid_text(request_id).encode()


def parse_event_id(text: str) -> tuple[bytes, int]:
    """(request id, number) of an event's id. Raises ValueError."""
    name, colon, number = text.strip().rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 12:
        raise ValueError("an event id is a request id, a colon and a number")
    return parse_uuid(name), int(number)


def _choice(choice: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


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

"""Where the text of one request goes: into an SSE stream, or into the body of a unary answer.

Both take the same calls, from the bus callback: ``open``, then ``write`` for each delta, then ``finish`` or ``fail``.
``write`` returns why the client can get no more, or None.
"""

import asyncio
from collections.abc import Callable

from inferbus.common.v1.usage_pb2 import Usage
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core import sse
from inferbus_edge.core.translate import completion_body

CLIENT_GONE = "client_gone"
SLOW_CLIENT = "slow_client"


class EventStream:
    """Writes ready bytes straight to the client's transport: no queue and no task per token.

    Nothing is sent before the first delta, so that an error until then has a status of its own.
    """

    __slots__ = (
        "_chunked", "_facts", "_form", "_lead", "_limit", "_transport", "last_write", "started",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        *,
        head: bytes,
        facts: Callable[[str], sse.StreamFacts],
        chunked: bool,
        max_unsent_bytes: int,
        now: float,
    ) -> None:
        """``head``: the response's head; ``facts`` of a revision; ``now`` in monotonic seconds."""
        self._transport = transport
        self._lead = head
        self._facts = facts
        self._chunked = chunked
        self._limit = max_unsent_bytes
        self._form: sse.Template | None = None
        self.last_write = now
        self.started = False

    def open(self, revision: str) -> None:
        """Text of ``revision`` follows. The role goes out with the first of it."""
        facts = self._facts(revision)
        if self._form is None:
            self._lead += self._framed(sse.role_event(facts))
        self._form = sse.template(facts, chunked=self._chunked)

    def write(self, index: int, escaped: bytes, now: float) -> str | None:
        assert self._form is not None  # noqa: S101 (open comes first)
        return self._send(sse.delta_event(self._form, index, escaped), now)

    def keepalive(self, now: float) -> str | None:
        return self._send(self._framed(sse.KEEPALIVE), now)

    def finish(self, index: int, revision: str, finish_reason: str, usage: Usage, now: float) -> None:
        if self._form is None:
            self.open(revision)
        self._send(self._framed(sse.end_events(self._facts(revision), index, finish_reason, usage)) + self._end(), now)

    def fail(self, error: InferBusError, now: float) -> None:
        """Before the first byte nothing is written: whoever waits for the end answers with the error's own status."""
        if self.started:
            self._send(self._framed(sse.error_event(error)) + self._end(), now)

    def _send(self, data: bytes, now: float) -> str | None:
        if self._lead:
            data, self._lead = self._lead + data, b""
            self.started = True
        transport = self._transport
        # One dead client must not cost the others their part of a frame: uvloop raises on a closed transport.
        if transport.is_closing():
            return CLIENT_GONE
        try:
            transport.write(data)
        except (RuntimeError, OSError):
            return CLIENT_GONE
        self.last_write = now
        return SLOW_CLIENT if transport.get_write_buffer_size() > self._limit else None

    def _framed(self, data: bytes) -> bytes:
        return sse.http_chunk(data) if self._chunked else data

    def _end(self) -> bytes:
        return sse.LAST_CHUNK if self._chunked else b""

    def abort(self) -> None:
        """Cut the connection; what was not read is dropped."""
        self._transport.abort()


class Collector:
    """Keeps the text of a unary answer until its end."""

    __slots__ = ("_created", "_model", "_parts", "_request_id", "body")
    started = False

    def __init__(self, *, request_id: bytes, created: int, model: str) -> None:
        """``created`` in Unix seconds."""
        self._request_id = request_id
        self._created = created
        self._model = model
        self._parts: list[bytes] = []
        self.body = b""

    def open(self, revision: str) -> None:
        """Nothing to say before the end."""

    def write(self, index: int, escaped: bytes, now: float) -> str | None:
        self._parts.append(escaped)
        return None

    def finish(self, index: int, revision: str, finish_reason: str, usage: Usage, now: float) -> None:
        self.body = completion_body(
            request_id=self._request_id,
            created=self._created,
            model=self._model,
            revision=revision,
            escaped=b"".join(self._parts),
            finish_reason=finish_reason,
            usage=usage,
        )

    def fail(self, error: InferBusError, now: float) -> None:
        """The error is the answer; whoever waits for the end gives it."""

    def abort(self) -> None:
        """Nobody reads this yet."""


Sink = EventStream | Collector

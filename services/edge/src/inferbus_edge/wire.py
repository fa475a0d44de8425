"""One client's connection: numbered events, straight to its transport."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from inferbus_dialect import sse

CLIENT_GONE = "client_gone"
SLOW_CLIENT = "slow_client"


@dataclass(frozen=True, slots=True)
class Line:
    """One client's connection. ``head``: the response's head. ``after``: events up to this number are with the client
    already and are not sent. ``max_unsent_bytes``: what it may leave unread. ``corked``: nothing goes out before
    :meth:`Wire.uncork`."""

    transport: asyncio.WriteTransport
    request_id: bytes
    head: bytes
    chunked: bool
    max_unsent_bytes: int
    after: int = 0
    corked: bool = False


class Wire:
    """Ready bytes straight to the client's transport: no queue and no task per token.

    Nothing is sent before the first delta, so that an error until then has a status of its own.
    """

    __slots__ = (
        "_chunked",
        "_corked",
        "_lead",
        "_limit",
        "_transport",
        "after",
        "last_write",
        "number",
        "request_id",
        "started",
    )  # fmt: skip

    def __init__(self, line: Line, now: float) -> None:
        self._transport = line.transport
        self._chunked = line.chunked
        self._limit = line.max_unsent_bytes
        self._corked = line.corked
        self.request_id = line.request_id
        self.after = line.after
        self._lead = [line.head]
        self.number = 0  # of the last event made
        self.last_write = now
        self.started = False

    @property
    def chunked(self) -> bool:
        return self._chunked

    @property
    def begun(self) -> bool:
        """The client has a part of the answer, or will have it with the uncorking."""
        return self.started or (self._corked and self.number > 0)

    def events(self, events: Sequence[bytes]) -> bytes:
        """``events`` with their numbers, framed, without those that the client has."""
        data = b""
        for one in events:
            self.number += 1
            if self.number > self.after:
                data += sse.numbered(self.request_id, self.number, one)
        return self.framed(data)

    def framed(self, data: bytes) -> bytes:
        return sse.http_chunk(data) if self._chunked and data else data

    def end(self) -> bytes:
        return sse.LAST_CHUNK if self._chunked else b""

    @property
    def leads(self) -> bool:
        """Something is made that has not been sent."""
        return bool(self._lead)

    def lead(self, data: bytes) -> None:
        """Goes out before what is sent next."""
        self._lead.append(data)

    def uncork(self, now: float) -> str | None:
        """All that was made so far goes out in one write; the client may take its time with that."""
        self._corked = False
        self._limit += sum(len(one) for one in self._lead)
        return self.send(b"", now)

    def send(self, data: bytes, now: float) -> str | None:
        if self._lead:
            self._lead.append(data)
            if self._corked:
                return None
            data = b"".join(self._lead)
            self._lead = []
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

    def abort(self) -> None:
        """Cut the connection; what was not read is dropped."""
        self._transport.abort()

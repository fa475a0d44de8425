"""A closed-loop load generator for OpenAI-compatible servers, cheap enough not to be what is measured.

Raw HTTP/1.1 on asyncio protocols: no parsing of events beyond counting them, no task per token.
"""

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit


@dataclass(slots=True)
class Meter:
    """What has arrived so far, for measuring in the middle of a loop."""

    tokens: int = 0
    answers: int = 0


@dataclass(slots=True)
class Answer:
    """One finished request; seconds from its first byte out."""

    status: int
    tokens: int
    ttft: float
    total: float
    request_id: str
    gaps: list[float] = field(default_factory=list)
    body: bytes = b""
    """Of a stream, if its connection keeps it: still in chunks."""


def request_bytes(url: str, key: str, body: dict) -> bytes:
    parts = urlsplit(url)
    data = json.dumps(body).encode()
    return (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode() + data


class Connection(asyncio.Protocol):
    """One keep-alive connection; :meth:`ask` sends a request and waits for its whole answer. ``keep``: and its body."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self.meter = Meter()
        self.transport: asyncio.Transport | None = None
        self.done: asyncio.Future[Answer] | None = None
        self.buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError(f"connection lost: {exc}"))

    @property
    def closed(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        self.done = asyncio.get_running_loop().create_future()
        self.buffer.clear()
        self.tokens = 0
        self.first = self.last = 0.0
        self.head = b""
        self.gaps: list[float] = []
        self.started = perf_counter()
        self.transport.write(request)  # type: ignore[union-attr]
        return self.done

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self.buffer += data
        if not self.head:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self.buffer[:end])
            del self.buffer[: end + 4]
            lower = self.head.lower()
            self.stream = b"text/event-stream" in lower
            at = lower.find(b"content-length:")
            self.length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
        if self.stream:
            # The first event carries the role and an empty content, which is no token.
            count = data.count(b'"content":"') - data.count(b'"content":""')
            if count:
                if not self.first:
                    self.first = now
                else:
                    self.gaps.append(now - self.last)
                self.last = now
                self.tokens += count
                self.meter.tokens += count
            finished = self.buffer.endswith(b"0\r\n\r\n")
            if not finished and not self.keep and len(self.buffer) > 4096:
                del self.buffer[:-16]
        else:
            finished = 0 <= self.length <= len(self.buffer) or (self.length < 0 and self.buffer.endswith(b"0\r\n\r\n"))
            if finished:
                self.first = now
        if finished and self.done is not None and not self.done.done():
            self.meter.answers += 1
            self.done.set_result(self._answer(now))

    def _answer(self, now: float) -> Answer:
        status = int(self.head.split(b" ", 2)[1])
        tokens = self.tokens
        if not self.stream and status == 200 and self.length >= 0:
            tokens = json.loads(self.buffer)["usage"]["completion_tokens"]
        at = self.head.lower().find(b"x-request-id:")
        request_id = self.head[at + 13 :].split(b"\r\n", 1)[0].strip().decode() if at >= 0 else ""
        body = bytes(self.buffer) if self.keep else b""
        return Answer(status, tokens, self.first - self.started, now - self.started, request_id, self.gaps, body)


async def connect(url: str, keep: bool = False) -> Connection:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(keep), parts.hostname, parts.port)
    return connection


async def closed_loop(
    url: str, key: str, body: dict, *, concurrency: int, seconds: float, spread: float = 0.0, meter: Meter | None = None
) -> list[Answer]:
    """``concurrency`` clients, each sending its next request when the last has ended, for ``seconds``.

    ``spread`` seconds over which the first requests are started. Answers that end in the window are returned.
    """
    request = request_bytes(url, key, body)
    answers: list[Answer] = []
    stop = asyncio.get_running_loop().time() + seconds + spread

    async def client(number: int) -> None:
        connection = await connect(url)
        connection.meter = meter or connection.meter
        await asyncio.sleep(spread * number / concurrency)
        while asyncio.get_running_loop().time() < stop:
            answers.append(await connection.ask(request))
        connection.transport.close()  # type: ignore[union-attr]

    await asyncio.gather(*(client(number) for number in range(concurrency)))
    return answers

"""One answer of an upstream, with the times it may take."""

import asyncio
import math
import struct
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from inferbus_worker.engine import Chat, Generation, Vector
from inferbus_worker.engines.openai_body import Events
from inferbus_worker.engines.openai_errors import Kind, UpstreamError, failure_in_stream
from inferbus_worker.engines.openai_events import BrokenAnswerError, Chunk, FailedEventError, chunk_of, chunks_of
from inferbus_worker.engines.openai_http import UpstreamHttp

# What is left to come once an answer is complete, or was stopped by us: its usage.
_LAST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: to the first token, between two, and of an answer that comes whole."""

    first: float
    stall: float
    whole: float


class Answer:
    """Raises UpstreamError, RefusedError and TooLongError."""

    def __init__(
        self, http: UpstreamHttp, times: Times, generation: Generation, room: asyncio.Event, events: Events
    ) -> None:
        """``room``: reading waits for it, and nobody counts that time."""
        self._http = http
        self._times = times
        self._generation = generation
        self._room = room
        self._events = events
        self._complete = False

    async def stream(self, path: str, body: bytes, take: Callable[[Chunk], bool]) -> None:
        """Gives each event to ``take``, until the end, or until that is False: then the connection is dropped."""
        try:
            async with asyncio.timeout(self._times.first) as limit:
                try:
                    await self._post(path, body, take, limit)
                except aiohttp.ServerDisconnectedError:
                    # A kept connection that it closed as we used it again; on a new one this is no accident.
                    await self._post(path, body, take, limit)
        except FailedEventError as event:
            raise failure_in_stream(event.status, event.body, self._generation) from event
        except (BrokenAnswerError, aiohttp.ClientPayloadError) as error:
            if not self._complete:
                raise UpstreamError(Kind.BROKEN, str(error)) from error
        except TimeoutError as error:
            if not self._complete:
                raise UpstreamError(Kind.BROKEN, "it said nothing for too long") from error
        except (aiohttp.ClientError, OSError) as error:
            if not self._complete:
                raise UpstreamError(Kind.GONE, repr(error)) from error

    def complete(self) -> None:
        """What follows is its usage at most."""
        self._complete = True

    async def _post(self, path: str, body: bytes, take: Callable[[Chunk], bool], limit: asyncio.Timeout) -> None:
        async with self._http.post(path, body) as response:
            try:
                await self._http.checked(response, self._generation)
                await self._read(response, take, limit)
            finally:
                response.close()  # what may be left of it is not waited for

    async def _read(
        self, response: aiohttp.ClientResponse, take: Callable[[Chunk], bool], limit: asyncio.Timeout
    ) -> None:
        now = asyncio.get_running_loop().time
        first: Chunk | None = None
        unsure: Chunk | None = None
        async with aclosing(chunks_of(response)) as chunks:
            async for chunk in chunks:
                if first is None:
                    first = chunk
                    if self._may_be_another(chunk):
                        unsure = chunk
                        continue
                elif self._events.named and chunk.answer != first.answer:
                    raise BrokenAnswerError("an event of another answer")
                if chunk.finish is not None:
                    self._complete = True
                if unsure is not None and not take(unsure):
                    return
                unsure = None
                if not take(chunk):
                    return
                if not self._room.is_set():
                    limit.reschedule(None)
                    await self._room.wait()
                if self._complete:
                    limit.reschedule(now() + _LAST_SECONDS)
                elif chunk.says or limit.when() is None:
                    limit.reschedule(now() + self._times.stall)

    def _may_be_another(self, chunk: Chunk) -> bool:
        """A server was seen that wrote what was meant for a client that had left to the next one. So a chat that begins
        otherwise than this server's do has its first event held until the next one is of the same answer."""
        chat = isinstance(self._generation.input, Chat)
        return self._events.opened and chat and chunk.says and chunk.finish is None

    async def whole(self, path: str, body: bytes) -> Chunk:
        answer = await self._http.ask(path, body, self._times.whole, self._generation)
        try:
            chunk = chunk_of(answer)
        except FailedEventError as event:
            raise failure_in_stream(event.status, event.body, self._generation) from event
        except BrokenAnswerError as error:
            raise UpstreamError(Kind.BROKEN, str(error)) from error
        chunk.finish = chunk.finish or "stop"
        return chunk

    async def vectors(self, path: str, body: bytes) -> tuple[list[Vector], int | None]:
        """Of length 1, in the order of the inputs; and the input tokens, if they were said."""
        answer = await self._http.ask(path, body, self._times.whole, self._generation)
        try:
            ordered = sorted(answer["data"], key=lambda one: one["index"])
            vectors = [
                Vector(self._generation.key, index, _unit(one["embedding"])) for index, one in enumerate(ordered)
            ]
            tokens = (answer.get("usage") or {}).get("prompt_tokens")
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UpstreamError(Kind.BROKEN, f"vectors of an unknown form: {error!r}") from error
        return vectors, tokens


def _unit(values: list[float]) -> bytes:
    length = math.sqrt(math.fsum(value * value for value in values))
    if not length or not math.isfinite(length):
        raise ValueError("a vector without a length")
    return struct.pack(f"<{len(values)}f", *(value / length for value in values))

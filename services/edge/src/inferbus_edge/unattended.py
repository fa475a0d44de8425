"""Answers without a client: those that run in the background, and those that are looked at by their id."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any

import orjson
from inferbus.bus.v1.registry_pb2 import KeyRecord, ResponseRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_contracts.ids import unix_ms_of, uuid_text
from inferbus_dialect.errors import internal
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.forms import form_of
from inferbus_edge.following import Following
from inferbus_edge.looks import Looks
from inferbus_edge.measure import Timing
from inferbus_edge.passes import Opened
from inferbus_edge.sinks import FormBody, FormStream
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Answer

log = logging.getLogger(__name__)


class Unattended:
    """``lifetime``: after that an answer that is not on the log was lost."""

    def __init__(self, following: Following, stored: Stored, lifetime: timedelta) -> None:
        self._looks = Looks(following)
        self._stored = stored
        self._lifetime = lifetime
        self._tasks: set[asyncio.Task[None]] = set()

    async def snapshot(
        self, key: KeyRecord, first: bytes, wait: float = 0.0, absent: Callable[[], bool] | None = None
    ) -> bytes | None:
        """A stored answer as it is now, or as soon as it has ended within ``wait`` seconds; None if there is none for
        this caller. ``absent`` is called if the log has nothing of it. Raises InferBusError UNAVAILABLE."""
        record = await self._stored.get(key, first)
        if record is None:
            return None
        if record.body:
            return bytes(record.body)
        async with self._looks.look(first, _opened(first, record.reply)) as answer:
            if answer is None:
                if absent is not None:
                    absent()
                sink = _sink_of(first, record.reply)
                if self._is_lost(record):
                    sink.fail(internal("a stored answer is not on the log"), clock.monotonic())
                return sink.body
            if wait > 0 and not answer.done.done():
                await asyncio.wait([answer.done], timeout=wait)
            await self.store(key, answer)
            assert isinstance(answer.sink, FormBody)  # noqa: S101 (as all that are looked at)
            return answer.sink.body

    async def keep(self, key: KeyRecord, first: bytes, reply: bytes) -> Answer | None:
        """It goes on without a client, and may not have begun: follow it to its end, for the store."""
        async with (
            asyncio.timeout(self._lifetime.total_seconds()),
            self._looks.look(first, _opened(first, reply), wait=True) as answer,
        ):
            if answer is not None:
                await asyncio.wait([answer.done])
                await self.store(key, answer)
            return answer

    def offer(self, answer: Answer) -> None:
        """It is made here, into a :class:`FormBody`: who looks at it needs no log."""
        self._looks.offer(answer)

    async def store(self, key: KeyRecord, answer: Answer) -> None:
        """Keep the answer if its end is on the log; else it is made from the log when it is asked for."""
        sink = answer.sink
        if not answer.on_log or not isinstance(sink, FormStream | FormBody):
            return
        try:
            await self._stored.finish(key, answer.first, sink.body)
        except InferBusError as error:
            log.warning("an answer was not stored", extra={"request_id": uuid_text(answer.first), "error": str(error)})

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Run it, whoever waits for it or not."""
        task = asyncio.create_task(_logged(coroutine), name="answer without a client")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        """The process ends. What is not stored yet is made from the log when it is asked for."""
        for task in self._tasks:
            task.cancel()
        self._looks.stop()

    def _is_lost(self, record: ResponseRecord) -> bool:
        """The log is too old for it, or the edge that took it died before it was on its way."""
        age_us = clock.now_us() - record.accepted_time.ToMicroseconds()
        return age_us > self._lifetime // timedelta(microseconds=1)


def _sink_of(first: bytes, reply: bytes) -> FormBody:
    return FormBody(form_of(first, orjson.loads(reply), stream=False))


def _opened(first: bytes, reply: bytes) -> Opened:
    def opened(_: bytes, context: RequestContext) -> Answer:
        described: Mapping[str, Any] = orjson.loads(reply)
        answer = Answer(first, described["n"], _sink_of(first, reply), Timing(context.model, unix_ms_of(first) * 1000))
        answer.attended, answer.resumed = False, True
        return answer

    return opened


async def _logged(coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        await coroutine
    except InferBusError as error:
        log.warning("a task without a client failed", extra={"reason": error.reason, "error": str(error)})
    except TimeoutError:
        log.warning("an answer without a client was waited for too long")

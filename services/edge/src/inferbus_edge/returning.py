"""Answers of calls that were accepted before, at this edge or another one: made again from the log, to whoever asks."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import unix_ms_of, uuid_text
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.forms import WHOLE
from inferbus_edge.core.lookups import Lookups
from inferbus_edge.deliveries import DeliveryLog
from inferbus_edge.following import Following
from inferbus_edge.holding import Holds
from inferbus_edge.measure import Timing
from inferbus_edge.server import Asked
from inferbus_edge.sinks import FormStream, Stream
from inferbus_edge.streaming import Answer
from inferbus_edge.wire import CLIENT_GONE
from inferbus_edge.writing import response_of, sink_of

STREAM_HEADER = "x-inferbus-stream"


class Returning:
    """``timeout``: how long a client that came back is answered at most. ``max_unsent_bytes``: what it may leave
    unread."""

    def __init__(
        self, following: Following, holds: Holds, timeout: timedelta, max_unsent_bytes: int, deliveries: DeliveryLog
    ) -> None:
        self._following = following
        self._holds = holds
        self._timeout = timeout
        self._max_unsent_bytes = max_unsent_bytes
        self._deliveries = deliveries
        self._lookups = Lookups()

    async def find(
        self,
        call: Asked,
        key: KeyRecord,
        *,
        stream: bool,
        after: int = 0,
        absent: Callable[[], bool] | None = None,
        edge: str | None = None,
    ) -> Answer | None:
        """The answer of ``call.request_id``, replayed and still corked, without the events up to number ``after``; None
        if the log does not have it, or it is not of the caller's project. ``absent``: see :meth:`Following.join`."""
        first, tenant = call.request_id, key.tenant_id
        self._lookups.check(tenant, clock.monotonic())

        def opened(reply: bytes, context: RequestContext) -> Answer | None:
            if (context.tenant_id, context.project_id) != (key.tenant_id, key.project_id):
                return None
            described: dict[str, Any] = orjson.loads(reply)
            fields, limit = self.fields(call), self._max_unsent_bytes
            events = stream and described["api"] not in WHOLE
            sink = sink_of(call, described, fields, limit, stream=events, after=after, corked=True)
            if described.get("background", False) and isinstance(sink, FormStream):
                sink.accept(clock.monotonic())  # it was accepted before: what became of it is an event, also an error
            hold = self._holds.of(call, key, described.get("hold", 0.0))
            answer = Answer(first, described["n"], sink, Timing(context.model, unix_ms_of(first) * 1000), hold)
            answer.resumed = True
            self._deliveries.follow(answer, key)
            return answer

        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                answer = await self._following.join(first, opened, absent, edge)
        except TimeoutError:
            raise timed_out(self._timeout) from None
        if answer is None:
            self._lookups.missed(tenant, clock.monotonic())
        return answer

    async def deliver(self, answer: Answer, call: Asked) -> web.StreamResponse:
        """What :meth:`find` gave, from the end of its replay to its end."""
        failed = answer.done.done() and answer.error is not None
        if isinstance(answer.sink, Stream) and not (failed and not answer.sink.begun):
            trouble = answer.sink.uncork(clock.monotonic())
            if trouble is not None:
                self._following.leave(answer, trouble)
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                await answer.done
        except TimeoutError:
            self._following.fail(answer, timed_out(self._timeout), cancel="deadline")
        except asyncio.CancelledError:
            self._following.leave(answer, CLIENT_GONE)
            raise
        return response_of(answer, call, self.fields(call))

    @staticmethod
    def fields(call: Asked) -> Mapping[str, str]:
        """Headers of the answer: the name under which it is found again."""
        return {STREAM_HEADER: uuid_text(call.request_id)}


def not_found() -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND, "not_found", "There is no such answer here, or it is too old to be found."
    )


def timed_out(timeout: timedelta) -> InferBusError:
    seconds = timeout.total_seconds()
    return InferBusError(
        ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, "request_deadline", f"The request took longer than {seconds:g} s."
    )

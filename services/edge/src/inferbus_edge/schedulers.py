"""The schedulers that the operator named. Each follows the whole fleet, and has the queues and the decisions of the
models that it schedules: one question is answered by any of them, another by all together."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import Message
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1.scheduler_pb2 import (
    ExplainRequest,
    ExplainResponse,
    ListSchedulersRequest,
    ListSchedulersResponse,
    WatchFleetRequest,
    WatchFleetResponse,
)
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_runtime.errors import InferBusError, unavailable
from inferbus_runtime.rpc import error_of

from inferbus_edge.core.fleet import merged

_SECONDS = 30.0
# A scheduler that hangs must not keep the picture of the others back.
_PICTURE_SECONDS = 5.0
_RETRY_AFTER = timedelta(seconds=2)
# Another one is asked then: whatever is asked may be asked twice.
_NOT_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Schedulers:
    """``channels``: to each of them; may be none."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = list(channels)

    async def ask(self, call: Callable[[grpc.aio.Channel], Any], request: Message, seconds: float = _SECONDS) -> Any:
        """The answer of the first one that is there. ``call``: the method at a channel.

        Raises the InferBusError that it answered with; UNAVAILABLE if none is there.
        """
        missing = _unnamed()
        for channel in list(self._channels):
            try:
                answer = await call(channel)(request, timeout=seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _NOT_THERE:
                    raise error_of(error) from error
                missing = error_of(error)
            else:
                # Whoever is away is asked last from now on.
                self._channels.sort(key=lambda one: one is not channel)
                return answer
        raise missing

    async def fleet(self) -> WatchFleetResponse:
        """The workers, as the first that answers sees them, and the queues of all that answer.

        Raises InferBusError if none does.
        """
        found = await self._all(_picture)
        return merged(found)

    async def members(self) -> ListSchedulersResponse:
        """All schedulers, and what each of them holds; empty if nobody says it now."""
        try:
            answer: ListSchedulersResponse = await self.ask(
                lambda channel: SchedulerServiceStub(channel).ListSchedulers, ListSchedulersRequest(), _PICTURE_SECONDS
            )
        except InferBusError as error:
            away = (ErrorClass.ERROR_CLASS_UNAVAILABLE, ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED)
            if error.reason != "rpc_unimplemented" and error.error_class not in away:
                raise
            return ListSchedulersResponse()
        for one in answer.schedulers:
            one.self = False  # of no meaning behind an edge
        return answer

    async def explain(self, request: ExplainRequest, seconds: float) -> ExplainResponse | None:
        """What one of them decided lately; None if none knows, or those that know are away."""

        async def explained(channel: grpc.aio.Channel) -> ExplainResponse:
            answer: ExplainResponse = await SchedulerServiceStub(channel).Explain(request, timeout=seconds)
            return answer

        try:
            found: list[ExplainResponse] = await self._all(explained)
        except InferBusError:
            return None
        # Who takes a shard over decides on: what was decided last is what holds.
        return max(found, key=lambda one: one.decision_time.ToNanoseconds())

    async def _all(self, ask: Callable[[grpc.aio.Channel], Any]) -> list[Any]:
        """What they answer, in their order, without those that do not. Raises InferBusError if none does."""
        if not self._channels:
            raise _unnamed()
        answers = await asyncio.gather(*(ask(channel) for channel in self._channels), return_exceptions=True)
        for one in answers:
            if isinstance(one, BaseException) and not isinstance(one, grpc.aio.AioRpcError):
                raise one
        found = [one for one in answers if not isinstance(one, BaseException)]
        if not found:
            refused = next(one for one in answers if isinstance(one, grpc.aio.AioRpcError))
            raise error_of(refused) from refused
        return found


async def _picture(channel: grpc.aio.Channel) -> WatchFleetResponse:
    watch = SchedulerServiceStub(channel).WatchFleet(WatchFleetRequest(), timeout=_PICTURE_SECONDS)
    try:
        async for first in watch:
            picture: WatchFleetResponse = first
            return picture
    finally:
        watch.cancel()
    return WatchFleetResponse()


def _unnamed() -> InferBusError:
    return unavailable("scheduler_unavailable", "No scheduler is configured at this edge.", retry_after=_RETRY_AFTER)

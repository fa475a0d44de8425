"""The gRPC API of replays: one at a time, over all meters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta

import grpc
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import replay_pb2_grpc
from inferbus.meter.v1.replay_pb2 import ReplayRequest, ReplayResponse
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.lease import hold
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_meter.clickhouse import RETRY_AFTER, Store
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.replay import LEASE
from inferbus_meter.core.rows import IsErased
from inferbus_meter.ingest import Ingest
from inferbus_meter.prices import Prices
from inferbus_meter.replay import Replay, ReplayRange

SERVICE_NAME = "inferbus.meter.v1.ReplayService"
_LEASE_SECONDS = timedelta(seconds=10)
_TIMEOUT = timedelta(seconds=30)


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    """``store``: as a user who may create, delete and attach; None: the operator named none. ``holder``: this meter's
    name."""

    def __init__(
        self,
        bus: Bus,
        frames: FrameLog,
        store: Store | None,
        ingest: Ingest,
        prices: Prices,
        holder: str,
        is_erased: IsErased = nobody_erased,
    ) -> None:
        self._bus = bus
        self._frames = frames
        self._store = store
        self._ingest = ingest
        self._prices = prices
        self._holder = holder
        self._is_erased = is_erased

    async def Replay(  # noqa: N802 - gRPC's name
        self, request: ReplayRequest, context: "grpc.aio.ServicerContext[ReplayRequest, ReplayResponse]"
    ) -> AsyncIterator[ReplayResponse]:
        if self._store is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT,
                "replay_not_configured",
                "This meter may only insert: give it INFERBUS_METER_CLICKHOUSE_REPAIR_USER for a replay.",
            )
        wanted = _range(request)
        try:
            async with AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(wanted.timeout):
                        lease = await stack.enter_async_context(hold(self._bus, LEASE, self._holder, _LEASE_SECONDS))
                except TimeoutError:
                    raise _running("Another replay runs; retry.") from None
                replay = Replay(wanted, self._frames, self._store, self._ingest, self._prices.book, self._is_erased)
                # Its tables are gone before another may begin, also if the caller has left.
                events = await stack.enter_async_context(aclosing(replay.run()))
                async for event in events:
                    if lease.lost.is_set():
                        raise _running("Another replay may have begun; run it again.")
                    yield event
        except StreamApiError as error:
            raise unavailable(
                "bus_unavailable", "The message bus refused; retry.", retry_after=RETRY_AFTER, diagnostic=repr(error)
            ) from error


def _running(message: str) -> InferBusError:
    return unavailable("replay_running", message, retry_after=RETRY_AFTER)


def _range(request: ReplayRequest) -> ReplayRange:
    start = clock.unix_us(request.start_time) if request.HasField("start_time") else None
    end = clock.unix_us(request.end_time) if request.HasField("end_time") else None
    if start is not None and end is not None and start >= end:
        raise invalid("end_time must be after start_time.", param="end_time")
    timeout = request.timeout.ToTimedelta() if request.HasField("timeout") else _TIMEOUT
    return ReplayRange(start, end, request.dry_run, timeout.total_seconds())

"""The meter's gRPC API."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.meter.v1 import meter_pb2_grpc
from inferbus.meter.v1.meter_pb2 import (
    AuditRequest,
    AuditResponse,
    GetLiveRequest,
    GetLiveResponse,
    GetUsageRequest,
    GetUsageResponse,
)
from inferbus_bus.errors import StreamApiError
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_meter import queries
from inferbus_meter.audit import Audit, AuditRange
from inferbus_meter.clickhouse import RETRY_AFTER, STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.rows import IsErased
from inferbus_meter.ingest import Ingest
from inferbus_meter.prices import Prices

SERVICE_NAME = "inferbus.meter.v1.MeterService"
_LIVE_WINDOW = timedelta(seconds=60)
_LIVE_WINDOW_MAX = timedelta(hours=1)
_AUDIT_TIMEOUT = timedelta(seconds=30)


class MeterServicer(meter_pb2_grpc.MeterServiceServicer):
    """Answers from the tables; the audit from the stream as well. Who may ask is the edge's business."""

    def __init__(
        self, store: Store, frames: FrameLog, ingest: Ingest, prices: Prices, is_erased: IsErased = nobody_erased
    ) -> None:
        self._store = store
        self._frames = frames
        self._ingest = ingest
        self._prices = prices
        self._is_erased = is_erased

    async def GetUsage(  # noqa: N802 - gRPC's name
        self, request: GetUsageRequest, context: "grpc.aio.ServicerContext[GetUsageRequest, GetUsageResponse]"
    ) -> GetUsageResponse:
        start, end = _range(request)
        try:
            return await queries.usage(self._store, start or 0, end or clock.now_us(), request.tenant_id)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error

    async def GetLive(  # noqa: N802
        self, request: GetLiveRequest, context: "grpc.aio.ServicerContext[GetLiveRequest, GetLiveResponse]"
    ) -> GetLiveResponse:
        window = request.window.ToTimedelta() if request.HasField("window") else _LIVE_WINDOW
        if not timedelta(0) < window <= _LIVE_WINDOW_MAX:
            raise invalid("window must be above 0 and at most 1 hour.", param="window")
        try:
            answer = await queries.live(self._store, clock.now_us(), window)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        _, last = await self._frames.bounds()
        answer.ingest_lag = max(0, last - self._ingest.position)
        return answer

    async def Audit(  # noqa: N802
        self, request: AuditRequest, context: "grpc.aio.ServicerContext[AuditRequest, AuditResponse]"
    ) -> AsyncIterator[AuditResponse]:
        start, end = _range(request)
        timeout = request.timeout.ToTimedelta() if request.HasField("timeout") else _AUDIT_TIMEOUT
        audit = Audit(
            AuditRange(start, end, timeout.total_seconds()),
            self._frames,
            self._store,
            self._ingest,
            self._prices.book,
            self._is_erased,
        )
        try:
            async with aclosing(audit.run()) as events:
                async for event in events:
                    yield event
        except (StreamApiError, InferBusError) as error:
            raise error if isinstance(error, InferBusError) else _bus_error(error) from error


def _bus_error(error: StreamApiError) -> InferBusError:
    return unavailable(
        "bus_unavailable", "The message bus refused; retry.", retry_after=RETRY_AFTER, diagnostic=repr(error)
    )


def _range(request: GetUsageRequest | AuditRequest) -> tuple[int | None, int | None]:
    """[start, end) in Unix microseconds; None where absent."""
    start = _unix_us(request.start_time) if request.HasField("start_time") else None
    end = _unix_us(request.end_time) if request.HasField("end_time") else None
    if start is not None and end is not None and start >= end:
        raise invalid("end_time must be after start_time.", param="end_time")
    return start, end


def _unix_us(stamp: Timestamp) -> int:
    return clock.unix_us(stamp)

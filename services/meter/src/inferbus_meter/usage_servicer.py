"""The meter's gRPC API about usage and costs. Who may ask what is the edge's business."""

from collections.abc import AsyncIterator, Callable

import grpc
from inferbus.meter.v1 import usage_pb2_grpc
from inferbus.meter.v1.usage_pb2 import (
    Dimension,
    ExportUsageRequest,
    ExportUsageResponse,
    QueryCostsRequest,
    QueryCostsResponse,
    QueryMarginRequest,
    QueryMarginResponse,
    QueryUsageRequest,
    QueryUsageResponse,
)
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter import usage
from inferbus_meter.clickhouse import STORE_ERRORS, Store, refusal
from inferbus_meter.core.margin import OperatingPrices
from inferbus_meter.core.usage import EXPORT_FORMATS, Question

SERVICE_NAME = "inferbus.meter.v1.UsageService"


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, store: Store, files: Store, book: Callable[[], PriceBook], prices: OperatingPrices) -> None:
        """``store``: as a user who may read: what tenants ask must not stand before what is to be stored. ``files``:
        for exports, which take as long as they take. ``book``: the prices of now; ``prices``: what serving costs."""
        self._store = store
        self._files = files
        self._book = book
        self._prices = prices

    async def QueryUsage(  # noqa: N802 - gRPC's name
        self, request: QueryUsageRequest, context: "grpc.aio.ServicerContext[QueryUsageRequest, QueryUsageResponse]"
    ) -> QueryUsageResponse:
        try:
            return await usage.usage(self._store, _question(request))
        except STORE_ERRORS as error:
            raise refusal(error) from error

    async def QueryCosts(  # noqa: N802
        self, request: QueryCostsRequest, context: "grpc.aio.ServicerContext[QueryCostsRequest, QueryCostsResponse]"
    ) -> QueryCostsResponse:
        asked = _question(request)
        try:
            if request.by_line_item:
                return await usage.costs_by_line_item(self._store, asked, self._book())
            return await usage.costs(self._store, asked)
        except STORE_ERRORS as error:
            raise refusal(error) from error

    async def ExportUsage(  # noqa: N802
        self, request: ExportUsageRequest, context: "grpc.aio.ServicerContext[ExportUsageRequest, ExportUsageResponse]"
    ) -> AsyncIterator[ExportUsageResponse]:
        if request.format not in EXPORT_FORMATS:
            raise invalid("format must be set.", param="format")
        start, end = _range(request)
        asked = Question(start, end, request.bucket_width, (), request.filter)
        try:
            async for part in usage.export(self._files, asked, EXPORT_FORMATS[request.format]):
                yield ExportUsageResponse(data=part)
        except STORE_ERRORS as error:
            raise refusal(error) from error

    async def QueryMargin(  # noqa: N802
        self, request: QueryMarginRequest, context: "grpc.aio.ServicerContext[QueryMarginRequest, QueryMarginResponse]"
    ) -> QueryMarginResponse:
        start, end = _range(request)
        try:
            return await usage.margin(self._store, start, end, self._prices)
        except STORE_ERRORS as error:
            raise refusal(error) from error


def _question(request: QueryUsageRequest | QueryCostsRequest) -> Question:
    dimensions = tuple(dict.fromkeys(request.group_by))
    if Dimension.DIMENSION_UNSPECIFIED in dimensions:
        raise invalid("group_by names no dimension.", param="group_by")
    start, end = _range(request)
    return Question(start, end, request.bucket_width, dimensions, request.filter)


def _range(
    request: QueryUsageRequest | QueryCostsRequest | ExportUsageRequest | QueryMarginRequest,
) -> tuple[int, int]:
    """[start, end) in Unix microseconds."""
    start = clock.unix_us(request.start_time) if request.HasField("start_time") else 0
    end = clock.unix_us(request.end_time) if request.HasField("end_time") else clock.now_us()
    if start >= end:
        raise invalid("end_time must be after start_time.", param="end_time")
    return start, end

"""The meter's gRPC API about single requests. Who may ask what is the edge's business."""

import re

import grpc
from inferbus.meter.v1 import requests_pb2_grpc
from inferbus.meter.v1.requests_pb2 import (
    GetTimelineRequest,
    GetTimelineResponse,
    ListRequestsRequest,
    ListRequestsResponse,
    RequestView,
)
from inferbus_contracts.ids import parse_uuid
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter import timeline
from inferbus_meter.clickhouse import STORE_ERRORS, Store, refusal
from inferbus_meter.core.request_list import DEFAULT_PAGE, MOST_OF_A_PAGE, Listing, order_of, place_of

SERVICE_NAME = "inferbus.meter.v1.RequestService"
_DAY_US = 86_400_000_000
# x-request-id, or the id of an answer: chatcmpl-..., resp_...
_ID = re.compile(r"(?:[a-z]+[-_])?([0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12})", re.IGNORECASE)


class RequestsServicer(requests_pb2_grpc.RequestServiceServicer):
    """``store``: as a user who may read: what tenants ask must not stand before what is to be stored."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListRequests(  # noqa: N802 - gRPC's name
        self,
        request: ListRequestsRequest,
        context: "grpc.aio.ServicerContext[ListRequestsRequest, ListRequestsResponse]",
    ) -> ListRequestsResponse:
        asked = _listing(request)
        try:
            return await timeline.requests(self._store, asked, request.view)
        except STORE_ERRORS as error:
            raise refusal(error) from error

    async def GetTimeline(  # noqa: N802
        self, request: GetTimelineRequest, context: "grpc.aio.ServicerContext[GetTimelineRequest, GetTimelineResponse]"
    ) -> GetTimelineResponse:
        named = _ID.fullmatch(request.request_id.strip())
        if named is None:
            raise invalid("A request's id is what x-request-id says, or the id of the answer.", param="request_id")
        try:
            return await timeline.timeline(self._store, parse_uuid(named[1]), request.tenant_id, request.view)
        except STORE_ERRORS as error:
            raise refusal(error) from error


def _listing(request: ListRequestsRequest) -> Listing:
    end = clock.unix_us(request.end_time) if request.HasField("end_time") else clock.now_us()
    start = clock.unix_us(request.start_time) if request.HasField("start_time") else max(0, end - _DAY_US)
    if start >= end:
        raise invalid("end_time must be after start_time.", param="end_time")
    if request.page_size > MOST_OF_A_PAGE:
        raise invalid(f"page_size is 1 to {MOST_OF_A_PAGE}.", param="page_size")
    if request.filter.worker and request.view != RequestView.REQUEST_VIEW_OPERATOR:
        raise invalid("worker is for the operator.", param="worker")
    order = order_of(request.order)
    after = place_of(request.page_token, order, request.ascending) if request.page_token else None
    return Listing(start, end, request.filter, order, request.ascending, request.page_size or DEFAULT_PAGE, after)

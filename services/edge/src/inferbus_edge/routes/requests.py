"""/inferbus/v1/requests for the operator and /v1/organization/requests for a tenant: single requests, as the meter has
them. The operator is told, too, what the scheduler still knows of how one was placed."""

import re
from datetime import timedelta
from typing import Any

import grpc
import orjson
from aiohttp import web
from inferbus.meter.v1.requests_pb2 import (
    GetTimelineRequest,
    GetTimelineResponse,
    ListRequestsRequest,
    RequestState,
    RequestSummary,
    RequestView,
)
from inferbus.meter.v1.requests_pb2_grpc import RequestServiceStub
from inferbus.scheduler.v1.scheduler_pb2 import ExplainRequest
from inferbus_contracts.ids import parse_uuid, unix_ms_of, uuid_text
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.auth import ADMIN
from inferbus_edge.core.request_query import list_of, put_columns, without_columns
from inferbus_edge.directory import Directory
from inferbus_edge.routes.messages import as_dict, parse
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.routes.organization_door import Door, query_of
from inferbus_edge.routes.relay import ask, configured, named, relay
from inferbus_edge.schedulers import Schedulers
from inferbus_edge.server import Call, Routes, json_response

OPERATOR = "/inferbus/v1"
# What it is asked for is worth no waiting.
_PLACEMENT_SECONDS = 1.0
_DIGITS = re.compile(r"(?:[a-z]+[-_])?([0-9a-f-]{32,36})", re.IGNORECASE)


class RequestRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(
        self,
        directory: Directory,
        meter: grpc.aio.Channel | None,
        schedulers: Schedulers,
        body_timeout: timedelta,
    ) -> None:
        self._auth = directory.auth
        self._door = Door(directory, body_timeout)
        self._meter = None if meter is None else RequestServiceStub(meter)
        self._schedulers = schedulers

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{OPERATOR}/requests", self.list)
        routes.add("GET", f"{OPERATOR}/requests/{{request_id}}", self.timeline)
        routes.add("GET", f"{ORGANIZATION}/requests", self.own_list)
        routes.add("GET", f"{ORGANIZATION}/requests/{{request_id}}", self.own_timeline)

    async def list(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        asked = list_of(query_of(call), operator=True) | {"view": "REQUEST_VIEW_OPERATOR"}
        return await relay(call, self._stub().ListRequests, parse(asked, ListRequestsRequest()))

    async def own_list(self, call: Call) -> web.StreamResponse:
        tenant_id = self._door.enter(call).tenant_id
        asked = list_of(query_of(call), operator=False) | {"view": "REQUEST_VIEW_TENANT"}
        request = parse(asked, ListRequestsRequest())
        request.filter.tenant_id = tenant_id
        return await relay(call, self._stub().ListRequests, request)

    async def timeline(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        named(call, {})
        request = GetTimelineRequest(request_id=call.path["request_id"], view=RequestView.REQUEST_VIEW_OPERATOR)
        try:
            found = await ask(self._stub().GetTimeline, request)
        except InferBusError as error:
            placement = await self._placement(request.request_id) if error.reason == "request_not_found" else None
            if placement is None:
                raise
            return _answer(call, _unstored(request.request_id), placement)
        return _answer(call, found, await self._placement(found.request.request_id))

    async def own_timeline(self, call: Call) -> web.StreamResponse:
        tenant_id = self._door.enter(call).tenant_id
        named(call, {})
        request = GetTimelineRequest(
            request_id=call.path["request_id"], tenant_id=tenant_id, view=RequestView.REQUEST_VIEW_TENANT
        )
        return _answer(call, await ask(self._stub().GetTimeline, request), None)

    async def _placement(self, request_id: str) -> dict[str, Any] | None:
        """What a scheduler decided lately, and of which workers it chose; None if none knows, or they are away."""
        asked = ExplainRequest(request_id=_id_of(request_id))
        found = await self._schedulers.explain(asked, _PLACEMENT_SECONDS)
        return None if found is None else as_dict(found)

    def _stub(self) -> Any:
        return configured(self._meter, "meter")


def _answer(call: Call, timeline: GetTimelineResponse, placement: dict[str, Any] | None) -> web.Response:
    shown = put_columns(as_dict(without_columns(timeline)), timeline)
    if placement is not None:
        shown["placement"] = placement
    return json_response(orjson.dumps(shown), call.request_id)


def _id_of(text: str) -> bytes:
    """Of what the meter took for an id."""
    digits = _DIGITS.fullmatch(text.strip())
    return parse_uuid(digits[1] if digits else text)


def _unstored(request_id: str) -> GetTimelineResponse:
    """Of a request that the scheduler knows and the store does not yet."""
    raw = _id_of(request_id)
    summary = RequestSummary(
        request_id=uuid_text(raw), state=RequestState.REQUEST_STATE_UNSTORED,
        accepted_time=clock.timestamp(unix_ms_of(raw) * 1000),
    )  # fmt: skip
    return GetTimelineResponse(request=summary)

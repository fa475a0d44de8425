"""/inferbus/v1/analytics for the operator, over all tenants; /v1/organization/analytics for a tenant, of its own. In
protobuf's JSON."""

from datetime import timedelta
from typing import Any

import grpc
from aiohttp import web
from inferbus.meter.v1.analytics_pb2 import ListAnalyticsValuesRequest, QueryAnalyticsRequest
from inferbus.meter.v1.analytics_pb2_grpc import AnalyticsServiceStub

from inferbus_edge.auth import ADMIN
from inferbus_edge.core.analytics_query import OPERATOR, TENANT, asked_of, values_of
from inferbus_edge.directory import Directory
from inferbus_edge.routes.messages import answer, parse
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.routes.organization_door import Door, query_of
from inferbus_edge.routes.relay import ask, configured, relay
from inferbus_edge.server import Call, Routes

PATH = "/analytics"
_OPERATOR = "/inferbus/v1"


class AnalyticsRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(self, directory: Directory, meter: grpc.aio.Channel | None, body_timeout: timedelta) -> None:
        self._auth = directory.auth
        self._door = Door(directory, body_timeout)
        self._meter = None if meter is None else AnalyticsServiceStub(meter)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{_OPERATOR}{PATH}", self.query)
        routes.add("GET", f"{_OPERATOR}{PATH}/values", self.values)
        routes.add("GET", f"{ORGANIZATION}{PATH}", self.own)
        routes.add("GET", f"{ORGANIZATION}{PATH}/values", self.own_values)

    async def query(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        asked = asked_of(OPERATOR, query_of(call))
        return await relay(call, self._stub().QueryAnalytics, parse(asked, QueryAnalyticsRequest()))

    async def values(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        asked = values_of(query_of(call))
        return await relay(call, self._stub().ListAnalyticsValues, parse(asked, ListAnalyticsValuesRequest()))

    async def own(self, call: Call) -> web.StreamResponse:
        asked = asked_of(TENANT, query_of(call), self._door.enter(call).tenant_id)
        return await relay(call, self._stub().QueryAnalytics, parse(asked, QueryAnalyticsRequest()))

    async def own_values(self, call: Call) -> web.StreamResponse:
        """Without the workers, which are the operator's."""
        asked = values_of(query_of(call), self._door.enter(call).tenant_id)
        found = await ask(self._stub().ListAnalyticsValues, parse(asked, ListAnalyticsValuesRequest()))
        found.ClearField("tenant_ids")
        found.ClearField("workers")
        return answer(call, found)

    def _stub(self) -> Any:
        return configured(self._meter, "meter")

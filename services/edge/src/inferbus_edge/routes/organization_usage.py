"""/v1/organization/usage/... and /costs, in OpenAI's shape: a tenant's own, asked of the meter."""

from datetime import timedelta
from functools import partial
from typing import Any

import grpc
from aiohttp import web
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.usage_pb2 import QueryCostsRequest, QueryUsageRequest
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceStub
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.organization_results import Results, cost_results, usage_results
from inferbus_edge.core.organization_usage import KINDS, Asked, Kind, costs_asked, page_object, usage_asked
from inferbus_edge.directory import Directory
from inferbus_edge.routes.organization_door import PREFIX, Door, query_of, reply
from inferbus_edge.routes.relay import ask, configured
from inferbus_edge.server import Call, Routes


class OrganizationUsageRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(self, directory: Directory, meter: grpc.aio.Channel | None, body_timeout: timedelta) -> None:
        self._directory = directory
        self._door = Door(directory, body_timeout)
        self._meter = None if meter is None else UsageServiceStub(meter)

    def add_to(self, routes: Routes) -> None:
        for kind in KINDS:
            routes.add("GET", f"{PREFIX}/usage/{kind.name}", partial(self.usage, kind))
        routes.add("GET", f"{PREFIX}/costs", self.costs)

    async def usage(self, kind: Kind, call: Call) -> web.StreamResponse:
        tenant_id = self._tenant(call)
        asked = usage_asked(kind, query_of(call), clock.now_us() // 1_000_000)
        owners = self._directory.keys.owners(tenant_id)
        only = asked.limited_to(tenant_id, owners)
        results: Results = {}
        if kind.operations and only is not None and asked.page.buckets:
            request = QueryUsageRequest(bucket_width=asked.page.width, group_by=asked.dimensions, filter=only)
            _put_range(request, asked)
            answer = await ask(self._stub().QueryUsage, request)
            results = usage_results(kind, asked, answer.rows, owners)
        return reply(call, page_object(asked.page, results))

    async def costs(self, call: Call) -> web.StreamResponse:
        tenant_id = self._tenant(call)
        asked = costs_asked(query_of(call), clock.now_us() // 1_000_000)
        owners = self._directory.keys.owners(tenant_id)
        only = asked.limited_to(tenant_id, owners)
        results: Results = {}
        if only is not None and asked.page.buckets:
            request = QueryCostsRequest(
                bucket_width=asked.page.width, group_by=asked.dimensions, filter=only,
                by_line_item="line_item" in asked.groups or bool(asked.line_items),
            )  # fmt: skip
            _put_range(request, asked)
            answer = await ask(self._stub().QueryCosts, request)
            results = cost_results(asked, answer.rows, owners)
        return reply(call, page_object(asked.page, results))

    def _tenant(self, call: Call) -> str:
        """Of whom: the key's own tenant, the one that the header names, or for an operator the one in 'tenant_id'."""
        acting = self._door.enter(call)
        named = call.http.query.get("tenant_id", "")
        if not named or named == acting.tenant_id:
            return acting.tenant_id
        if not acting.operator:
            message = "'tenant_id' must name the organization of this API key; leave it out."
            raise InferBusError(
                ErrorClass.ERROR_CLASS_UNAUTHENTICATED, "mismatched_organization", message, param="tenant_id"
            )
        return self._directory.tenants.get(named).tenant_id

    def _stub(self) -> Any:
        return configured(self._meter, "meter")


def _put_range(request: QueryUsageRequest | QueryCostsRequest, asked: Asked) -> None:
    """No more than the page shows."""
    request.start_time.seconds = asked.page.buckets[0][0]
    request.end_time.seconds = asked.page.buckets[-1][1]

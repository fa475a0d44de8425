"""/inferbus/v1/usage/..., /costs and /margin: reports for the operator, over all tenants, in protobuf's JSON or as
files."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from aiohttp import web
from inferbus.meter.v1.usage_pb2 import (
    ExportUsageRequest,
    ExportUsageResponse,
    QueryCostsRequest,
    QueryMarginRequest,
    QueryUsageRequest,
)
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceStub
from inferbus_runtime.rpc import error_of

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.organization_bodies import Query, boolean, choice
from inferbus_edge.core.usage_query import FORMATS, dimensions_of, range_of, report_of
from inferbus_edge.routes.messages import parse
from inferbus_edge.routes.relay import configured, relay
from inferbus_edge.server import Call, Routes, own_headers

PREFIX = "/inferbus/v1"
_CALL_SECONDS = 60.0
_EXPORT_SECONDS = 3600.0
_CONTENT_TYPES = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet", "jsonl": "application/x-ndjson"}


class UsageRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(self, auth: Auth, meter: grpc.aio.Channel | None) -> None:
        self._auth = auth
        self._meter = None if meter is None else UsageServiceStub(meter)

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{PREFIX}/usage/query", self.usage)
        routes.add("GET", f"{PREFIX}/usage/export", self.export)
        routes.add("GET", f"{PREFIX}/costs", self.costs)
        routes.add("GET", f"{PREFIX}/margin", self.margin)

    async def usage(self, call: Call) -> web.StreamResponse:
        query = self._query(call)
        asked = report_of(query, "by") | {"group_by": dimensions_of(query)}
        return await relay(call, self._stub().QueryUsage, parse(asked, QueryUsageRequest()), seconds=_CALL_SECONDS)

    async def costs(self, call: Call) -> web.StreamResponse:
        query = self._query(call)
        asked = report_of(query, "by", "line_items") | {"group_by": dimensions_of(query)}
        asked["by_line_item"] = boolean({name: value for name, value in query if value}, "line_items")
        return await relay(call, self._stub().QueryCosts, parse(asked, QueryCostsRequest()), seconds=_CALL_SECONDS)

    async def margin(self, call: Call) -> web.StreamResponse:
        asked = range_of(self._query(call))
        return await relay(call, self._stub().QueryMargin, parse(asked, QueryMarginRequest()), seconds=_CALL_SECONDS)

    async def export(self, call: Call) -> web.StreamResponse:
        """A file as it comes. If it fails half-way the connection breaks: what came is never taken for whole."""
        query = self._query(call)
        name = choice({key: value for key, value in query if value}, "format", tuple(FORMATS))
        asked = report_of(query, "format") | {"format": f"EXPORT_FORMAT_{FORMATS[name]}"}
        parts = self._stub().ExportUsage(parse(asked, ExportUsageRequest()), timeout=_EXPORT_SECONDS)
        return await _file(call, parts, name)

    def _query(self, call: Call) -> Query:
        self._auth.require(call.http.headers, ADMIN)
        return list(call.http.query.items())

    def _stub(self) -> Any:
        return configured(self._meter, "meter")


async def _file(call: Call, parts: AsyncIterator[ExportUsageResponse], name: str) -> web.StreamResponse:
    headers = {
        **own_headers(call.request_id), "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="usage.{name}"',
    }  # fmt: skip
    response = web.StreamResponse(headers=headers)
    response.content_type = _CONTENT_TYPES[name]
    try:
        async for part in parts:
            if not response.prepared:
                await response.prepare(call.http)
            await response.write(part.data)
    except grpc.aio.AioRpcError as error:
        if not response.prepared:
            raise error_of(error) from error
        if call.http.transport is not None:
            call.http.transport.abort()
        return response
    finally:
        parts.cancel()  # type: ignore[attr-defined]
    if not response.prepared:
        await response.prepare(call.http)
    await response.write_eof()
    return response

"""/inferbus/v1/sizing: which GPUs a model needs, how fast it will be and what that costs. Worked out here: it asks
nobody, and knows nothing of any tenant."""

import asyncio
from datetime import timedelta

import orjson
from aiohttp import web
from inferbus_dialect.errors import of_status
from inferbus_sizing.objects import answer_of, catalogue

from inferbus_edge.auth import TENANT_ADMIN, Auth
from inferbus_edge.core.sizing_request import MAX_BYTES, question
from inferbus_edge.reports import Reports
from inferbus_edge.routes.relay import named
from inferbus_edge.server import Call, Routes, json_response, read_body

PATH = "/inferbus/v1/sizing"


class SizingRoutes:
    """For the keys of operators and of tenants' administrators. ``bounds``: a comparison takes up to a tenth of a
    second of a core, so that each tenant has as many at once as it has reports."""

    def __init__(self, auth: Auth, bounds: Reports, body_timeout: timedelta) -> None:
        self._auth = auth
        self._bounds = bounds
        self._body_timeout = body_timeout
        self._catalogue = orjson.dumps(catalogue())

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PATH, self.known)
        routes.add("POST", PATH, self._bounds.always(self.size, TENANT_ADMIN))

    async def known(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, TENANT_ADMIN)
        named(call, {})
        return json_response(self._catalogue, call.request_id)

    async def size(self, call: Call) -> web.StreamResponse:
        named(call, {})
        body = await read_body(call, self._body_timeout)
        if len(body) > MAX_BYTES:
            raise of_status(413)
        # Not on the loop: it would hold up all streams.
        answer = await asyncio.to_thread(_answer, body)
        return json_response(answer, call.request_id)


def _answer(body: bytes) -> bytes:
    """Raises InferBusError INVALID_ARGUMENT."""
    return orjson.dumps(answer_of(question(body)))

"""/inferbus/v1/prices, /rate and /rerate: the price book, with an admin key. The meter owns it; who changed what is
told to AUDIT here, before it is changed."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import grpc
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.meter.v1.prices_pb2 import (
    CreatePriceRequest,
    DeletePriceRequest,
    GetPriceRequest,
    GetRateRequest,
    ListPricesRequest,
    RerateRequest,
)
from inferbus.meter.v1.prices_pb2_grpc import PriceServiceStub
from inferbus_bus.publish import Publisher
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.routes.announce import announce
from inferbus_edge.routes.messages import answer, as_dict, body_object, only, parse
from inferbus_edge.routes.relay import ask, configured, named, ndjson, relay
from inferbus_edge.server import Call, Routes

PREFIX = "/inferbus/v1"
_RATE = {
    "tenant": "tenant_id",
    "project": "project_id",
    "model": "model",
    "revision": "revision",
    "operation": "operation",
    "priority_class": "priority_class",
    "time": "accepted_time",
}
_RERATE = {
    "start": "start_time",
    "end": "end_time",
    "tenant": "tenant_id",
    "apply": "apply",
    "reason": "reason",
}
_RERATE_SECONDS = 3600.0
_SPOKEN = {"operation": "OPERATION_", "priority_class": "PRIORITY_CLASS_"}


class PriceRoutes:
    """``meter``: a channel to it, None if the operator named none. ``publisher`` must have been started."""

    def __init__(
        self, auth: Auth, meter: grpc.aio.Channel | None, publisher: Publisher, body_timeout: timedelta
    ) -> None:
        self._auth = auth
        self._meter = None if meter is None else PriceServiceStub(meter)
        self._publisher = publisher
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{PREFIX}/prices", self.list)
        routes.add("POST", f"{PREFIX}/prices", self.create)
        routes.add("GET", f"{PREFIX}/prices/{{rate_version}}", self.get)
        routes.add("DELETE", f"{PREFIX}/prices/{{rate_version}}", self.delete)
        routes.add("GET", f"{PREFIX}/rate", self.rate)
        routes.add("POST", f"{PREFIX}/rerate", self.rerate)

    async def list(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"tenant": "tenant_id"})
        return await relay(call, self._stub().ListPrices, parse(query, ListPricesRequest()))

    async def create(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        request = parse({"record": await body_object(call, self._body_timeout)}, CreatePriceRequest())
        stub = self._stub()
        request.validate_only = True
        checked = (await ask(stub.CreatePrice, request)).price.record
        await self._announce(actor, "price.created", checked.rate_version, as_dict(checked))
        request.validate_only = False
        return await relay(call, stub.CreatePrice, request, 201)

    async def get(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        return await relay(call, self._stub().GetPrice, GetPriceRequest(rate_version=call.path["rate_version"]))

    async def delete(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"force": "force", "dry_run": "dry_run"})
        for name, said in query.items():
            if said not in ("true", "false"):
                raise invalid(f"'{name}' is true or false.", param=name)
        version, force = call.path["rate_version"], query.get("force") == "true"
        request = DeletePriceRequest(rate_version=version, force=force, validate_only=True)
        stub = self._stub()
        checked = await ask(stub.DeletePrice, request)
        if query.get("dry_run") == "true":
            return answer(call, checked)
        await self._announce(actor, "price.deleted", version, {"force": force, "charges": checked.charges})
        request.validate_only = False
        return answer(call, await ask(stub.DeletePrice, request))

    async def rate(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, _RATE)
        for name, prefix in _SPOKEN.items():
            if name in query:
                query[name] = prefix + query[name].upper()
        return await relay(call, self._stub().GetRate, parse(query, GetRateRequest()))

    async def rerate(self, call: Call) -> web.StreamResponse:
        """NDJSON, one line an event as it comes; a failure half-way is a last line with ``error``."""
        actor = self._auth.require(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, tuple(_RERATE))
        asked = {_RERATE[name]: value for name, value in body.items() if value is not None}
        request = parse(asked, RerateRequest())
        stub = self._stub()
        if request.apply:
            await self._announce(actor, "charges.rerated", request.tenant_id or "all tenants", as_dict(request))
        return await ndjson(call, stub.Rerate(request, timeout=_RERATE_SECONDS), "a re-rating")

    async def _announce(self, actor: KeyRecord, action: str, target: str, details: Mapping[str, Any]) -> None:
        """In the operator's own log, whosever price it is. Raises InferBusError UNAVAILABLE."""
        await announce(self._publisher, Change(action, actor.key_id, actor.tenant_id, target, details=details))

    def _stub(self) -> Any:
        return configured(self._meter, "meter")

"""/inferbus/v1/...: what an operator's tools need, with an admin key. Keys and tenants are handled next door
(tenants.py); usage, the live view and the audit are the meter's, the fleet is the schedulers': their gRPC answers are
passed on in protobuf's JSON."""

from datetime import timedelta
from typing import Any

import grpc
import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.meter.v1.meter_pb2 import AuditRequest, GetLiveRequest, GetUsageRequest
from inferbus.meter.v1.meter_pb2_grpc import MeterServiceStub
from inferbus.scheduler.v1.scheduler_pb2 import DrainWorkersRequest
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_bus.publish import Publisher
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.keys import KeyDesk
from inferbus_edge.routes.announce import announce
from inferbus_edge.routes.messages import answer, as_dict, body_object, only, parse
from inferbus_edge.routes.relay import configured, named, ndjson, relay
from inferbus_edge.routes.tenants import KeyRoutes
from inferbus_edge.schedulers import Schedulers
from inferbus_edge.server import Call, Routes, json_response

PREFIX = "/inferbus/v1"
_AUDIT_SECONDS = 3600.0


class AdminRoutes:
    """``meter``: a channel to it, None if the operator named none. ``publisher`` must have been started."""

    def __init__(
        self,
        *,
        auth: Auth,
        desk: KeyDesk,
        schedulers: Schedulers,
        meter: grpc.aio.Channel | None,
        publisher: Publisher,
        body_timeout: timedelta,
    ) -> None:
        self._auth = auth
        self._publisher = publisher
        self._keys = KeyRoutes(auth, desk, body_timeout)
        self._schedulers = schedulers
        self._meter = None if meter is None else MeterServiceStub(meter)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes, reports: Routes) -> None:
        """``reports``: the same routes, bounded."""
        self._keys.add_to(routes)
        reports.add("GET", f"{PREFIX}/usage", self.usage)
        routes.add("GET", f"{PREFIX}/live", self.live)
        routes.add("GET", f"{PREFIX}/fleet", self.fleet)
        routes.add("POST", f"{PREFIX}/fleet/drain", self.drain)
        routes.add("POST", f"{PREFIX}/audit", self.audit)

    async def usage(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(call, {"start": "start_time", "end": "end_time", "tenant": "tenant_id"})
        return await relay(call, configured(self._meter, "meter").GetUsage, parse(query, GetUsageRequest()))

    async def live(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(call, {"window": "window"})
        if "window" in query:
            query["window"] = duration(query["window"], "window")
        return await relay(call, configured(self._meter, "meter").GetLive, parse(query, GetLiveRequest()))

    async def fleet(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        named(call, {})
        picture = await self._schedulers.fleet()
        shown = as_dict(picture) | as_dict(await self._schedulers.members())
        return json_response(orjson.dumps(shown), call.request_id)

    async def drain(self, call: Call) -> web.StreamResponse:
        """Workers finish and leave; what still runs after the grace goes on at others. AUDIT is told that it was asked,
        before it is known whether there is such a worker: of several some may drain although the answer is an error."""
        actor = self._admin(call)
        body = await body_object(call, self._body_timeout)
        only(body, ("worker", "node", "grace"))
        asked = {name: value for name, value in body.items() if value is not None}
        if ("worker" in asked) == ("node" in asked):
            raise invalid("Name a 'worker' or a 'node'.", param="worker", reason="missing_required_parameter")
        if "grace" in asked:
            asked["grace"] = duration(asked["grace"], "grace")
        request = parse(asked, DrainWorkersRequest())
        if not (request.worker or request.node):
            raise invalid("A worker and a node have a name.", param=next(iter(asked)))
        details = as_dict(request)
        target = request.worker or request.node
        await announce(
            self._publisher, Change("fleet.drain_requested", actor.key_id, actor.tenant_id, target, details=details)
        )
        drained = await self._schedulers.ask(lambda channel: SchedulerServiceStub(channel).DrainWorkers, request)
        return answer(call, drained)

    async def audit(self, call: Call) -> web.StreamResponse:
        """NDJSON, one line an event as it comes; a failure half-way is a last line with ``error``."""
        self._admin(call)
        body = await body_object(call, self._body_timeout)
        names = {"start": "start_time", "end": "end_time", "timeout": "timeout"}
        asked = {names.get(name, name): value for name, value in body.items() if value is not None}
        if "timeout" in asked:
            asked["timeout"] = duration(asked["timeout"], "timeout")
        request = parse(asked, AuditRequest())
        events = configured(self._meter, "meter").Audit(request, timeout=_AUDIT_SECONDS)
        return await ndjson(call, events, "an audit")

    def _admin(self, call: Call) -> KeyRecord:
        return self._auth.require(call.http.headers, ADMIN)


def duration(value: Any, param: str) -> str:
    """Seconds as a number, or protobuf's "1.5s"."""
    text = str(value).removesuffix("s")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise invalid(f"'{param}' is a number of seconds, such as 60 or 1.5.", param=param)
    return f"{seconds:.6f}s"

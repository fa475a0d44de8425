"""/inferbus/v1/...: what an operator's tools need, with an admin key. Keys and tenants are handled next door
(tenants.py); usage, the live view and the audit are the meter's, the fleet is the scheduler's: their gRPC answers are
passed on in protobuf's JSON."""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import orjson
from aiohttp import web
from google.protobuf.message import Message
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.meter.v1.meter_pb2 import AuditRequest, GetLiveRequest, GetUsageRequest
from inferbus.meter.v1.meter_pb2_grpc import MeterServiceStub
from inferbus.scheduler.v1.scheduler_pb2 import WatchFleetRequest
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from inferbus_runtime.rpc import error_of

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.errors import error_body
from inferbus_edge.keys import KeyDesk
from inferbus_edge.routes.messages import answer, as_dict, body_object, parse
from inferbus_edge.routes.tenants import KeyRoutes
from inferbus_edge.server import Call, Routes, own_headers

log = logging.getLogger(__name__)

PREFIX = "/inferbus/v1"
_CALL_SECONDS = 30.0
_AUDIT_SECONDS = 3600.0
_RETRY_AFTER = timedelta(seconds=2)


class AdminRoutes:
    """``scheduler`` and ``meter``: channels to them, None if the operator named none."""

    def __init__(
        self,
        *,
        auth: Auth,
        desk: KeyDesk,
        scheduler: grpc.aio.Channel | None,
        meter: grpc.aio.Channel | None,
        body_timeout: timedelta,
    ) -> None:
        self._auth = auth
        self._keys = KeyRoutes(auth, desk, body_timeout)
        self._scheduler = None if scheduler is None else SchedulerServiceStub(scheduler)
        self._meter = None if meter is None else MeterServiceStub(meter)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        self._keys.add_to(routes)
        routes.add("GET", f"{PREFIX}/usage", self.usage)
        routes.add("GET", f"{PREFIX}/live", self.live)
        routes.add("GET", f"{PREFIX}/fleet", self.fleet)
        routes.add("POST", f"{PREFIX}/audit", self.audit)

    async def usage(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = _named(call, {"start": "start_time", "end": "end_time", "tenant": "tenant_id"})
        return await _relay(call, self._stub(self._meter, "meter").GetUsage, parse(query, GetUsageRequest()))

    async def live(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = _named(call, {"window": "window"})
        if "window" in query:
            query["window"] = _duration(query["window"], "window")
        return await _relay(call, self._stub(self._meter, "meter").GetLive, parse(query, GetLiveRequest()))

    async def fleet(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        watch = self._stub(self._scheduler, "scheduler").WatchFleet(WatchFleetRequest(), timeout=_CALL_SECONDS)
        try:
            async for first in watch:
                return answer(call, first)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            watch.cancel()
        raise unavailable("scheduler_unavailable", "The scheduler is restarting.", retry_after=_RETRY_AFTER)

    async def audit(self, call: Call) -> web.StreamResponse:
        """NDJSON, one line an event as it comes; a failure half-way is a last line with ``error``."""
        self._admin(call)
        body = await body_object(call, self._body_timeout)
        names = {"start": "start_time", "end": "end_time", "timeout": "timeout"}
        asked = {names.get(name, name): value for name, value in body.items() if value is not None}
        if "timeout" in asked:
            asked["timeout"] = _duration(asked["timeout"], "timeout")
        request = parse(asked, AuditRequest())
        events = self._stub(self._meter, "meter").Audit(request, timeout=_AUDIT_SECONDS)
        return await _ndjson(call, events)

    def _admin(self, call: Call) -> KeyRecord:
        return self._auth.require(call.http.headers, ADMIN)

    @staticmethod
    def _stub(stub: Any, service: str) -> Any:
        if stub is None:
            raise unavailable(
                f"{service}_unavailable", f"No {service} is configured at this edge.", retry_after=_RETRY_AFTER
            )
        return stub


def _named(call: Call, names: dict[str, str]) -> dict[str, Any]:
    """The query's parameters under the message's names. Raises InferBusError for one that is not in ``names``."""
    unknown = next((name for name in call.http.query if name not in names), None)
    if unknown is not None:
        raise invalid(f"Unknown parameter: '{unknown[:64]}'.", param=unknown[:64], reason="unknown_parameter")
    return {names[name]: value for name, value in call.http.query.items() if value}


def _duration(value: Any, param: str) -> str:
    """Seconds as a number, or protobuf's "1.5s"."""
    text = str(value).removesuffix("s")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise invalid(f"'{param}' is a number of seconds, such as 60 or 1.5.", param=param)
    return f"{seconds:.6f}s"


async def _relay(call: Call, method: Any, request: Message) -> web.Response:
    try:
        return answer(call, await method(request, timeout=_CALL_SECONDS))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def _ndjson(call: Call, events: AsyncIterator[Message]) -> web.StreamResponse:
    response = web.StreamResponse(headers=own_headers(call.request_id))
    response.content_type = "application/x-ndjson"
    try:
        async for event in events:
            if not response.prepared:
                await response.prepare(call.http)
            await response.write(orjson.dumps(as_dict(event)) + b"\n")
    except grpc.aio.AioRpcError as error:
        known: InferBusError = error_of(error)
        if not response.prepared:
            raise known from error
        log.warning("an audit ended early", extra={"reason": known.reason})
        await response.write(error_body(known) + b"\n")
    finally:
        events.cancel()  # type: ignore[attr-defined]
    if not response.prepared:
        await response.prepare(call.http)
    await response.write_eof()
    return response

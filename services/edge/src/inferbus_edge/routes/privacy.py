"""Erasures and captured text: /inferbus/v1/erasures and .../captures for the operator, /v1/organization/... for a
tenant, which sees and erases its own. The meter does it; who asked is told to the tenant's audit log before."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import grpc
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import CapturePolicy, KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.edge.v1.edge_pb2 import UpdateTenantResponse
from inferbus.meter.v1.captures_pb2 import GetCaptureRequest, ListCapturesRequest
from inferbus.meter.v1.captures_pb2_grpc import CaptureServiceStub
from inferbus.meter.v1.privacy_pb2 import EraseRequest, ListErasuresRequest
from inferbus.meter.v1.privacy_pb2_grpc import PrivacyServiceStub
from inferbus_bus.publish import Publisher
from inferbus_contracts.erasure import end_user_hash
from inferbus_dialect.labels import end_user_of
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.auth import ADMIN
from inferbus_edge.core.capture_policy import checked_policy
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import checked_id
from inferbus_edge.directory import Directory
from inferbus_edge.routes.admin import duration
from inferbus_edge.routes.announce import announce
from inferbus_edge.routes.messages import answer, body_object, only, parse
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.routes.organization_door import Acting, Door, reply
from inferbus_edge.routes.relay import ask, configured, named, relay
from inferbus_edge.server import Call, Routes

OPERATOR = "/inferbus/v1"
_ERASE = ("end_user", "whole_tenant", "dry_run", "timeout")
_POLICY = ("sampling_rate", "project_ids", "self_service")
_LIST = {
    "project": "project_id", "start": "start_time", "end": "end_time", "page_size": "page_size", "page": "page_token"
}  # fmt: skip
# The meter answers when it is done, or after the time that it is asked to wait.
_ERASE_SECONDS = 640.0


class PrivacyRoutes:
    """``meter``: a channel to it, None if the operator named none. ``publisher`` must have been started."""

    def __init__(
        self, directory: Directory, meter: grpc.aio.Channel | None, publisher: Publisher, body_timeout: timedelta
    ) -> None:
        self._auth = directory.auth
        self._tenants = directory.tenants
        self._door = Door(directory, body_timeout)
        self._privacy = None if meter is None else PrivacyServiceStub(meter)
        self._captures = None if meter is None else CaptureServiceStub(meter)
        self._publisher = publisher
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        policy = f"{OPERATOR}/tenants/{{tenant_id}}/capture"
        routes.add("GET", f"{OPERATOR}/erasures", self.erasures)
        routes.add("POST", f"{OPERATOR}/erasures", self.erase)
        routes.add("GET", f"{OPERATOR}/captures", self.captures)
        routes.add("GET", f"{OPERATOR}/captures/{{request_id}}", self.capture)
        routes.add("PUT", policy, self.set_policy)
        routes.add("DELETE", policy, self.end_policy)
        routes.add("GET", f"{ORGANIZATION}/erasures", self.own_erasures)
        routes.add("POST", f"{ORGANIZATION}/erasures", self.own_erase)
        routes.add("GET", f"{ORGANIZATION}/captures", self.own_captures)
        routes.add("GET", f"{ORGANIZATION}/captures/{{request_id}}", self.own_capture)
        routes.add("GET", f"{ORGANIZATION}/capture_policy", self.own_policy)
        routes.add("PUT", f"{ORGANIZATION}/capture_policy", self.set_own_policy)
        routes.add("DELETE", f"{ORGANIZATION}/capture_policy", self.end_own_policy)

    # --- erasures ---

    async def erasures(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"tenant": "tenant_id"})
        stub = configured(self._privacy, "meter")
        return await relay(call, stub.ListErasures, parse(query, ListErasuresRequest()))

    async def own_erasures(self, call: Call) -> web.StreamResponse:
        request = ListErasuresRequest(tenant_id=self._door.enter(call).tenant_id)
        return await relay(call, configured(self._privacy, "meter").ListErasures, request)

    async def erase(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, ("tenant_id", *_ERASE))
        tenant_id = checked_id(str(body.pop("tenant_id", "")), "tenant_id")
        return await self._erase(call, body, tenant_id, actor)

    async def own_erase(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        body = await body_object(call, self._body_timeout)
        only(body, _ERASE)
        return await self._erase(call, body, acting.tenant_id, acting.key)

    async def _erase(self, call: Call, body: Mapping[str, Any], tenant_id: str, actor: KeyRecord) -> web.StreamResponse:
        asked = {name: value for name, value in body.items() if value is not None}
        if "timeout" in asked:
            asked["timeout"] = duration(asked["timeout"], "timeout")
        request = parse(asked, EraseRequest())
        request.tenant_id, request.actor_key_id = tenant_id, actor.key_id
        request.end_user = end_user_of(request.end_user)
        stub = configured(self._privacy, "meter")
        if not request.dry_run:
            # Refused before it is announced, if it would be.
            await self._check(stub, request)
            whom = end_user_hash(tenant_id, request.end_user).hex() if request.end_user else "whole tenant"
            await self._announce(actor, "erasure.requested", tenant_id, whom)
        return await relay(call, stub.Erase, request, 200 if request.dry_run else 201, _ERASE_SECONDS)

    async def _check(self, stub: Any, request: EraseRequest) -> None:
        checked = EraseRequest()
        checked.CopyFrom(request)
        checked.dry_run = True
        await ask(stub.Erase, checked, _ERASE_SECONDS)

    # --- captured text ---

    async def captures(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        return await self._list(call, {**_LIST, "tenant": "tenant_id"}, {})

    async def own_captures(self, call: Call) -> web.StreamResponse:
        return await self._list(call, _LIST, {"tenant_id": self._door.enter(call).tenant_id})

    async def _list(self, call: Call, names: dict[str, str], fixed: dict[str, str]) -> web.StreamResponse:
        query = {**named(call, names), **fixed}
        stub = configured(self._captures, "meter")
        return await relay(call, stub.ListCaptures, parse(query, ListCapturesRequest()))

    async def capture(self, call: Call) -> web.StreamResponse:
        return await self._capture(call, self._auth.require(call.http.headers, ADMIN), "")

    async def own_capture(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        return await self._capture(call, acting.key, acting.tenant_id)

    async def _capture(self, call: Call, actor: KeyRecord, tenant_id: str) -> web.StreamResponse:
        """Who reads text is told to the tenant whose text it is, before it is shown."""
        request = GetCaptureRequest(request_id=_bare(call.path["request_id"]), tenant_id=tenant_id)
        found = await ask(configured(self._captures, "meter").GetCapture, request)
        await self._announce(actor, "capture.read", found.capture.tenant_id, found.capture.request_id)
        return answer(call, found)

    # --- of which requests ---

    async def set_policy(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        policy = await self._policy(call, _POLICY)
        tenant = await self._tenants.set_capture(call.path["tenant_id"], policy, actor)
        return answer(call, UpdateTenantResponse(tenant=tenant))

    async def end_policy(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        tenant = await self._tenants.set_capture(call.path["tenant_id"], None, actor)
        return answer(call, UpdateTenantResponse(tenant=tenant))

    async def own_policy(self, call: Call) -> web.StreamResponse:
        return self._shown(call, self._policy_of(self._door.enter(call)))

    async def set_own_policy(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        policy = await self._policy(call, _POLICY[:2])
        if not (self._policy_of(acting).self_service or acting.operator):
            raise InferBusError(
                ErrorClass.ERROR_CLASS_PERMISSION_DENIED,
                "capture_not_allowed",
                "The operator has not allowed this organization to turn it on; ask him. It can always be ended.",
            )
        policy.self_service = self._policy_of(acting).self_service
        changed = await self._tenants.set_capture(acting.tenant_id, policy, acting.key)
        return self._shown(call, changed.capture)

    async def end_own_policy(self, call: Call) -> web.StreamResponse:
        """Never refused: nobody has to let his text be kept. What the operator allowed stays allowed."""
        acting = self._door.enter(call)
        allowed = self._policy_of(acting).self_service
        policy = CapturePolicy(self_service=True) if allowed else None
        changed = await self._tenants.set_capture(acting.tenant_id, policy, acting.key)
        return self._shown(call, changed.capture)

    def _policy_of(self, acting: Acting) -> CapturePolicy:
        policy: CapturePolicy = self._tenants.get(acting.tenant_id).capture
        return policy

    async def _policy(self, call: Call, names: tuple[str, ...]) -> CapturePolicy:
        body = await body_object(call, self._body_timeout)
        only(body, names)
        given = {name: value for name, value in body.items() if value is not None}
        if "sampling_rate" not in given:
            # A policy replaces the one before: without a rate it would end what somebody meant to change.
            raise invalid("'sampling_rate' must be set.", param="sampling_rate", reason="missing_required_parameter")
        return checked_policy(parse(given, CapturePolicy()))

    def _shown(self, call: Call, policy: CapturePolicy) -> web.Response:
        shown = {"object": "organization.capture_policy", "sampling_rate": policy.sampling_rate}
        lists = {"project_ids": list(policy.project_ids), "self_service": policy.self_service}
        return reply(call, {**shown, **lists})

    async def _announce(self, actor: KeyRecord, action: str, tenant_id: str, target: str) -> None:
        """In the log of the tenant that it is about. Raises InferBusError UNAVAILABLE."""
        await announce(self._publisher, Change(action, actor.key_id, tenant_id, target))


def _bare(request_id: str) -> str:
    """Without what the APIs put before an id: ``chatcmpl-``, ``resp_``."""
    return request_id.rpartition("_")[2].removeprefix("chatcmpl-").removeprefix("cmpl-")

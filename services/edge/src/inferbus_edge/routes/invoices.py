"""/inferbus/v1/invoices and .../billing-profile for the operator; /v1/organization/invoices, to read, for a tenant. The
meter owns them; who changed what is told to AUDIT here."""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
from aiohttp import web
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.meter.v1.invoices_pb2 import (
    DraftInvoicesRequest,
    FinalizeInvoiceRequest,
    GetBillingProfileRequest,
    GetInvoiceRequest,
    InvoiceFormat,
    ListInvoicesRequest,
    RenderInvoiceRequest,
    SetBillingProfileRequest,
    VerifyInvoiceRequest,
    VoidInvoiceRequest,
)
from inferbus.meter.v1.invoices_pb2_grpc import InvoiceServiceStub
from inferbus_bus.publish import Publisher

from inferbus_edge.auth import ADMIN
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.directory import Directory
from inferbus_edge.routes.announce import announce, announce_made
from inferbus_edge.routes.messages import answer, as_dict, body_object, only, parse
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.routes.organization_door import Door
from inferbus_edge.routes.relay import ask, configured, named, relay
from inferbus_edge.server import Call, Routes, body_response

OPERATOR = "/inferbus/v1"
_FORMATS = {
    "json": (InvoiceFormat.INVOICE_FORMAT_JSON, "application/json"),
    "csv": (InvoiceFormat.INVOICE_FORMAT_CSV, "text/csv; charset=utf-8"),
    "pdf": (InvoiceFormat.INVOICE_FORMAT_PDF, "application/pdf"),
}
_TO_FINALIZE = ("tenant_id", "month", "currency", "expected_hash", "timeout")
_PROFILE = tuple(field.name for field in BillingProfileRecord.DESCRIPTOR.fields)
# Working out a large month takes its time, and verifying it reads every request of it.
_WORK_SECONDS = 600.0


class InvoiceRoutes:
    """``meter``: a channel to it, None if the operator named none. ``publisher`` must have been started."""

    def __init__(
        self, directory: Directory, meter: grpc.aio.Channel | None, publisher: Publisher, body_timeout: timedelta
    ) -> None:
        self._auth = directory.auth
        self._door = Door(directory, body_timeout)
        self._meter = None if meter is None else InvoiceServiceStub(meter)
        self._publisher = publisher
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        all_of_them, one = f"{OPERATOR}/invoices", f"{OPERATOR}/invoices/{{number}}"
        routes.add("GET", all_of_them, self.list)
        routes.add("POST", all_of_them, self.finalize)
        routes.add("GET", f"{OPERATOR}/invoices/drafts", self.drafts)
        routes.add("GET", one, self.get)
        routes.add("POST", f"{one}/void", self.void)
        routes.add("POST", f"{one}/verify", self.verify)
        routes.add("GET", f"{OPERATOR}/billing-profile", self.profile)
        routes.add("PUT", f"{OPERATOR}/billing-profile", self.set_profile)
        routes.add("GET", f"{ORGANIZATION}/invoices", self.own_list)
        routes.add("GET", f"{ORGANIZATION}/invoices/{{number}}", self.own)
        for name in _FORMATS:
            routes.add("GET", f"{one}/{name}", partial(self.file, name))
            routes.add("GET", f"{ORGANIZATION}/invoices/{{number}}/{name}", partial(self.own_file, name))

    # --- the operator's ---

    async def list(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(call, {"tenant": "tenant_id", "month": "month"})
        return await relay(call, self._stub().ListInvoices, parse(query, ListInvoicesRequest()))

    async def drafts(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(call, {"tenant": "tenant_id", "month": "month"})
        request = parse(query, DraftInvoicesRequest())
        return await relay(call, self._stub().DraftInvoices, request, seconds=_WORK_SECONDS)

    async def finalize(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, _TO_FINALIZE)
        request = parse(body, FinalizeInvoiceRequest())
        stub = self._stub()
        request.validate_only = True  # what is refused did not happen
        await ask(stub.FinalizeInvoice, request, _WORK_SECONDS)
        request.validate_only = False
        await self._announce(actor, "invoice.finalized", f"{request.tenant_id}/{request.month}", as_dict(request))
        return await relay(call, stub.FinalizeInvoice, request, 201, _WORK_SECONDS)

    async def get(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        return await relay(call, self._stub().GetInvoice, GetInvoiceRequest(number=call.path["number"]))

    async def file(self, name: str, call: Call) -> web.StreamResponse:
        self._admin(call)
        return await self._file(call, name, "")

    async def void(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, ("reason",))
        request = parse({**body, "number": call.path["number"]}, VoidInvoiceRequest())
        stub = self._stub()
        request.validate_only = True
        await ask(stub.VoidInvoice, request, _WORK_SECONDS)
        request.validate_only = False
        await self._announce(actor, "invoice.voided", request.number, {"reason": request.reason})
        return await relay(call, stub.VoidInvoice, request, 201, _WORK_SECONDS)

    async def verify(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        request = VerifyInvoiceRequest(number=call.path["number"])
        return await relay(call, self._stub().VerifyInvoice, request, seconds=_WORK_SECONDS)

    async def profile(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(call, {"tenant": "tenant_id"})
        return await relay(call, self._stub().GetBillingProfile, parse(query, GetBillingProfileRequest()))

    async def set_profile(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        query = named(call, {"tenant": "tenant_id"})
        body = await body_object(call, self._body_timeout)
        only(body, _PROFILE)
        request = parse({**query, "profile": body}, SetBillingProfileRequest())
        stored = await ask(self._stub().SetBillingProfile, request)
        # Which fields, not what they say: names and tax ids do not belong on a log that is kept.
        target, details = request.tenant_id or "seller", {"fields": sorted(body)}
        change = Change("billing_profile.updated", actor.key_id, actor.tenant_id, target, details=details)
        await announce_made(self._publisher, change)
        return answer(call, stored)

    # --- a tenant's: its own, and nothing else is there ---

    async def own_list(self, call: Call) -> web.StreamResponse:
        tenant_id = self._door.enter(call).tenant_id
        query = named(call, {"month": "month"})
        return await relay(
            call, self._stub().ListInvoices, parse({**query, "tenant_id": tenant_id}, ListInvoicesRequest())
        )  # fmt: skip

    async def own(self, call: Call) -> web.StreamResponse:
        tenant_id = self._door.enter(call).tenant_id
        request = GetInvoiceRequest(number=call.path["number"], tenant_id=tenant_id)
        return await relay(call, self._stub().GetInvoice, request)

    async def own_file(self, name: str, call: Call) -> web.StreamResponse:
        return await self._file(call, name, self._door.enter(call).tenant_id)

    async def _file(self, call: Call, name: str, tenant_id: str) -> web.StreamResponse:
        """The number is the meter's own word by then: it is safe in a header."""
        number, (form, content_type) = call.path["number"], _FORMATS[name]
        request = RenderInvoiceRequest(number=number, tenant_id=tenant_id, format=form)
        found = await ask(self._stub().RenderInvoice, request, _WORK_SECONDS)
        headers = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{number}.{name}"'}
        return body_response(found.file, call.request_id, headers)

    async def _announce(self, actor: KeyRecord, action: str, target: str, details: Mapping[str, Any]) -> None:
        """In the operator's own log. Raises InferBusError UNAVAILABLE."""
        await announce(self._publisher, Change(action, actor.key_id, actor.tenant_id, target, details=details))

    def _admin(self, call: Call) -> KeyRecord:
        return self._auth.require(call.http.headers, ADMIN)

    def _stub(self) -> Any:
        return configured(self._meter, "meter")

"""Invoices at the edge's door: the operator's routes, and what a tenant sees, with a meter that speaks its protocol."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import invoices_pb2
from inferbus.meter.v1.invoices_pb2_grpc import InvoiceServiceServicer, add_InvoiceServiceServicer_to_server
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_edge.core import openapi
from inferbus_edge.core.openapi_schema import REF
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError
from jsonschema import Draft202012Validator

TOKEN = "operators-token-of-tests"
OPERATOR, OWN = "/inferbus/v1/invoices", "/v1/organization/invoices"
SCHEMAS = openapi.schemas()
INVOICE = invoices_pb2.Invoice(
    number="INV-2026-000001", tenant_id="acme", month="2026-10", currency="EUR", total="1.19",
    lines=[invoices_pb2.InvoiceLine(kind="input", quantity=1 << 40, amount="1")],
)  # fmt: skip


class Meter(InvoiceServiceServicer):
    """Has one invoice, of the tenant acme."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def _found(self, request: Any) -> None:
        self.asked.append(request)
        if request.number != INVOICE.number or request.tenant_id not in ("", "acme"):
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "invoice_not_found", "There is no such invoice.")

    async def ListInvoices(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        shown = [INVOICE] if request.tenant_id in ("", "acme") else []
        return invoices_pb2.ListInvoicesResponse(invoices=shown)

    async def DraftInvoices(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return invoices_pb2.DraftInvoicesResponse(invoices=[INVOICE])

    async def FinalizeInvoice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.month == "2026-12":
            raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "month_not_over", "It is not over.")
        return invoices_pb2.FinalizeInvoiceResponse(invoice=INVOICE)

    async def GetInvoice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._found(request)
        return invoices_pb2.GetInvoiceResponse(invoice=INVOICE)

    async def RenderInvoice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._found(request)
        return invoices_pb2.RenderInvoiceResponse(file=b"file %d" % request.format)

    async def VoidInvoice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return invoices_pb2.VoidInvoiceResponse(credit_note=INVOICE)

    async def VerifyInvoice(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return invoices_pb2.VerifyInvoiceResponse(differences=[invoices_pb2.InvoiceDifference(reason="charge")])

    async def GetBillingProfile(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return invoices_pb2.GetBillingProfileResponse(profile=BillingProfileRecord(name="Infer GmbH"))

    async def SetBillingProfile(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if not request.profile.name:
            raise InferBusError(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "invalid_value", "name is missing.")
        return invoices_pb2.SetBillingProfileResponse(profile=request.profile)


@pytest.fixture
async def invoicing(nats_server: Any, rig: Any, tmp_path: Any) -> AsyncIterator[tuple[Any, Meter]]:
    meter = Meter()
    async with (
        rpc.serve(
            "127.0.0.1:0", lambda server: add_InvoiceServiceServicer_to_server(meter, server),
            ("inferbus.meter.v1.InvoiceService",), TOKEN,
        ) as server,
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
    ):  # fmt: skip
        yield edge, meter


async def audited(bus: Bus) -> list[AuditEvent]:
    log = FrameLog(bus, "AUDIT")
    first, last = await log.bounds()
    return [AuditEvent.FromString(data) async for some in log.read(first, last, subject="audit.>") for *_, data in some]


@asynccontextmanager
async def audit_takes_nothing(bus: Bus) -> AsyncIterator[None]:
    known = (await bus.api("STREAM.INFO.AUDIT", {}, timeout=5))["config"]
    await bus.api("STREAM.UPDATE.AUDIT", {**known, "max_msg_size": 1}, timeout=5)
    try:
        yield
    finally:
        await bus.api("STREAM.UPDATE.AUDIT", known, timeout=5)


async def test_only_a_profile_that_was_stored_is_told_and_who_stored_it_hears_if_that_failed(
    invoicing: Any, rig: Any, worker: Any
) -> None:
    edge, meter = invoicing

    async def put(name: str) -> tuple[int, str]:
        answer = await admin.put(path, params={"tenant": "told"}, json={"name": name})
        return answer.status, (await answer.json()).get("error", {}).get("code", "")

    async def told() -> int:
        return sum(
            one.action == "billing_profile.updated" and one.target == "told" for one in await audited(worker.bus)
        )

    path = "/inferbus/v1/billing-profile"
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        assert await put("") == (400, "invalid_value")
        assert await told() == 0
        async with audit_takes_nothing(worker.bus):
            assert await put("Told Ltd.") == (503, "not_announced")
        assert (meter.asked[-1].profile.name, await told()) == ("Told Ltd.", 0)
        assert await put("Told Ltd.") == (200, "")
        assert await told() == 1


def check(name: str, value: Any) -> None:
    validator = Draft202012Validator({"$ref": f"{REF}{name}", "components": {"schemas": SCHEMAS}})
    assert [one.message for one in validator.iter_errors(value)] == []


async def test_an_operator_drafts_issues_voids_and_verifies(invoicing: Any, rig: Any, worker: Any) -> None:
    edge, meter = invoicing
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        month = {"tenant": "acme", "month": "2026-10"}
        body = {"tenant_id": "acme", "month": "2026-10", "expected_hash": "ab"}
        for method, path, options, status, name in (
            ("GET", OPERATOR, {"params": month}, 200, "ListInvoicesResponse"),
            ("GET", f"{OPERATOR}/drafts", {"params": month}, 200, "DraftInvoicesResponse"),
            ("POST", OPERATOR, {"json": body}, 201, "FinalizeInvoiceResponse"),
            ("GET", f"{OPERATOR}/{INVOICE.number}", {}, 200, "GetInvoiceResponse"),
            ("POST", f"{OPERATOR}/{INVOICE.number}/verify", {}, 200, "VerifyInvoiceResponse"),
            ("POST", f"{OPERATOR}/{INVOICE.number}/void", {"json": {"reason": "x"}}, 201, "VoidInvoiceResponse"),
            ("GET", "/inferbus/v1/billing-profile", {}, 200, "GetBillingProfileResponse"),
            ("PUT", "/inferbus/v1/billing-profile", {"params": {"tenant": "acme"}, "json": {"name": "Acme"}}, 200,
             "SetBillingProfileResponse"),
        ):  # fmt: skip
            answer = await admin.request(method, path, **options)
            assert answer.status == status, await answer.text()
            check(name, await answer.json())
        # Asked whether it may be first, so that what is refused is not told as done.
        finalize = invoices_pb2.FinalizeInvoiceRequest
        assert meter.asked[2:4] == [finalize(**body, validate_only=True), finalize(**body)]
        assert (meter.asked[-1].tenant_id, meter.asked[-1].profile.name) == ("acme", "Acme")
        refused = await admin.post(OPERATOR, json={"tenant_id": "acme", "month": "2026-12"})
        assert (refused.status, (await refused.json())["error"]["code"]) == (409, "month_not_over")
        for wrong in ({"tenant_id": "acme", "color": "red"}, {"tenant_id": 7}):
            assert (await admin.post(OPERATOR, json=wrong)).status == 400
    events = await audited(worker.bus)
    told = {(one.action, one.target) for one in events}
    assert {
        ("invoice.finalized", "acme/2026-10"), ("invoice.voided", INVOICE.number), ("billing_profile.updated", "acme"),
    } <= told  # fmt: skip
    assert ("invoice.finalized", "acme/2026-12") not in told
    profiles = [one.details for one in events if one.action == "billing_profile.updated"]
    assert profiles
    assert not [one for one in profiles if "Acme" in one], "names stay off the log"


async def test_an_invoice_is_given_as_a_file(invoicing: Any, rig: Any) -> None:
    edge, _ = invoicing
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for number, (name, kind) in enumerate(
            (("json", "application/json"), ("csv", "text/csv; charset=utf-8"), ("pdf", "application/pdf")), 1
        ):
            answer = await admin.get(f"{OPERATOR}/{INVOICE.number}/{name}")
            assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
            assert answer.headers["Content-Disposition"] == f'attachment; filename="{INVOICE.number}.{name}"'
            assert await answer.read() == b"file %d" % number
        assert (await admin.get(f"{OPERATOR}/{INVOICE.number}/docx")).status == 404


async def test_a_tenant_reads_its_own_and_nothing_else_is_there(invoicing: Any, rig: Any) -> None:
    edge, meter = invoicing
    secrets = {}
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for tenant in ("acme", "other"):
            made = await admin.post("/inferbus/v1/keys", json={"tenant_id": tenant, "scopes": ["tenant_admin"]})
            secrets[tenant] = (await made.json())["secret"]
    one = f"{OWN}/{INVOICE.number}"
    async with rig.session(edge, secrets["acme"]) as own:
        assert (await own.get(one)).status == (await own.get(f"{one}/pdf")).status == 200
        listed = await (await own.get(OWN, params={"month": "2026-10"})).json()
        assert [shown["number"] for shown in listed["invoices"]] == [INVOICE.number]
        assert all(request.tenant_id == "acme" for request in meter.asked)
        assert (await own.get(OWN, params={"tenant": "other"})).status == 400
        assert (await own.get(OWN, headers={"OpenAI-Organization": "other"})).status == 401
        for method, path in (
            ("GET", OPERATOR), ("GET", f"{OPERATOR}/{INVOICE.number}"), ("POST", OPERATOR),
            ("POST", f"{OPERATOR}/{INVOICE.number}/void"), ("GET", "/inferbus/v1/billing-profile"),
            ("PUT", "/inferbus/v1/billing-profile"), ("GET", f"{OPERATOR}/{INVOICE.number}/pdf"),
        ):  # fmt: skip
            assert (await own.request(method, path)).status == 403
    async with rig.session(edge, secrets["other"]) as foreign:
        absent = await foreign.get(f"{OWN}/INV-2026-999999")
        for path in (one, f"{one}/json", f"{one}/csv", f"{one}/pdf"):
            answer = await foreign.get(path)
            assert answer.status == 404
            shown, expected = json.loads(await answer.text()), json.loads(await absent.text())
            assert shown["error"]["code"] == expected["error"]["code"] == "invoice_not_found"
        assert (await (await foreign.get(OWN)).json()) == {}


async def test_without_a_meter_it_is_a_503(edge: Any, rig: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for method, path in (("GET", OPERATOR), ("GET", OWN), ("POST", f"{OPERATOR}/x/verify")):
            answer = await admin.request(method, path)
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "meter_unavailable")

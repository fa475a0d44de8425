"""The meter's gRPC API of invoices. Who may ask is the edge's business."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceKind, InvoiceRecord
from inferbus.meter.v1 import invoices_pb2_grpc
from inferbus.meter.v1.invoices_pb2 import (
    DraftInvoicesRequest,
    DraftInvoicesResponse,
    FinalizeInvoiceRequest,
    FinalizeInvoiceResponse,
    GetBillingProfileRequest,
    GetBillingProfileResponse,
    GetInvoiceRequest,
    GetInvoiceResponse,
    Invoice,
    InvoiceFormat,
    InvoiceLine,
    InvoiceState,
    ListInvoicesRequest,
    ListInvoicesResponse,
    RenderInvoiceRequest,
    RenderInvoiceResponse,
    SetBillingProfileRequest,
    SetBillingProfileResponse,
    VerifyInvoiceRequest,
    VerifyInvoiceResponse,
    VoidInvoiceRequest,
    VoidInvoiceResponse,
)
from inferbus_runtime.errors import invalid

from inferbus_meter.clickhouse import STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.invoice_content import Content, csv_of, document_of, tax_fault
from inferbus_meter.core.invoice_register import Register
from inferbus_meter.invoice_archive import Draft
from inferbus_meter.invoice_paper import Fonts, is_png
from inferbus_meter.invoice_pdf import pdf_of
from inferbus_meter.invoice_verify import Verification
from inferbus_meter.invoices import Invoices, checked_month

SERVICE_NAME = "inferbus.meter.v1.InvoiceService"
_TIMEOUT_SECONDS = 30.0
_MAX_TEXT, _MAX_LINES, _MAX_NOTE, _MAX_LOGO_BYTES = 200, 8, 2000, 16 << 10
_MAX_REASON = 500
_MAX_PAYMENT_DAYS = 365
_PREFIX = re.compile(r"^[A-Za-z0-9-]{0,16}$", re.ASCII)
_COUNTRY = re.compile(r"^([A-Z]{2})?$", re.ASCII)


class InvoiceServicer(invoices_pb2_grpc.InvoiceServiceServicer):
    def __init__(self, invoices: Invoices, store: Store, fonts: Fonts) -> None:
        self._invoices = invoices
        self._archive = invoices.archive
        self._store = store
        self._fonts = fonts

    async def DraftInvoices(self, request: DraftInvoicesRequest, context: Any) -> DraftInvoicesResponse:  # noqa: N802
        async with _store_answers():
            drafts = await self._invoices.drafts(request.tenant_id, request.month)
        return DraftInvoicesResponse(invoices=[_of_draft(draft) for draft in drafts])

    async def FinalizeInvoice(  # noqa: N802
        self, request: FinalizeInvoiceRequest, context: Any
    ) -> FinalizeInvoiceResponse:
        timeout = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else _TIMEOUT_SECONDS
        asked = (request.tenant_id, request.month, request.currency, request.expected_hash, timeout)
        async with _store_answers():
            if request.validate_only:
                await self._invoices.check_finalize(*asked)
                return FinalizeInvoiceResponse()
            record = await self._invoices.finalize(*asked)
        return FinalizeInvoiceResponse(invoice=await self._whole(record))

    async def VoidInvoice(self, request: VoidInvoiceRequest, context: Any) -> VoidInvoiceResponse:  # noqa: N802
        if not 0 < len(request.reason) <= _MAX_REASON:
            raise invalid(f"reason says why, in at most {_MAX_REASON} characters.", param="reason")
        async with _store_answers():
            if request.validate_only:
                await self._invoices.check_void(request.number)
                return VoidInvoiceResponse()
            note = await self._invoices.void(request.number, request.reason)
        return VoidInvoiceResponse(credit_note=await self._whole(note))

    async def ListInvoices(self, request: ListInvoicesRequest, context: Any) -> ListInvoicesResponse:  # noqa: N802
        if request.month:
            checked_month(request.month)
        register = self._archive.register()
        listed = [
            _head(register, record)
            for record in reversed(register.entries)
            if request.tenant_id in ("", record.tenant_id) and request.month in ("", record.month)
        ]
        return ListInvoicesResponse(invoices=listed)

    async def GetInvoice(self, request: GetInvoiceRequest, context: Any) -> GetInvoiceResponse:  # noqa: N802
        record = self._archive.find(request.number, request.tenant_id)
        return GetInvoiceResponse(invoice=await self._whole(record))

    async def RenderInvoice(self, request: RenderInvoiceRequest, context: Any) -> RenderInvoiceResponse:  # noqa: N802
        record = self._archive.find(request.number, request.tenant_id)
        content, _ = await self._archive.content(record)
        if request.format == InvoiceFormat.INVOICE_FORMAT_CSV:
            return RenderInvoiceResponse(file=csv_of(content))
        # Nothing that comes later is in it, so the same invoice is the same bytes whenever it is asked for.
        if request.format == InvoiceFormat.INVOICE_FORMAT_PDF:
            return RenderInvoiceResponse(file=await asyncio.to_thread(pdf_of, record, content, self._fonts))
        return RenderInvoiceResponse(file=document_of(record, content))

    async def VerifyInvoice(self, request: VerifyInvoiceRequest, context: Any) -> VerifyInvoiceResponse:  # noqa: N802
        async with _store_answers():
            return await Verification(self._invoices, self._store, self._invoices.book()).run(request.number)

    async def GetBillingProfile(  # noqa: N802
        self, request: GetBillingProfileRequest, context: Any
    ) -> GetBillingProfileResponse:
        return GetBillingProfileResponse(profile=self._archive.profile(request.tenant_id))

    async def SetBillingProfile(  # noqa: N802
        self, request: SetBillingProfileRequest, context: Any
    ) -> SetBillingProfileResponse:
        _check_profile(request.profile, seller=not request.tenant_id)
        await self._archive.set_profile(request.tenant_id, request.profile)
        return SetBillingProfileResponse(profile=request.profile)

    async def _whole(self, record: InvoiceRecord) -> Invoice:
        content, _ = await self._archive.content(record)
        invoice = _head(self._archive.register(), record)
        invoice.lines.extend(_lines(content))
        return invoice


@asynccontextmanager
async def _store_answers() -> AsyncIterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise store_unavailable(error) from error


def _of_draft(draft: Draft) -> Invoice:
    content = draft.content
    totals = {name: content["totals"][name] for name in ("subtotal", "net", "tax", "total")}
    return Invoice(
        kind=InvoiceKind.INVOICE_KIND_INVOICE, state=InvoiceState.INVOICE_STATE_DRAFT, hash=draft.hash,
        lines=_lines(content), **{name: content[name] for name in ("tenant_id", "month", "currency")}, **totals,
        **content["payment"],
    )  # fmt: skip


def _head(register: Register, record: InvoiceRecord) -> Invoice:
    note = register.credit_note_of(record.number)
    same = (
        "number",
        "kind",
        "voids",
        "tenant_id",
        "month",
        "currency",
        "subtotal",
        "net",
        "tax",
        "total",
        "hash",
        "credits",
        "due",
    )
    return Invoice(
        state=register.state(record), voided_by="" if note is None else note.number, issue_time=record.issue_time,
        due_time=record.due_time, **{name: getattr(record, name) for name in same},
    )  # fmt: skip


def _lines(content: Content) -> list[InvoiceLine]:
    return [
        InvoiceLine(**{name: value for name, value in line.items() if name != "position"}) for line in content["lines"]
    ]


def _check_profile(profile: BillingProfileRecord, *, seller: bool) -> None:
    """Raises InferBusError INVALID_ARGUMENT for what would not fit on an invoice."""
    texts = {"name": profile.name, "tax_id": profile.tax_id, "email": profile.email}
    too_long = next((name for name, text in texts.items() if len(text) > _MAX_TEXT), None)
    if too_long is not None:
        raise invalid(f"{too_long} has at most {_MAX_TEXT} characters.", param=too_long)
    if not profile.name:
        raise invalid("name is missing: it stands on each invoice.", param="name")
    if len(profile.address) > _MAX_LINES or any(len(line) > _MAX_TEXT for line in profile.address):
        raise invalid(f"address has at most {_MAX_LINES} lines of {_MAX_TEXT} characters.", param="address")
    if len(profile.note) > _MAX_NOTE:
        raise invalid(f"note has at most {_MAX_NOTE} characters.", param="note")
    if not _COUNTRY.match(profile.country):
        raise invalid("country is two capital letters (ISO 3166-1), such as DE.", param="country")
    if profile.HasField("payment_days") and profile.payment_days > _MAX_PAYMENT_DAYS:
        raise invalid(f"payment_days is at most {_MAX_PAYMENT_DAYS}.", param="payment_days")
    fault = tax_fault(profile.tax)
    if fault or max(len(profile.tax.name), len(profile.tax.note)) > _MAX_TEXT:
        raise invalid(f"{fault or f'tax texts have at most {_MAX_TEXT} characters'}.", param="tax")
    if not seller and (profile.number_prefix or profile.logo):
        raise invalid("number_prefix and logo are the seller's.", param="number_prefix")
    if not _PREFIX.match(profile.number_prefix):
        raise invalid("number_prefix has at most 16 letters, digits and hyphens.", param="number_prefix")
    if profile.logo and (len(profile.logo) > _MAX_LOGO_BYTES or not is_png(profile.logo)):
        raise invalid(f"logo is a PNG of at most {_MAX_LOGO_BYTES >> 10} KiB.", param="logo")

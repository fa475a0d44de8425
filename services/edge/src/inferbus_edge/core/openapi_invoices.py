"""The operations about invoices: the operator's, and what a tenant sees of its own."""

from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord
from inferbus.meter.v1 import invoices_pb2 as invoices

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_path, in_query
from inferbus_edge.core.openapi_schema import NULL, TEXT, Schema, any_of, of_messages, told

_AT, _OWN = "/inferbus/v1", "/v1/organization"
_ERRORS = (*WITH_KEY, 404, 409, 429, 499, 503, 504)
_MONTH_TEXT: Schema = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}
_TENANT, _MONTH = in_query("tenant", TEXT), in_query("month", _MONTH_TEXT, "As 2026-11.")
_NUMBER = in_path("number", "The number of an invoice or a credit note.")
_HEADER = Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is administered.")
_WHOLE = of_messages(
    BillingProfileRecord.DESCRIPTOR,
    invoices.DraftInvoicesResponse.DESCRIPTOR,
    invoices.FinalizeInvoiceRequest.DESCRIPTOR,
    invoices.FinalizeInvoiceResponse.DESCRIPTOR,
    invoices.VoidInvoiceResponse.DESCRIPTOR,
    invoices.ListInvoicesResponse.DESCRIPTOR,
    invoices.GetInvoiceResponse.DESCRIPTOR,
    invoices.VerifyInvoiceResponse.DESCRIPTOR,
    invoices.GetBillingProfileResponse.DESCRIPTOR,
    invoices.SetBillingProfileResponse.DESCRIPTOR,
)


def _sent(message: str, *required: str) -> Schema:
    """Of a message what may be sent; a null is the same as leaving a field out."""
    known: dict[str, Schema] = _WHOLE[message]["properties"]
    shown = {name: field if name in required else any_of(field, NULL) for name, field in known.items()}
    return {"type": "object", "properties": shown, "required": list(required), "additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    **{name: schema for name, schema in _WHOLE.items() if name != "FinalizeInvoiceRequest"},
    "InvoiceFinalize": _sent("FinalizeInvoiceRequest", "tenant_id", "month"),
    "InvoiceVoid": {
        "type": "object",
        "properties": {"reason": {"type": "string", "minLength": 1, "maxLength": 500}},
        "required": ["reason"],
        "additionalProperties": False,
    },
    "BillingProfile": _sent("BillingProfileRecord", "name"),
    "InvoiceDocument": {
        "type": "object",
        "properties": {"number": TEXT, "hash": told(TEXT, "SHA-256 of 'content'."), "content": {"type": "object"}},
        "required": ["number", "hash", "content"],
    },
    "InvoiceLines": told(TEXT, "Its lines, with a head."),
    "InvoicePdf": told(TEXT, "A4."),
}
_FILES = (
    ("json", "An invoice as JSON, canonical", "InvoiceDocument", "application/json"),
    ("csv", "An invoice's lines as CSV", "InvoiceLines", "text/csv"),
    ("pdf", "An invoice as PDF", "InvoicePdf", "application/pdf"),
)


def _operator(
    method: str, path: str, summary: str, answer: str, *parameters: Parameter, body: str = "", status: int = 200
) -> Operation:
    return Operation(
        method, _AT + path, "Operator", summary, answer, scope="admin", parameters=parameters, body=body,
        status=status, errors=_ERRORS,
    )  # fmt: skip


def _own(path: str, summary: str, answer: str, *parameters: Parameter) -> Operation:
    return Operation(
        "GET", _OWN + path, "Organization", summary, answer, scope="tenant_admin", parameters=(*parameters, _HEADER),
        errors=_ERRORS,
    )  # fmt: skip


def _files(at: str, group: str, scope: str, *more: Parameter) -> tuple[Operation, ...]:
    return tuple(
        Operation(
            "GET", f"{at}/invoices/{{number}}/{name}", group, summary, answer, scope=scope, content=content,
            parameters=(_NUMBER, *more), errors=_ERRORS,
        )
        for name, summary, answer, content in _FILES
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    _operator("GET", "/invoices", "Invoices and credit notes, newest first", "ListInvoicesResponse", _TENANT, _MONTH),
    _operator("GET", "/invoices/drafts", "What would be invoiced now", "DraftInvoicesResponse", _TENANT, _MONTH),
    Operation(
        "POST", f"{_AT}/invoices", "Operator", "Issue the invoice of a month", "FinalizeInvoiceResponse",
        scope="admin", body="InvoiceFinalize", status=201, errors=_ERRORS,
        example={"tenant_id": "acme", "month": "2026-11"},
        description="The one that there is already is given again: a retry does no harm.",
    ),
    _operator("GET", "/invoices/{number}", "An invoice", "GetInvoiceResponse", _NUMBER),
    *_files(_AT, "Operator", "admin"),
    _operator(
        "POST", "/invoices/{number}/void", "Take an invoice back by a credit note", "VoidInvoiceResponse", _NUMBER,
        body="InvoiceVoid", status=201,
    ),
    _operator(
        "POST", "/invoices/{number}/verify", "Work an invoice out again from raw events", "VerifyInvoiceResponse",
        _NUMBER,
    ),
    _operator(
        "GET", "/billing-profile", "Who sells, or who a tenant is on invoices", "GetBillingProfileResponse", _TENANT
    ),
    _operator(
        "PUT", "/billing-profile", "Say who sells, or who a tenant is on invoices", "SetBillingProfileResponse",
        _TENANT, body="BillingProfile",
    ),
    _own("/invoices", "The tenant's invoices and credit notes", "ListInvoicesResponse", _MONTH),
    _own("/invoices/{number}", "An invoice", "GetInvoiceResponse", _NUMBER),
    *_files(_OWN, "Organization", "tenant_admin", _HEADER),
)  # fmt: skip

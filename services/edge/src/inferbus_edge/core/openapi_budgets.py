"""The operations about budgets and credits."""

from inferbus.bus.v1.registry_pb2 import BudgetRecord, CreditRecord
from inferbus.meter.v1 import budgets_pb2 as budgets

from inferbus_edge.core.budget_objects import PERIOD_NAMES
from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_query
from inferbus_edge.core.openapi_schema import (
    FLAG,
    NULL,
    TEXT,
    UNIX,
    Schema,
    any_of,
    const,
    listing,
    many,
    nullable,
    of_messages,
    one_of,
    record,
    told,
)

_GROUP, _SCOPE, _AT = "Operator", "admin", "/inferbus/v1"
_ERRORS = (*WITH_KEY, 429, 499, 503, 504)
_ONE = (*_ERRORS, 404, 409)
_PERIOD = one_of(*PERIOD_NAMES)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_DECIMAL = told(TEXT, "A decimal number.")
_WHOLE = of_messages(
    BudgetRecord.DESCRIPTOR,
    CreditRecord.DESCRIPTOR,
    budgets.SetBudgetResponse.DESCRIPTOR,
    budgets.DeleteBudgetResponse.DESCRIPTOR,
    budgets.ListBudgetsResponse.DESCRIPTOR,
    budgets.AddCreditResponse.DESCRIPTOR,
    budgets.ListCreditsResponse.DESCRIPTOR,
)


def _sent(required: tuple[str, ...], **fields: Schema) -> Schema:
    shown = {name: field if name in required else any_of(field, NULL) for name, field in fields.items()}
    return {"type": "object", "properties": shown, "required": list(required), "additionalProperties": False}


_SCOPES: dict[str, Schema] = {
    "tenant_id": TEXT,
    "project_id": told(TEXT, "Of this project only."),
    "key_id": told(TEXT, "Of this key only."),
}

SCHEMAS: dict[str, Schema] = {
    **_WHOLE,
    "BudgetBody": _sent(
        ("tenant_id", "period", "currency"),
        **_SCOPES,
        period=told(_PERIOD, "UTC; prepaid: what was paid in, without an end."),
        currency=TEXT,
        amount=told(TEXT, "A decimal number; of a prepaid budget none."),
        hard=told(FLAG, "Refuse what would pass it. Without it only told."),
        thresholds=told(many(TEXT), "Parts of the amount at which to tell: 0.8."),
        webhook_url=told(TEXT, "Who is told, besides the audit log."),
    ),
    "CreditBody": _sent(
        ("credit_id", "tenant_id", "currency", "amount"),
        credit_id=told(TEXT, "Your choice: a second call with it does nothing."),
        **_SCOPES,
        currency=TEXT,
        amount=_DECIMAL,
        expire_time=told(_WHEN, "What is left then is lost."),
        note=TEXT,
    ),
    "Budget": record(
        object=const("organization.budget"), id=TEXT, project_id=nullable(TEXT), api_key_id=nullable(TEXT),
        period=_PERIOD, period_start=nullable(UNIX), period_end=nullable(UNIX), currency=TEXT, amount=_DECIMAL,
        spent=_DECIMAL, reserved=told(TEXT, "For requests that run, or are to come. A decimal number."), left=_DECIMAL,
        hard=FLAG, thresholds=many(TEXT),
    ),
    "BudgetList": listing("Budget"),
}  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", f"{_AT}/budgets", _GROUP, "Budgets, and how they stand", "ListBudgetsResponse", scope=_SCOPE,
        parameters=(in_query("tenant", TEXT),), errors=_ERRORS,
    ),
    Operation(
        "PUT", f"{_AT}/budgets", _GROUP, "Make or replace the budget of a scope and period", "SetBudgetResponse",
        scope=_SCOPE, body="BudgetBody", errors=_ONE,
        example={
            "tenant_id": "acme", "period": "month", "currency": "USD", "amount": "500", "hard": True,
            "thresholds": ["0.8", "1"],
        },
    ),
    Operation(
        "DELETE", f"{_AT}/budgets", _GROUP, "Delete a budget", "DeleteBudgetResponse", scope=_SCOPE, errors=_ONE,
        parameters=(
            in_query("tenant", TEXT), in_query("project", TEXT), in_query("key", TEXT), in_query("period", _PERIOD),
        ),
    ),
    Operation(
        "GET", f"{_AT}/credits", _GROUP, "What was paid in", "ListCreditsResponse", scope=_SCOPE,
        parameters=(in_query("tenant", TEXT),), errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_AT}/credits", _GROUP, "Pay in", "AddCreditResponse", scope=_SCOPE, body="CreditBody", status=201,
        errors=_ONE,
        example={"credit_id": "order-1001", "tenant_id": "acme", "currency": "USD", "amount": "100"},
    ),
    Operation(
        "GET", "/v1/organization/budgets", "Organization", "A tenant's own budgets, and how they stand", "BudgetList",
        scope="tenant_admin", errors=(*_ERRORS, 404),
        parameters=(
            Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is meant."),
        ),
    ),
)  # fmt: skip

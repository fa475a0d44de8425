"""The operations about prices and re-rating, in protobuf's JSON."""

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.usage_pb2 import Operation as Asked
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1 import prices_pb2 as prices

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_path, in_query
from inferbus_edge.core.openapi_schema import (
    FLAG,
    NULL,
    TEXT,
    Schema,
    any_of,
    many,
    of_messages,
    one_of,
    record,
    ref,
    told,
)

_GROUP, _SCOPE, _AT = "Operator", "admin", "/inferbus/v1"
_ERRORS = (*WITH_KEY, 429, 499, 503, 504)
_ONE = (*_ERRORS, 404, 409)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_VERSION = in_path("rate_version", "The version of a price.")
_OPERATIONS = tuple(name.removeprefix("OPERATION_").lower() for name in Asked.keys()[1:])
_CLASSES = tuple(name.removeprefix("PRIORITY_CLASS_").lower() for name in PriorityClass.keys()[1:])
_WHOLE = of_messages(
    PriceRecord.DESCRIPTOR,
    prices.ListPricesResponse.DESCRIPTOR,
    prices.GetPriceResponse.DESCRIPTOR,
    prices.CreatePriceResponse.DESCRIPTOR,
    prices.DeletePriceResponse.DESCRIPTOR,
    prices.GetRateResponse.DESCRIPTOR,
    prices.RerateResponse.DESCRIPTOR,
)

SCHEMAS: dict[str, Schema] = {
    **_WHOLE,
    "PriceCreate": {
        "type": "object",
        "properties": {
            name: any_of(field, NULL) for name, field in _WHOLE["PriceRecord"]["properties"].items()
        },
        "required": ["rate_version", "currency"],
        "additionalProperties": False,
    },
    "RerateRange": {
        "type": "object",
        "properties": {
            "start": told(_WHEN, "Requests that ended from then on."),
            "end": told(any_of(_WHEN, NULL), "Exclusive; until now without it."),
            "tenant": told(any_of(TEXT, NULL), "Of all tenants without it."),
            "apply": told(any_of(FLAG, NULL), "Write the corrections. Without it nothing is changed."),
            "reason": told(any_of(TEXT, NULL), "Said in each correction."),
        },
        "required": ["start"],
        "additionalProperties": False,
    },
    "RerateLine": any_of(ref("RerateResponse"), ref("Error")),
    "OwnRates": record(
        rates=many(
            record("Without 'rate' nothing is charged.", ("rate",), model=TEXT, revision=TEXT, rate=ref("Rate")),
        ),
    ),
}  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", f"{_AT}/prices", _GROUP, "The price book", "ListPricesResponse", scope=_SCOPE,
        parameters=(in_query("tenant", TEXT, "Its own prices, and those for everybody."),), errors=_ERRORS,
    ),
    Operation(
        "POST", f"{_AT}/prices", _GROUP, "Put a price into the book", "CreatePriceResponse", scope=_SCOPE,
        body="PriceCreate", status=201, errors=_ONE,
        example={
            "rate_version": "2026-12", "currency": "USD", "input_per_million": "0.50", "output_per_million": "1.50",
            "effective_time": "2026-12-01T00:00:00Z",
        },
        description="Without 'model' for all models, without 'tenant_id' for all tenants; from now on without "
        "'effective_time'. A price is never changed: a new version takes over.",
    ),
    Operation(
        "GET", f"{_AT}/prices/{{rate_version}}", _GROUP, "A price", "GetPriceResponse", scope=_SCOPE,
        parameters=(_VERSION,), errors=_ONE,
    ),
    Operation(
        "DELETE", f"{_AT}/prices/{{rate_version}}", _GROUP, "Take a price out of the book", "DeletePriceResponse",
        scope=_SCOPE, errors=_ONE,
        parameters=(
            _VERSION,
            in_query("force", one_of("true", "false"), "Also one that has been in force."),
            in_query("dry_run", one_of("true", "false"), "Only say whether, and how many charges name it."),
        ),
    ),
    Operation(
        "GET", f"{_AT}/rate", _GROUP, "What a request would be charged with, and by which price", "GetRateResponse",
        scope=_SCOPE, errors=_ERRORS,
        parameters=(
            *(in_query(name, TEXT) for name in ("tenant", "project", "model", "revision")),
            in_query("operation", one_of(*_OPERATIONS)), in_query("priority_class", one_of(*_CLASSES)),
            in_query("time", _WHEN, "When it is accepted; now without it."),
        ),
    ),
    Operation(
        "GET", f"{_AT}/rates", _GROUP, "What this key pays for a model, whoever answers for it", "OwnRates",
        scope="inference", errors=(*WITH_KEY, 404, 503),
        parameters=(
            Parameter("model", "query", TEXT, "", required=True),
            in_query("revision", TEXT, "Of the model; the one that is served without it."),
            in_query("operation", one_of(*_OPERATIONS), "chat without it."),
            in_query("priority_class", one_of(*_CLASSES), "interactive without it."),
        ),
        description="The model's own first, then those of the fallbacks that may answer for it. In force now.",
    ),
    Operation(
        "POST", f"{_AT}/rerate", _GROUP, "Charges by the present prices: the difference, or corrections", "RerateLine",
        scope=_SCOPE, body="RerateRange", content="application/x-ndjson", errors=(*_ERRORS, 409),
        example={"start": "2026-11-01T00:00:00Z"}, description="One line an event, as it comes.",
    ),
)  # fmt: skip

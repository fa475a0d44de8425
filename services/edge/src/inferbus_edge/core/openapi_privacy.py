"""The operations about erasures and captured text, in protobuf's JSON."""

from inferbus.meter.v1 import captures_pb2 as captures
from inferbus.meter.v1 import privacy_pb2 as privacy

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_path, in_query, whole
from inferbus_edge.core.openapi_schema import (
    FLAG,
    NULL,
    NUMBER,
    TEXT,
    Schema,
    any_of,
    const,
    many,
    of_messages,
    record,
    told,
)

_GROUP, _AT, _OWN = "Operator", "/inferbus/v1", "/v1/organization"
_ERRORS = (*WITH_KEY, 429, 499, 503, 504)
_ONE = (*_ERRORS, 404, 409)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_RATE = told({"type": "number", "minimum": 0, "maximum": 1}, "Part of the requests.")
_PROJECTS = told(many(TEXT), "Only of these; empty: of all.")
_MAY = told(FLAG, "The tenant may turn it on by itself.")
_END_USER = told(any_of(TEXT, NULL), "As 'safety_identifier', 'user' or 'metadata.user_id' named him.")
_ERASE: dict[str, Schema] = {
    "end_user": _END_USER,
    "whole_tenant": told(any_of(FLAG, NULL), "In place of 'end_user': everybody's of the tenant."),
    "dry_run": told(any_of(FLAG, NULL), "Only say what would go."),
    "timeout": told(any_of(NUMBER, NULL), "Seconds to wait until it is done, up to 600; it goes on all the same."),
}
_PROJECT = in_query("project", TEXT)
_PAGE = (
    _PROJECT, in_query("start", _WHEN, "Of requests accepted from then on."), in_query("end", _WHEN, "Exclusive."),
    in_query("page_size", whole(1, 1000, 100)), in_query("page", TEXT, "'next_page_token' of the page before."),
)  # fmt: skip
_REQUEST = in_path("request_id", "The request's id: the header x-request-id, or the id of its answer.")
_MEANT = Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is meant.")


def _body(required: tuple[str, ...], **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    **of_messages(
        privacy.EraseResponse.DESCRIPTOR,
        privacy.ListErasuresResponse.DESCRIPTOR,
        captures.ListCapturesResponse.DESCRIPTOR,
        captures.GetCaptureResponse.DESCRIPTOR,
    ),
    "ErasureBody": _body(("tenant_id",), tenant_id=TEXT, **_ERASE),
    "OwnErasureBody": _body((), **_ERASE),
    "CapturePolicyBody": _body(("sampling_rate",), sampling_rate=_RATE, project_ids=_PROJECTS, self_service=_MAY),
    "OwnCapturePolicyBody": _body(("sampling_rate",), sampling_rate=_RATE, project_ids=_PROJECTS),
    "OwnCapturePolicy": record(
        object=const("organization.capture_policy"), sampling_rate=_RATE, project_ids=_PROJECTS, self_service=_MAY
    ),
}

_ABOUT = (
    "Labels, stored answers, idempotency keys and captured text of the requests that were accepted until now; counts "
    "and charges stay. What arrives later, or is read again by a replay, is erased as well. 'left' says what goes by "
    "itself."
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", f"{_AT}/erasures", _GROUP, "Erasures, newest first", "ListErasuresResponse", scope="admin",
        parameters=(in_query("tenant", TEXT),), errors=_ERRORS, description="1,000 at most.",
    ),
    Operation(
        "POST", f"{_AT}/erasures", _GROUP, "Erase an end user, or a tenant", "EraseResponse", scope="admin",
        body="ErasureBody", status=201, errors=_ONE, description=_ABOUT,
        example={"tenant_id": "acme", "end_user": "user-4711", "dry_run": True},
    ),
    Operation(
        "GET", f"{_AT}/captures", _GROUP, "Requests whose text is kept, newest first", "ListCapturesResponse",
        scope="admin", parameters=(in_query("tenant", TEXT), *_PAGE), errors=_ERRORS,
    ),
    Operation(
        "GET", f"{_AT}/captures/{{request_id}}", _GROUP, "Prompt and output of a request", "GetCaptureResponse",
        scope="admin", parameters=(_REQUEST,), errors=_ONE, description="Told to the tenant's audit log.",
    ),
    Operation(
        "PUT", f"{_AT}/tenants/{{tenant_id}}/capture", _GROUP, "Keep the text of a tenant's requests",
        "UpdateTenantResponse", scope="admin", body="CapturePolicyBody", errors=_ONE,
        parameters=(in_path("tenant_id", "The tenant."),), example={"sampling_rate": 0.1, "self_service": True},
        description="Of requests from now on. A request opts out with the header x-inferbus-capture: off.",
    ),
    Operation(
        "DELETE", f"{_AT}/tenants/{{tenant_id}}/capture", _GROUP, "Keep no text of a tenant's requests any more",
        "UpdateTenantResponse", scope="admin", errors=_ONE, parameters=(in_path("tenant_id", "The tenant."),),
        description="What is kept stays for its time; an erasure takes it out.",
    ),
    Operation(
        "GET", f"{_OWN}/erasures", "Organization", "A tenant's own erasures", "ListErasuresResponse",
        scope="tenant_admin", errors=(*_ERRORS, 404), parameters=(_MEANT,),
    ),
    Operation(
        "POST", f"{_OWN}/erasures", "Organization", "Erase an end user, or all of the own tenant", "EraseResponse",
        scope="tenant_admin", body="OwnErasureBody", status=201, errors=_ONE, parameters=(_MEANT,),
        description=_ABOUT, example={"end_user": "user-4711"},
    ),
    Operation(
        "GET", f"{_OWN}/captures", "Organization", "Own requests whose text is kept", "ListCapturesResponse",
        scope="tenant_admin", errors=(*_ERRORS, 404), parameters=(_MEANT, *_PAGE),
    ),
    Operation(
        "GET", f"{_OWN}/captures/{{request_id}}", "Organization", "Prompt and output of an own request",
        "GetCaptureResponse", scope="tenant_admin", errors=_ONE, parameters=(_MEANT, _REQUEST),
        description="Told to the tenant's audit log.",
    ),
    Operation(
        "GET", f"{_OWN}/capture_policy", "Organization", "Of which requests the text is kept", "OwnCapturePolicy",
        scope="tenant_admin", errors=(*_ERRORS, 404), parameters=(_MEANT,),
    ),
    Operation(
        "PUT", f"{_OWN}/capture_policy", "Organization", "Keep the text of own requests", "OwnCapturePolicy",
        scope="tenant_admin", body="OwnCapturePolicyBody", errors=_ONE, parameters=(_MEANT,),
        description="403 if the operator has not allowed it.", example={"sampling_rate": 1},
    ),
    Operation(
        "DELETE", f"{_OWN}/capture_policy", "Organization", "Keep no text of own requests any more",
        "OwnCapturePolicy", scope="tenant_admin", errors=_ONE, parameters=(_MEANT,),
    ),
)  # fmt: skip

"""The operations about single requests: the operator's, and what a tenant sees of its own."""

from inferbus.meter.v1 import requests_pb2 as requests
from inferbus.scheduler.v1 import scheduler_pb2 as scheduler

from inferbus_edge.core.analytics_query import CLASSES
from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_path, in_query, whole
from inferbus_edge.core.openapi_schema import FLAG, TEXT, WHOLE, Schema, many, of_messages, one_of, ref, told
from inferbus_edge.core.request_query import ERROR_CLASSES, ORDERS, STATUSES

_OPERATOR, _ORGANIZATION = "/inferbus/v1/requests", "/v1/organization/requests"
_ERRORS = (*WITH_KEY, 404, 429, 499, 503, 504)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_HEADER = Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is administered.")
_ID = in_path("request_id", "What x-request-id said, or the id of the answer.")

SCHEMAS: dict[str, Schema] = of_messages(
    requests.ListRequestsResponse.DESCRIPTOR,
    requests.GetTimelineResponse.DESCRIPTOR,
    scheduler.ExplainResponse.DESCRIPTOR,
)
# Columns are lists of numbers here, not protobuf's bytes.
SCHEMAS["TimelineAttempt"]["properties"] |= {
    "index": told(many(WHOLE), "Left out: first_index and on, without a gap."),
    "offset_us": told(many({"type": "integer"}), "Of each token: microseconds since acceptance."),
    "gap_us": told(many(WHOLE), "Of each token: microseconds since the one before."),
    "void": told(many({"type": "integer", "enum": [0, 1]}), "1: a later attempt made it anew. Left out: none is void."),
}
SCHEMAS["GetTimelineResponse"]["properties"]["placement"] = told(
    ref("ExplainResponse"), "For the operator: what the scheduler decided, as long as it remembers."
)

_FILTERS = (
    in_query("start", _WHEN, "Requests that ended from here on; left out: a day before 'end'."),
    in_query("end", _WHEN, "Exclusive; left out: now."),
    in_query("project", TEXT), in_query("key", TEXT, "The id of an API key."), in_query("model", TEXT),
    in_query("revision", TEXT, "Of the model."), in_query("user", TEXT, "An end user."),
    Parameter("class[]", "query", many(one_of(*CLASSES)), "Their priority class."),
    Parameter("status[]", "query", many(one_of(*STATUSES)), "How they ended."),
    Parameter("error[]", "query", many(one_of(*ERROR_CLASSES)), "The class of their error."),
    in_query("reason", TEXT, "The reason of their error."),
    in_query("order", {**one_of(*ORDERS), "default": ORDERS[0]}, "Latest, slowest, largest or dearest first."),
    in_query("ascending", FLAG, "The other way round."),
    in_query("limit", whole(1, 500, 50), "Requests of one page."),
    in_query("page", TEXT, "'next_page_token' of the page before, with the same order."),
)  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", _OPERATOR, "Operator", "Requests that have ended", "ListRequestsResponse", scope="admin",
        parameters=(*_FILTERS, in_query("tenant", TEXT), in_query("worker", TEXT)), errors=_ERRORS,
    ),
    Operation(
        "GET", f"{_OPERATOR}/{{request_id}}", "Operator", "One request as a timeline", "GetTimelineResponse",
        scope="admin", parameters=(_ID,), errors=_ERRORS,
    ),
    Operation(
        "GET", _ORGANIZATION, "Organization", "Requests that have ended", "ListRequestsResponse", scope="tenant_admin",
        parameters=(*_FILTERS, _HEADER), errors=_ERRORS,
    ),
    Operation(
        "GET", f"{_ORGANIZATION}/{{request_id}}", "Organization", "One request as a timeline", "GetTimelineResponse",
        scope="tenant_admin", parameters=(_ID, _HEADER), errors=_ERRORS,
    ),
)  # fmt: skip

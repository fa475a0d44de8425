"""The operations of analytics: the operator's, and a tenant's of its own."""

from inferbus.meter.v1 import analytics_pb2 as analytics

from inferbus_edge.core.analytics_query import CLASSES, OPERATOR, TARGETS, TENANT, Scope
from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_query, whole
from inferbus_edge.core.openapi_schema import TEXT, Schema, many, of_messages, one_of

_ERRORS = (*WITH_KEY, 404, 429, 499, 503, 504)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_RANGE = (
    Parameter("start", "query", _WHEN, "Inclusive.", required=True),
    in_query("end", _WHEN, "Exclusive; left out: up to now."),
)
_HEADER = Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is administered.")
SCHEMAS: dict[str, Schema] = of_messages(
    analytics.QueryAnalyticsResponse.DESCRIPTOR, analytics.ListAnalyticsValuesResponse.DESCRIPTOR
)


def _parameters(scope: Scope) -> tuple[Parameter, ...]:
    return (
        Parameter("measure", "query", one_of(*scope.measures), "What is asked.", required=True),
        *_RANGE,
        in_query("step", TEXT, "Whole minutes, as 5m; left out: the whole range is one step. At most 1,500 steps."),
        in_query("by", TEXT, f"What rows are told apart by: {', '.join(scope.names)}, with commas."),
        *(
            in_query(name, many(one_of(*CLASSES) if name == "class" else TEXT), "Of these only.")
            for name in scope.names
        ),
        in_query("groups", whole(1, 1000), "Only so many groups: the largest."),
        *(in_query(f"{name}_target", TEXT, "Of goodput, as 200ms; left out: none.") for name in TARGETS),
    )


def _of(path: str, group: str, scope: str, summary: str, answer: str, *parameters: Parameter) -> Operation:
    return Operation("GET", path, group, summary, answer, scope=scope, parameters=parameters, errors=_ERRORS)


OPERATIONS: tuple[Operation, ...] = (
    _of(
        "/inferbus/v1/analytics", "Operator", "admin", "Latencies, load, errors, goodput: one measure over time",
        "QueryAnalyticsResponse", *_parameters(OPERATOR),
    ),
    _of(
        "/inferbus/v1/analytics/values", "Operator", "admin", "What there is to filter analytics by",
        "ListAnalyticsValuesResponse", *_RANGE,
    ),
    _of(
        "/v1/organization/analytics", "Organization", "tenant_admin", "A tenant's own latencies, load, errors, goodput",
        "QueryAnalyticsResponse", *_parameters(TENANT), _HEADER,
    ),
    _of(
        "/v1/organization/analytics/values", "Organization", "tenant_admin", "What there is to filter them by",
        "ListAnalyticsValuesResponse", *_RANGE, _HEADER,
    ),
)  # fmt: skip

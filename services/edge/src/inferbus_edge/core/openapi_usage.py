"""The operations about usage and costs: OpenAI's, of a tenant, and the operator's, over all of them."""

from inferbus.meter.v1 import usage_pb2 as usage

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, Parameter, in_query, texts
from inferbus_edge.core.openapi_schema import (
    FLAG,
    LABELS,
    NUMBER,
    TEXT,
    UNIX,
    WHOLE,
    Schema,
    const,
    many,
    nullable,
    of_messages,
    one_of,
    record,
    told,
)
from inferbus_edge.core.organization_usage import COSTS, KINDS, Kind
from inferbus_edge.core.usage_query import BUCKETS, DIMENSIONS, FORMATS

_ERRORS = (*WITH_KEY, 404, 429, 499, 503, 504)
_ORGANIZATION, _OPERATOR = "/v1/organization", "/inferbus/v1"
_ESTIMATED = told(FLAG, "Not all of these tokens were counted by the model's own tokenizer.")
_GROUPS: dict[str, Schema] = {
    "project_id": nullable(TEXT),
    "user_id": told(nullable(TEXT), "Whose key it was; null for a project's own key, too."),
    "api_key_id": nullable(TEXT),
    "model": nullable(TEXT),
    "batch": nullable(FLAG),
    "service_tier": nullable(one_of("default", "flex", "batch")),
    "line_item": told(
        nullable(TEXT), "MODEL, and what was charged for, as input_tokens; or volume_discount, which is in no charge."
    ),
    "inferbus_end_user": told(nullable(TEXT), "'safety_identifier' or 'user' of the requests."),
    "inferbus_tags": told(nullable(LABELS), "The header x-inferbus-tags of the requests."),
}
_COUNTS: dict[str, dict[str, Schema]] = {
    "completions": dict.fromkeys(
        (
            "input_tokens", "input_cached_tokens", "input_uncached_tokens", "input_text_tokens",
            "input_cached_text_tokens", "input_audio_tokens", "output_tokens", "output_text_tokens",
            "output_audio_tokens", "inferbus_output_reasoning_tokens",
        ),
        WHOLE,
    ),
    "embeddings": {"input_tokens": WHOLE},
    "inference": {},
}  # fmt: skip


def _page(result: Schema) -> Schema:
    bucket = record(
        object=const("bucket"), start_time=UNIX, end_time=told(UNIX, "Exclusive, Unix seconds."), results=many(result)
    )
    return record(
        object=const("page"), data=many(bucket), has_more=FLAG, next_page=told(nullable(TEXT), "What 'page' is next.")
    )


def _result(kind: Kind) -> Schema:
    return record(
        object=const(f"organization.usage.{kind.name}.result"),
        **_COUNTS[kind.name],
        num_model_requests=told(WHOLE, "A call with several choices counts once."),
        **{name: _GROUPS[name] for name in kind.groups},
        inferbus_choices=WHOLE,
        inferbus_errors=told(WHOLE, "Of the choices."),
        inferbus_estimated=_ESTIMATED,
    )


def _schema_of(kind: Kind) -> str:
    return f"Usage{kind.name.title().replace('_', '')}Page" if kind.operations else "UsageNonePage"


SCHEMAS: dict[str, Schema] = {
    **{_schema_of(kind): _page(_result(kind)) for kind in KINDS if kind.operations},
    "UsageNonePage": _page({"not": {}, "description": "InferBus does no such thing: there are no results."}),
    "CostsPage": _page(
        record(
            object=const("organization.costs.result"),
            amount=record(value=told(NUMBER, "With all of its digits."), currency=told(TEXT, "As usd.")),
            line_item=_GROUPS["line_item"],
            quantity=nullable(WHOLE),
            quantity_unit=nullable(const("tokens")),
            **{name: _GROUPS[name] for name in COSTS.groups if name != "line_item"},
            inferbus_estimated=_ESTIMATED,
        )
    ),
    **of_messages(
        usage.QueryUsageResponse.DESCRIPTOR, usage.QueryCostsResponse.DESCRIPTOR, usage.QueryMarginResponse.DESCRIPTOR
    ),
    "ExportedUsage": told(TEXT, "A file: a line, or a row, each group."),
}

_FILTERS = {
    "project_ids": "Of these projects.",
    "user_ids": "By keys of these users and service accounts.",
    "api_key_ids": "By these keys.",
    "models": "Of these models.",
    "line_items": "These line items only.",
}


def _parameters(kind: Kind, widths: tuple[str, ...], most: int) -> tuple[Parameter, ...]:
    ours = "inferbus_tags" in kind.groups
    return (
        Parameter("start_time", "query", UNIX, "Inclusive, Unix seconds.", required=True),
        in_query("end_time", UNIX, "Exclusive, Unix seconds; left out: up to now."),
        in_query("bucket_width", {**one_of(*widths), "default": "1d"}),
        in_query("limit", {"type": "integer", "minimum": 1, "maximum": most}, "Buckets of one page."),
        in_query("page", TEXT, "'next_page' of the page before."),
        Parameter("group_by[]", "query", many(one_of(*kind.groups)), "By what results are told apart."),
        *(texts(name, _FILTERS.get(name, "Of these.")) for name in kind.filters),
        *((in_query("batch", FLAG, "Of class batch only, or all others."),) if "batch" in kind.groups else ()),
        *((texts("inferbus_end_users", "For these end users."),) if ours else ()),
        *((texts("inferbus_tags", "With all of these, each NAME=VALUE."),) if ours else ()),
        in_query("tenant_id", TEXT, "For an operator's key: whose usage."),
        Parameter("OpenAI-Organization", "header", TEXT, "The same."),
    )


def _of_kind(kind: Kind) -> Operation:
    summary = f"Usage by buckets of time: {kind.name.replace('_', ' ')}"
    return Operation(
        "GET", f"{_ORGANIZATION}/usage/{kind.name}", "Organization",
        summary if kind.operations else f"{summary}, of which there is none", _schema_of(kind), scope="tenant_admin",
        parameters=_parameters(kind, ("1m", "1h", "1d"), 1440), errors=_ERRORS,
    )  # fmt: skip


_WHEN: Schema = {"type": "string", "format": "date-time"}
_RANGE = (in_query("start", _WHEN), in_query("end", _WHEN, "Exclusive."))
_REPORT = (
    *_RANGE, in_query("bucket", {**one_of(*BUCKETS), "default": BUCKETS[0]}, "How long a bucket is."),
    in_query("tenant", TEXT), in_query("project", TEXT), in_query("key", TEXT), in_query("model", TEXT),
    in_query("user", TEXT, "An end user."), in_query("tag", TEXT, "NAME=VALUE."), in_query("batch", FLAG),
)  # fmt: skip
_BY = in_query("by", TEXT, f"What rows are told apart by: {', '.join(DIMENSIONS)}, with commas.")


def _of_operator(path: str, summary: str, answer: str, *parameters: Parameter, content: str = "") -> Operation:
    return Operation(
        "GET", f"{_OPERATOR}/{path}", "Operator", summary, answer, scope="admin", parameters=parameters,
        content=content or "application/json", errors=_ERRORS,
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    *(_of_kind(kind) for kind in KINDS),
    Operation(
        "GET", f"{_ORGANIZATION}/costs", "Organization", "What it costs, by days", "CostsPage", scope="tenant_admin",
        parameters=_parameters(COSTS, ("1d",), 180), errors=_ERRORS,
    ),
    _of_operator("usage/query", "Usage by buckets and groups", "QueryUsageResponse", *_REPORT, _BY),
    _of_operator(
        "costs", "What it costs, by buckets and groups", "QueryCostsResponse", *_REPORT, _BY,
        in_query("line_items", FLAG, "Split into what was charged for, and volume discounts."),
    ),
    _of_operator(
        "usage/export", "Usage and costs as a file", "ExportedUsage", *_REPORT,
        in_query("format", {**one_of(*FORMATS), "default": "csv"}), content="text/csv",
    ),
    _of_operator("margin", "Revenue of each worker against its GPUs and energy", "QueryMarginResponse", *_RANGE),
)  # fmt: skip

"""Single requests over HTTP: the query as what the meter is asked, and its timeline as JSON. Pure."""

import sys
from array import array
from collections.abc import Collection
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.requests_pb2 import GetTimelineResponse, TimelineAttempt
from inferbus_runtime.errors import invalid

from inferbus_edge.core.analytics_query import CLASSES
from inferbus_edge.core.organization_bodies import Query, boolean, choice, many
from inferbus_edge.core.usage_query import range_of

# Names in a query, and the meter's. The first order is the default.
ORDERS = ("time", "e2e", "ttft", "tokens", "charge")
_ORDERS = {"time": "END_TIME"}
STATUSES = ("stop", "length", "cancelled", "error")
ERROR_CLASSES = tuple(
    name.removeprefix("ERROR_CLASS_").lower() for name, number in ErrorClass.items() if number
)  # fmt: skip
# Names of one value each, and the filter's.
_EQUAL = {
    "project": "project_id", "key": "key_id", "model": "model", "revision": "revision", "reason": "error_reason",
    "user": "end_user",
}  # fmt: skip
OPERATORS = {"tenant": "tenant_id", "worker": "worker"}
_COLUMNS = {"index": "I", "offset_us": "q", "gap_us": "I", "void": "B"}


def list_of(query: Query, *, operator: bool) -> dict[str, Any]:
    """As protobuf's JSON of ListRequestsRequest, without the view. Raises InferBusError INVALID_ARGUMENT."""
    equal = _EQUAL | (OPERATORS if operator else {})
    own = (*equal, "status", "status[]", "error", "error[]", "class", "class[]", "order", "ascending", "limit", "page")
    asked = range_of(query, *own)
    given = {name: value for name, value in query if value}
    only: dict[str, Any] = {field: given[name] for name, field in equal.items() if name in given}
    only["finish_reasons"] = _enum(query, "status", STATUSES, "FINISH_REASON_")
    only["error_classes"] = _enum(query, "error", ERROR_CLASSES, "ERROR_CLASS_")
    only["priority_classes"] = _enum(query, "class", CLASSES, "PRIORITY_CLASS_")
    order = choice(given, "order", ORDERS)
    return asked | {
        "filter": only, "order": f"REQUEST_ORDER_{_ORDERS.get(order, order.upper())}",
        "ascending": boolean(given, "ascending"), "page_token": given.get("page", ""),
    } | _size(given)  # fmt: skip


def _size(given: dict[str, str]) -> dict[str, int]:
    text = given.get("limit")
    if text is None:
        return {}
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 500 or len(text) > 9:
        raise invalid("'limit' is 1 to 500.", param="limit")
    return {"page_size": int(text)}


def _enum(query: Query, name: str, known: Collection[str], prefix: str) -> list[str]:
    values = sorted(many(query, name) - {""})
    for value in values:
        if value not in known:
            raise invalid(f"'{name}' is one of {', '.join(known)}.", param=name)
    return [f"{prefix}{value.upper()}" for value in values]


def put_columns(shown: dict[str, Any], timeline: GetTimelineResponse) -> dict[str, Any]:
    """``shown``: protobuf's JSON of ``timeline`` without its columns; with them as lists of numbers when it returns."""
    for one, attempt in zip(shown.get("attempts", ()), timeline.attempts, strict=True):
        one |= _columns(attempt)
    return shown


def without_columns(timeline: GetTimelineResponse) -> GetTimelineResponse:
    """What is small of it: protobuf's JSON makes an object of each number, which would hold the edge up."""
    small = GetTimelineResponse(
        request=timeline.request, events=timeline.events, tokens_left_out=timeline.tokens_left_out,
        deliveries=timeline.deliveries,
    )  # fmt: skip
    for name in ("charge", "storage"):
        if timeline.HasField(name):
            getattr(small, name).CopyFrom(getattr(timeline, name))
    for one in timeline.attempts:
        small.attempts.add(
            number=one.number, worker=one.worker, tokens=one.tokens, void_tokens=one.void_tokens,
            first_index=one.first_index,
        )  # fmt: skip
    return small


def _columns(attempt: TimelineAttempt) -> dict[str, list[int]]:
    found = {}
    for name, kind in _COLUMNS.items():
        column = array(kind)
        column.frombytes(getattr(attempt, name))
        if sys.byteorder == "big":
            column.byteswap()
        if column:
            found[name] = column.tolist()
    return found

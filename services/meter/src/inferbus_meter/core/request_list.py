"""Finding requests: filters, order and pages as SQL whose every value is a parameter. Pure."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass
from inferbus.meter.v1.requests_pb2 import RequestFilter, RequestOrder
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_meter.core.usage import Query

DEFAULT_PAGE, MOST_OF_A_PAGE = 50, 500
_LONGEST_TOKEN = 256
_WHOLE = re.compile(r"-?[0-9]{1,18}")
# As Python writes a Decimal(38, 12): small ones with an exponent.
_AMOUNT = re.compile(r"-?[0-9]{1,26}(\.[0-9]{1,25})?(E-[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class _Order:
    """``value``: what is compared, never NULL. ``type``: of the parameter that it is compared with. ``table``: where it
    is; charges know the corrections, and are dearer to read."""

    value: str
    type: str = "Int64"
    table: str = "bills"


_ORDERS: dict[int, _Order] = {
    RequestOrder.REQUEST_ORDER_END_TIME: _Order("toUnixTimestamp64Micro(end_time)"),
    # What never came to it comes after all that did, or before them.
    RequestOrder.REQUEST_ORDER_E2E: _Order("ifNull(toInt64(e2e_us), -1)"),
    RequestOrder.REQUEST_ORDER_TTFT: _Order("ifNull(toInt64(ttft_us), -1)"),
    RequestOrder.REQUEST_ORDER_TOKENS: _Order("toInt64(input_tokens) + toInt64(output_tokens)"),
    RequestOrder.REQUEST_ORDER_CHARGE: _Order("charge", "Decimal(38, 12)", "charges"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: the last row's value in the order, as text, and its id."""

    value: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Requests that ended in [start_us, end_us), Unix microseconds; ``size`` of them after ``after``."""

    start_us: int
    end_us: int
    filter: RequestFilter
    order: RequestOrder.ValueType
    ascending: bool
    size: int
    after: Place | None


def order_of(order: RequestOrder.ValueType) -> RequestOrder.ValueType:
    return order if order in _ORDERS else RequestOrder.REQUEST_ORDER_END_TIME


def list_query(asked: Listing) -> Query:
    """Rows: request id, tenant, the value that they are ordered by; one more than the page if there is more."""
    order = _ORDERS[asked.order]
    terms = [
        "end_time >= fromUnixTimestamp64Micro({start:Int64})",
        "end_time < fromUnixTimestamp64Micro({end:Int64})",
    ]
    parameters: dict[str, Any] = {"start": asked.start_us, "end": asked.end_us}
    for column, value in _equal(asked.filter).items():
        if value:
            terms.append(f"{column} = {{{column}:String}}")
            parameters[column] = value
    for column, names in _among(asked.filter).items():
        if names:
            terms.append(f"{column} IN {{{column}:Array(String)}}")
            parameters[column] = names
    direction, beyond = ("ASC", ">") if asked.ascending else ("DESC", "<")
    if asked.after is not None:
        value = f"{{value:{order.type}}}"
        terms.append(
            f"({order.value} {beyond} {value} OR ({order.value} = {value} AND request_id {beyond} {{last:UUID}}))"
        )
        parameters |= {"value": asked.after.value, "last": asked.after.request_id}
    # Whatever a caller gave is a parameter; the text is made of names that stand in this file.
    sql = f"""
SELECT request_id, tenant_id, {order.value} AS place
FROM {order.table}
WHERE {" AND ".join(terms)}
ORDER BY place {direction}, request_id {direction}
LIMIT {asked.size + 1:d}"""  # noqa: S608
    return Query(sql, parameters)


def _equal(only: RequestFilter) -> dict[str, str]:
    return {
        "tenant_id": only.tenant_id, "project_id": only.project_id, "key_id": only.key_id, "model": only.model,
        "revision": only.revision, "error_reason": only.error_reason, "end_user": only.end_user, "worker": only.worker,
    }  # fmt: skip


def _among(only: RequestFilter) -> dict[str, list[str]]:
    return {
        "finish_reason": [FinishReason.Name(one).removeprefix("FINISH_REASON_").lower() for one in only.finish_reasons],
        "priority_class": [
            PriorityClass.Name(one).removeprefix("PRIORITY_CLASS_").lower() for one in only.priority_classes
        ],
        "error_class": [ErrorClass.Name(one).removeprefix("ERROR_CLASS_").lower() for one in only.error_classes],
    }


def page_token(asked: Listing, last: Place) -> str:
    text = json.dumps([asked.order, asked.ascending, last.value, last.request_id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def place_of(token: str, order: RequestOrder.ValueType, ascending: bool) -> Place:
    """Raises InferBusError INVALID_ARGUMENT for what is no token, or one of another order."""
    if len(token) > _LONGEST_TOKEN:
        raise _no_token()
    try:
        given = json.loads(base64.b64decode(token, b"-_", validate=True))
        of_order, was_ascending, value, last = given
        place = Place(str(value), str(UUID(last)))
    except (ValueError, TypeError, AttributeError, binascii.Error):
        raise _no_token() from None
    known = _AMOUNT if order == RequestOrder.REQUEST_ORDER_CHARGE else _WHOLE
    # What the store cannot read as a number would look like a store that is away.
    if (of_order, was_ascending) != (order, ascending) or not known.fullmatch(place.value):
        raise _no_token()
    return place


def _no_token() -> InferBusError:
    return invalid("'page_token' is not of this list; begin without it.", param="page_token")

"""What the tables know of single requests: the answers of RequestService."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from inferbus.bus.v1.delivery_pb2 import DeliveryEnd
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.requests_pb2 import (
    GetTimelineResponse,
    ListRequestsResponse,
    RequestView,
    TimelineDelivery,
    TimelineStorage,
)
from inferbus_contracts.ids import detached, unix_ms_of, uuid_text
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.charge_lines import Correction, charge_of
from inferbus_meter.core.ended_request import (
    COLUMNS,
    EndedRequest,
    billed,
    charged_of,
    ending_of,
    for_tenant,
    running_of,
    summary_of,
)
from inferbus_meter.core.request_list import Listing, Place, list_query, page_token
from inferbus_meter.core.timeline import Tokens, attempts_of, events_of, moment

# Of one answer: 17 bytes each at most, below what gRPC takes.
MOST_TOKENS = 200_000
# By how much the clocks of machines may differ, and how late a worker that was cut off may still write.
_SKEW_US, _LATE_US = 60_000_000, 3_600_000_000
# Whatever happens to a request happens within this time of its acceptance: deadlines are hours, the log holds days.
_LIFE_US = 31 * 86_400_000_000
_BILL = f"""
SELECT {COLUMNS}
FROM bills
WHERE request_id IN {{ids:Array(UUID)}} AND ({{tenant:String}} = '' OR tenant_id = {{tenant:String}})
  AND end_time >= fromUnixTimestamp64Micro({{from:Int64}}) AND end_time < fromUnixTimestamp64Micro({{until:Int64}})
"""  # noqa: S608 - no value in it
_CORRECTIONS = """
SELECT request_id, toUnixTimestamp64Micro(created_time), delta, currency, to_rate_version, reason
FROM adjustments FINAL
WHERE tenant_id IN {tenants:Array(String)} AND request_id IN {ids:Array(UUID)}
ORDER BY request_id, number
"""
_OF_REQUEST = """
WHERE request_id IN {ids:Array(UUID)} AND ({tenant:String} = '' OR tenant_id = {tenant:String})
  AND ({model:String} = '' OR model = {model:String})
  AND time >= fromUnixTimestamp64Micro({from:Int64}) AND time < fromUnixTimestamp64Micro({until:Int64})
"""
_CONTEXTS = f"""
SELECT attempt, worker, edge, tenant_id, project_id, key_id, model, revision, request_id, count()
FROM token_events
{_OF_REQUEST}
GROUP BY attempt, worker, edge, tenant_id, project_id, key_id, model, revision, request_id
ORDER BY attempt
"""  # noqa: S608 - no value in it
_TOKENS = f"""
SELECT attempt, `index`, toUnixTimestamp64Micro(time), gap_us
FROM token_events
{_OF_REQUEST}
ORDER BY stream_epoch, stream_seq, attempt, `index`
LIMIT {MOST_TOKENS}
"""  # noqa: S608 - no value in it
_DELIVERIES = """
SELECT toUnixTimestamp64Micro(time), `end`, tokens, key_id, edge
FROM deliveries_once
WHERE tenant_id = {tenant:String} AND request_id = {id:UUID}
  AND time >= fromUnixTimestamp64Micro({from:Int64}) AND time < fromUnixTimestamp64Micro({until:Int64})
ORDER BY time, edge, boot, sequence, item
"""
# Of a stream that began anew there may be another batch with this sequence. Of a row that does not name its stream: the
# one that was taken after the end.
_BATCH = """
SELECT first_seq, last_seq, max(attempt), argMax(holder, (done, attempt)), max(done),
       max(toUnixTimestamp64Micro(intent_time))
FROM ingest_batches
WHERE stream = 'TOKENS' AND first_seq <= {seq:UInt64} AND last_seq >= {seq:UInt64}
  AND {epoch:UInt32} IN (epoch + 1, 0)
  AND intent_time >= fromUnixTimestamp64Micro({from:Int64})
GROUP BY epoch, first_seq, last_seq
ORDER BY max(done) DESC, epoch
LIMIT 1
"""


async def requests(store: Store, asked: Listing, view: RequestView.ValueType) -> ListRequestsResponse:
    """As all here raises one of STORE_ERRORS."""
    operator = view == RequestView.REQUEST_VIEW_OPERATOR
    query = list_query(asked)
    found = await store.rows(query.sql, query.parameters)
    shown = found[: asked.size]
    ids = [row[0] for row in shown]
    rows = await _bills(store, ids, asked.filter.tenant_id, asked.start_us, asked.end_us)
    bills = {row.request_id: row for row in rows}
    corrections = await _corrections(store, list(bills.values()))
    answer = ListRequestsResponse()
    for request_id in ids:
        if request_id in bills:  # else it was erased meanwhile
            summary = summary_of(bills[request_id], corrections.get(request_id, ()), operator=operator)
            answer.requests.append(summary)
    if len(found) > asked.size:
        answer.next_page_token = page_token(asked, Place(str(shown[-1][2]), str(shown[-1][0])))
    return answer


async def timeline(store: Store, request_id: bytes, tenant_id: str, view: RequestView.ValueType) -> GetTimelineResponse:
    """Raises InferBusError NOT_FOUND for a request of which nothing is stored, or that is not ``tenant_id``'s."""
    # x-request-id of a call that runs in the background is the id before it was sent there.
    ids = [UUID(bytes=one) for one in dict.fromkeys((request_id, detached(request_id)))]
    accepted_us = unix_ms_of(request_id) * 1000
    bills = await _bills(store, ids, tenant_id, accepted_us - _SKEW_US, accepted_us + _LIFE_US)
    if bills:
        bill = min(bills, key=lambda one: ids.index(one.request_id))
        return await _timeline(store, bill, _of_ended(bill), view)
    asked = _of_running(ids, tenant_id)
    contexts = await store.rows(_CONTEXTS, asked)
    if not contexts:
        raise _not_found(request_id)
    return await _timeline(store, None, asked | {"ids": [contexts[0][8]], "tenant": contexts[0][3]}, view)


def _of_ended(bill: EndedRequest) -> dict[str, Any]:
    """Where the tokens of a request are."""
    return {
        "ids": [bill.request_id], "tenant": bill.tenant_id, "model": bill.model,
        "from": bill.accepted_us - _SKEW_US, "until": bill.end_us + _LATE_US,
    }  # fmt: skip


def _of_running(ids: Sequence[UUID], tenant_id: str) -> dict[str, Any]:
    accepted_us = unix_ms_of(ids[0].bytes) * 1000
    return {
        "ids": ids,
        "tenant": tenant_id,
        "model": "",
        "from": accepted_us - _SKEW_US,
        "until": accepted_us + _LIFE_US,
    }


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the tables say of one request. ``bill``: None while it runs."""

    bill: EndedRequest | None
    contexts: Sequence[Sequence[Any]]
    tokens: Sequence[Sequence[Any]]
    deliveries: Sequence[Sequence[Any]]
    corrections: Sequence[Correction]
    storage: TimelineStorage | None


async def _timeline(
    store: Store, bill: EndedRequest | None, asked: Mapping[str, Any], view: RequestView.ValueType
) -> GetTimelineResponse:
    request_id: UUID = asked["ids"][0]
    parts = _Parts(
        bill,
        await store.rows(_CONTEXTS, asked),
        await store.rows(_TOKENS, asked),
        await store.rows(_DELIVERIES, {
            "tenant": asked["tenant"], "id": request_id, "from": asked["from"], "until": asked["from"] + _LIFE_US,
        }),
        (await _corrections(store, [bill])).get(request_id, ()) if bill else (),
        await _storage(store, bill) if bill else None,
    )  # fmt: skip
    # A hundred thousand tokens take some hundredths of a second.
    return await asyncio.to_thread(_answer, parts, request_id, operator=view == RequestView.REQUEST_VIEW_OPERATOR)


def _answer(parts: _Parts, request_id: UUID, *, operator: bool) -> GetTimelineResponse:
    bill = parts.bill
    tokens = Tokens.of(parts.tokens, bill.attempt, bill.output_tokens) if bill else Tokens.of(parts.tokens)
    accepted_us = bill.accepted_us if bill else _accepted_us(request_id, parts.tokens)
    workers = {int(row[0]): str(row[1]) for row in parts.contexts} if operator else {}
    attempts = attempts_of(tokens, accepted_us, workers)
    # What came between the two questions is in the second one only.
    left_out = max(0, sum(int(row[-1]) for row in parts.contexts) - len(parts.tokens))
    deliveries = [_delivery(row, operator=operator) for row in parts.deliveries]
    corrections = parts.corrections if operator else [for_tenant(one) for one in parts.corrections]
    if bill is None:
        counted = left_out + sum(one.tokens - one.void_tokens for one in attempts)
        summary = running_of(parts.contexts[-1], accepted_us, counted, operator=operator)
    else:
        summary = summary_of(bill, corrections, operator=operator)
    return GetTimelineResponse(
        request=summary, attempts=attempts, tokens_left_out=left_out, deliveries=deliveries,
        charge=charge_of(charged_of(bill), corrections) if bill else None,
        storage=parts.storage if operator else None,
        events=events_of(
            accepted_us, summary.edge, tokens, workers, ending_of(bill, operator=operator) if bill else None,
            deliveries, billed(bill, corrections, parts.storage) if bill else (),
        ),
    )  # fmt: skip


def _accepted_us(request_id: UUID, tokens: Sequence[Sequence[int]]) -> int:
    """Of one that runs: its id has milliseconds, and its first token says how long ago that was."""
    by_id = unix_ms_of(request_id.bytes) * 1000
    for _, index, time_us, gap_us in tokens[:1]:
        if index == 0 and 0 <= time_us - gap_us - by_id < 1000:
            return time_us - gap_us
    return by_id


def _delivery(row: Sequence[Any], *, operator: bool) -> TimelineDelivery:
    time_us, end, tokens, key_id, edge = row
    return TimelineDelivery(
        time=moment(time_us), end=DeliveryEnd.Value(f"DELIVERY_END_{end.upper()}"), tokens=tokens, key_id=key_id,
        edge=edge if operator else "",
    )  # fmt: skip


async def _bills(store: Store, ids: Sequence[UUID], tenant_id: str, start_us: int, end_us: int) -> list[EndedRequest]:
    """Those that ended in [start_us, end_us), Unix microseconds."""
    if not ids:
        return []
    rows = await store.rows(_BILL, {"ids": list(ids), "tenant": tenant_id, "from": start_us, "until": end_us})
    return [EndedRequest(*row) for row in rows]


async def _corrections(store: Store, bills: Sequence[EndedRequest]) -> dict[UUID, list[Correction]]:
    found: dict[UUID, list[Correction]] = {}
    if bills:
        tenants = sorted({one.tenant_id for one in bills})
        for request_id, *row in await store.rows(
            _CORRECTIONS, {"tenants": tenants, "ids": [one.request_id for one in bills]}
        ):
            found.setdefault(request_id, []).append(Correction(*row))
    return found


async def _storage(store: Store, bill: EndedRequest) -> TimelineStorage:
    storage = TimelineStorage(stream_sequence=bill.stream_seq)
    asked = {"seq": bill.stream_seq, "epoch": bill.stream_epoch, "from": bill.end_us - _SKEW_US}
    rows = await store.rows(_BATCH, asked)
    for first, last, tries, holder, done, time_us in rows:
        storage.first_sequence, storage.last_sequence, storage.tries, storage.holder = first, last, tries, holder
        if done:
            storage.done_time.CopyFrom(moment(time_us))
    return storage


def _not_found(request_id: bytes) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND,
        "request_not_found",
        f"Nothing is stored of a request '{uuid_text(request_id)}'. One that was accepted just now can be seen from "
        "its first token on, or its end.",
        param="request_id",
    )

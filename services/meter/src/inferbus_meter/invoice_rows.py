"""The raw rows that a verification of an invoice reads: of requests, and of their tokens."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from inferbus.bus.v1.invoice_pb2 import InvoiceRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass, Usage
from inferbus_rating import Rate, cost
from inferbus_rating.book import Price

from inferbus_meter import invoice_queries as queries
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.rerate import OPERATIONS, PRIORITIES

_PAGE = 50_000
_COUNT = f"SELECT count() FROM bills WHERE {queries.RANGE} AND currency = {{currency:String}}"  # noqa: S608
_PAGE_OF_CHARGES = f"""
SELECT toString(request_id), {queries.FIRST_CHOICE}, {queries.ANSWERED},
       input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost, rate_version, {queries.PRICES}
FROM bills
WHERE {queries.RANGE} AND currency = {{currency:String}} AND {queries.PLACE} <= {{position:UInt64}}
  AND cityHash64(request_id) % {{pages:UInt64}} = {{page:UInt64}}
"""  # noqa: S608
DUPLICATES = f"""
SELECT toString(request_id), count() FROM bills WHERE {queries.RANGE}
GROUP BY request_id HAVING count() > 1 ORDER BY request_id
"""  # noqa: S608
AGED = f"""
SELECT count(), toInt64(toUnixTimestamp64Micro(oldest)) FROM bills
CROSS JOIN (SELECT if(count() = 0, now64(6, 'UTC'), min(time)) AS oldest FROM token_events) AS tokens
WHERE {queries.RANGE} AND output_tokens > 0 AND end_time < oldest
GROUP BY oldest
"""  # noqa: S608
TOKENS_OF_CHARGES = f"""
SELECT toString(bill.request_id), bill.output_tokens, counted.tokens
FROM (
    SELECT request_id, output_tokens FROM bills
    WHERE {queries.RANGE} AND currency = {{currency:String}} AND {queries.PLACE} <= {{position:UInt64}}
      AND accepted_time >= fromUnixTimestamp64Micro({{from:Int64}})
) AS bill
LEFT JOIN (
    SELECT request_id, count() AS tokens FROM tokens WHERE tenant_id = {{tenant:String}} GROUP BY request_id
) AS counted ON counted.request_id = bill.request_id
WHERE bill.output_tokens != counted.tokens
ORDER BY bill.request_id
"""  # noqa: S608
COUNTED = f"""
SELECT sum(output_tokens) FROM bills
WHERE {queries.RANGE} AND currency = {{currency:String}} AND {queries.PLACE} <= {{position:UInt64}}
  AND accepted_time >= fromUnixTimestamp64Micro({{from:Int64}})
"""  # noqa: S608
TOKENS_WITHOUT_CHARGE = f"""
SELECT toString(request_id), count() FROM tokens
WHERE tenant_id = {{tenant:String}}
  AND request_id NOT IN (SELECT request_id FROM requests WHERE tenant_id = {{tenant:String}})
GROUP BY request_id
HAVING max({queries.PLACE}) <= {{position:UInt64}} AND max(time) < fromUnixTimestamp64Micro({{ended:Int64}})
  AND max(time) >= fromUnixTimestamp64Micro({{start:Int64}}) AND max(time) < fromUnixTimestamp64Micro({{end:Int64}})
ORDER BY request_id
"""  # noqa: S608

_COUNT_CORRECTIONS = f"SELECT count() FROM adjustments WHERE {queries.RANGE} AND currency = {{currency:String}}"  # noqa: S608
_PAGE_OF_CORRECTED = f"""
SELECT toString(bill.request_id), {queries.FIRST_CHOICE}, {queries.ANSWERED}, operation, priority_class,
       input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost + adjusted, to_version
FROM (SELECT * FROM bills WHERE {queries.RANGE}) AS bill
INNER JOIN
(
    SELECT request_id, sum(delta) AS adjusted, argMax(adjustments.to_rate_version, adjustments.number) AS to_version
    FROM adjustments FINAL
    WHERE {queries.RANGE} AND currency = {{currency:String}}
      AND cityHash64(request_id) % {{pages:UInt64}} = {{page:UInt64}}
    GROUP BY request_id
    HAVING hasAny(groupArray(rerate_id), {{reratings:Array(String)}})
) AS correction ON correction.request_id = bill.request_id
ORDER BY bill.request_id
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified: an invoice, the charges up to ``position``, and the months that can be on it."""

    record: InvoiceRecord
    window: tuple[str, str]
    position: int

    @property
    def asked(self) -> dict[str, Any]:
        of = queries.range_of(self.record.tenant_id, *self.window)
        return {**of, "currency": self.record.currency, "position": self.position}


@dataclass(frozen=True, slots=True)
class Corrected:
    """A request with corrections: its present charge, and the price that this follows from."""

    request_id: str
    first_choice: bool
    answered: bool
    operation: Operation.ValueType
    priority: PriorityClass.ValueType
    usage: Usage
    charge: Decimal
    rate_version: str

    def charge_by(self, price: Price) -> Decimal:
        rate = price.rate(self.operation, self.priority)
        return cost(self.usage, rate, first_choice=self.first_choice, answered=self.answered)


async def corrected(store: Store, scope: Scope, reratings: Sequence[str]) -> AsyncIterator[Corrected]:
    """The requests that one of these re-ratings has corrected."""
    ((count,),) = await store.rows(_COUNT_CORRECTIONS, scope.asked)
    pages = int(count) // _PAGE + 1
    for page in range(pages):
        asked = {**scope.asked, "pages": pages, "page": page, "reratings": list(reratings)}
        for request_id, first, answered, operation, priority, *tokens, charge, version in await store.rows(
            _PAGE_OF_CORRECTED, asked
        ):
            given, cached, output, reasoning = tokens
            yield Corrected(
                request_id, bool(first), bool(answered), OPERATIONS.get(operation, Operation.OPERATION_UNSPECIFIED),
                PRIORITIES.get(priority, PriorityClass.PRIORITY_CLASS_UNSPECIFIED),
                Usage(
                    input_tokens=given, cached_input_tokens=cached, output_tokens=output, reasoning_tokens=reasoning
                ),
                charge, version,
            )  # fmt: skip


async def charges(store: Store, scope: Scope) -> AsyncIterator[tuple[str, Decimal, Decimal]]:
    """(request, its cost, what its tokens cost at the rate in its row)"""
    ((count,),) = await store.rows(_COUNT, scope.asked)
    pages = int(count) // _PAGE + 1
    for page in range(pages):
        rows = await store.rows(_PAGE_OF_CHARGES, {**scope.asked, "pages": pages, "page": page})
        for request_id, first, answered, tokens, cached, output, reasoning, charged, version, *prices in rows:
            usage = Usage(
                input_tokens=tokens, cached_input_tokens=cached, output_tokens=output, reasoning_tokens=reasoning
            )  # fmt: skip
            rate = Rate(version, scope.record.currency, *prices)
            yield request_id, charged, cost(usage, rate, first_choice=bool(first), answered=bool(answered))

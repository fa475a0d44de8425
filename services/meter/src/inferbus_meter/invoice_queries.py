"""What the tables say for an invoice: sums of charges by all that makes a line, in a range of months."""

from collections.abc import Sequence
from typing import Any

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.invoice import Account, Delta, Group, Rerating, Saving, Spent, Sums
from inferbus_meter.core.months import ENDED_IN, begin_us, end_us

# The first choice of a call bears what is charged by the call: bit 7 of the last byte says that it is detached.
FIRST_CHOICE = "bitAnd(toUInt128(request_id), 127) = 0"
ANSWERED = "finish_reason IN ('stop', 'length')"
# Of a charge: sums of it (modulo 2^64) differ if any charge differs.
CHECKSUM = (
    "cityHash64(request_id, attempt, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, "
    "toString(cost))"
)  # fmt: skip
PRICES = (
    "input_per_million, cached_input_per_million, output_per_million, reasoning_per_million, per_call, minimum, factor"
)
# A row's place on all streams there have been: one that is made anew counts from 1 again. Rows that do not name their
# stream are of before, and so are invoices: their place is a sequence alone, which is lower than that of all that came
# later. A place is exact in JSON, too.
PLACE = "bitShiftLeft(toUInt64(stream_epoch), 40) + stream_seq"
# The queries are put together from constants; what is asked for is bound by the server.
RANGE = (
    "tenant_id = {tenant:String} AND end_time >= fromUnixTimestamp64Micro({start:Int64}) "
    "AND end_time < fromUnixTimestamp64Micro({end:Int64})"
)
_CURRENCIES = f"""
SELECT DISTINCT currency FROM charges WHERE {RANGE} AND currency != '' ORDER BY currency
"""  # noqa: S608
_CHARGES = f"""
SELECT {ENDED_IN} AS month, project_id, model, operation, rate_version, estimated,
       {PRICES},
       count(), countIf({FIRST_CHOICE} AND {ANSWERED}),
       sum(input_tokens - least(cached_input_tokens, input_tokens)), sum(least(cached_input_tokens, input_tokens)),
       sum(output_tokens - least(reasoning_tokens, output_tokens)), sum(least(reasoning_tokens, output_tokens)),
       sum(cost), sum({CHECKSUM}), max({PLACE})
FROM bills WHERE {RANGE} AND currency = {{currency:String}}
GROUP BY month, project_id, model, operation, rate_version, estimated, {PRICES}
"""  # noqa: S608
# The place is compared for a verification only: what came after an invoice is no part of it.
_CHARGES_UNTIL = _CHARGES.replace("GROUP BY", f"AND {PLACE} <= {{position:UInt64}}\nGROUP BY")
_ADJUSTMENTS = f"""
SELECT {ENDED_IN} AS month, project_id, model, rerate_id, to_rate_version, estimated, count(), sum(delta)
FROM (SELECT * FROM adjustments FINAL WHERE {RANGE} AND currency = {{currency:String}}) AS adjustment
LEFT JOIN
(
    SELECT request_id, estimated FROM bills
    WHERE {RANGE} AND request_id IN (SELECT request_id FROM adjustments WHERE {RANGE})
) AS bill ON bill.request_id = adjustment.request_id
GROUP BY month, project_id, model, rerate_id, to_rate_version, estimated
"""  # noqa: S608
_SPENT = f"""
SELECT {ENDED_IN} AS month, project_id, model, charge_rate_version, estimated,
       sum(charge), sum(toUInt64(input_tokens) + output_tokens)
FROM charges WHERE {RANGE} AND currency = {{currency:String}}
GROUP BY month, project_id, model, charge_rate_version, estimated
"""  # noqa: S608

_FIRST_CHARGED = f"""
SELECT {ENDED_IN} AS month FROM charges WHERE {RANGE} AND currency = {{currency:String}}
GROUP BY month HAVING sum(charge) != 0 ORDER BY month LIMIT 1
"""  # noqa: S608
_LAST_ISSUED = "SELECT sequence, hash FROM invoices FINAL ORDER BY sequence DESC LIMIT 1"


async def first_charged(store: Store, tenant_id: str, currency: str, first: str, last: str) -> str:
    """The first month from ``first`` to ``last``, both included, that has charges; empty without any."""
    if first > last:
        return ""
    rows = await store.rows(_FIRST_CHARGED, {**range_of(tenant_id, first, last), "currency": currency})
    return str(rows[0][0]) if rows else ""


async def last_issued(store: Store) -> tuple[int, str] | None:
    """Sequence and hash of the register's last entry that was copied into the tables, if any was."""
    rows = await store.rows(_LAST_ISSUED, {})
    return (int(rows[0][0]), str(rows[0][1])) if rows else None


async def currencies(store: Store, tenant_id: str, first: str, last: str) -> list[str]:
    """In which the tenant was charged from month ``first`` to ``last``, both included."""
    return [str(currency) for (currency,) in await store.rows(_CURRENCIES, range_of(tenant_id, first, last))]


async def charged(
    store: Store, tenant_id: str, currency: str, months: tuple[str, str], position: int | None = None
) -> tuple[Account, int]:
    """The account without discounts, and the PLACE of the last charge in it.

    ``months``: first and last, both included. With ``position`` only charges up to that place.
    """
    asked = {**range_of(tenant_id, *months), "currency": currency}
    if position is None:
        rows = await store.rows(_CHARGES, asked)
    else:
        rows = await store.rows(_CHARGES_UNTIL, {**asked, "position": position})
    charges = {_group(row): _sums(row) for row in rows}
    adjustments = {
        Rerating(month, project, model, rerate_id, version, bool(estimated)): Delta(int(requests), amount)
        for month, project, model, rerate_id, version, estimated, requests, amount in await store.rows(
            _ADJUSTMENTS, asked
        )
    }
    return Account(charges, adjustments, {}), max((int(row[-1]) for row in rows), default=0)


async def spent(store: Store, tenant_id: str, currency: str, months: tuple[str, str]) -> dict[Saving, Spent]:
    """What volume discounts are worked out from."""
    rows = await store.rows(_SPENT, {**range_of(tenant_id, *months), "currency": currency})
    return {
        Saving(month, project, model, version, bool(estimated)): Spent(charge, int(tokens))
        for month, project, model, version, estimated, charge, tokens in rows
    }


def range_of(tenant_id: str, first: str, last: str) -> dict[str, Any]:
    """What RANGE asks for: the tenant's, from month ``first`` to ``last``, both included."""
    return {"tenant": tenant_id, "start": begin_us(first), "end": end_us(last)}


def _group(row: Sequence[Any]) -> Group:
    month, project, model, operation, version = map(str, row[:5])
    return Group(month, project, model, operation, version, bool(row[5]), *row[6:13])


def _sums(row: Sequence[Any]) -> Sums:
    requests, calls, given, cached, output, reasoning = map(int, row[13:19])
    return Sums(requests, calls, given, cached, output, reasoning, row[19], int(row[20]))

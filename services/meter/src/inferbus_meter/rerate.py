"""Re-rating: the charges of a time range against the present price book, and corrections where they differ.

    1  count the requests of the range by hour, and cut it into parts of some ten thousand
    2  read a part with its present charges: cost and corrections
    3  work out what the book makes of each
    4  with ``apply``: insert a correction for each that differs

A correction is never changed. A run that was cut off is simply started again: what it has corrected is right by then
and is left alone. Two runs at once write the same rows (see :func:`.core.rerate.adjustment_rows`), which count once.
Memory: one part, and a sum for each tenant, model and pair of versions.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus.meter.v1.prices_pb2 import RerateChange, RerateProgress, RerateResponse, RerateSummary
from inferbus_rating import PriceBook, Scope
from inferbus_rating.amounts import EXACT
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.rerate import (
    Change,
    ChangeKey,
    Charged,
    Correction,
    adjustment_rows,
    correction_of,
    sum_up,
    windows,
)

_REQUESTS_A_PART = 50_000
_RANGE = (
    "end_time >= fromUnixTimestamp64Micro({start:Int64}) AND end_time < fromUnixTimestamp64Micro({end:Int64}) "
    "AND ({tenant:String} = '' OR tenant_id = {tenant:String})"
)
_HOURS = f"SELECT toUnixTimestamp(toStartOfHour(end_time)) AS hour, count() FROM requests WHERE {_RANGE} GROUP BY hour"  # noqa: S608 - a constant of ours
# Not from the view `charges`, which would read the corrections of all time for each part.
_CHARGES = f"""
SELECT UUIDStringToNum(toString(bill.request_id)), tenant_id, project_id, model, revision, key_id, operation,
       priority_class, finish_reason, toUnixTimestamp64Micro(accepted_time), toUnixTimestamp64Micro(end_time),
       input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost + adjusted,
       if(bill.currency = '', correction.currency, bill.currency),
       if(number > 0, to_rate_version, rate_version), number
FROM (SELECT * FROM requests FINAL WHERE {_RANGE}) AS bill
LEFT JOIN
(
    SELECT request_id, sum(delta) AS adjusted, max(adjustments.number) AS number,
           argMax(adjustments.to_rate_version, adjustments.number) AS to_rate_version,
           max(adjustments.currency) AS currency
    FROM adjustments FINAL
    WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM requests WHERE {_RANGE})
    GROUP BY request_id
) AS correction ON correction.request_id = bill.request_id
"""  # noqa: S608 - constants of ours


@dataclass(frozen=True, slots=True)
class RerateRange:
    """Requests that ended in [start, end), Unix microseconds, of a tenant (empty: of all)."""

    start_us: int
    end_us: int
    tenant_id: str


class Reratings:
    """Runs of this meter, one at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running = False

    async def run(
        self, wanted: RerateRange, book: PriceBook, *, apply: bool, reason: str
    ) -> AsyncGenerator[RerateResponse, None]:
        """Progress, changes, and at the end the summary. Without ``apply`` nothing is written.

        Raises InferBusError CONFLICT while another run is going on here, UNAVAILABLE without the store.
        """
        if self._running:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT, "rerate_running", "A re-rating is going on; wait for its end."
            )
        self._running = True
        try:
            async with aclosing(_run(self._store, wanted, book, apply=apply, reason=reason)) as events:
                async for event in events:
                    yield event
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        finally:
            self._running = False


async def _run(
    store: Store, wanted: RerateRange, book: PriceBook, *, apply: bool, reason: str
) -> AsyncGenerator[RerateResponse, None]:
    hours = await store.rows(_HOURS, _parameters(wanted, wanted.start_us, wanted.end_us))
    by_hour = {int(hour) * 1_000_000: int(count) for hour, count in hours}
    total = sum(by_hour.values())
    changes: dict[ChangeKey, Change] = {}
    summary = RerateSummary(applied=apply)
    rerate_id = f"rerate-{clock.now_us()}"
    for begin, end in windows(by_hour, wanted.start_us, wanted.end_us, _REQUESTS_A_PART):
        rows = await store.rows(_CHARGES, _parameters(wanted, begin, end))
        corrections = await asyncio.to_thread(_corrections, rows, book)
        sum_up(changes, corrections)
        summary.requests += len(rows)
        made = [one for one in corrections if not one.refused]
        summary.changed_requests += len(made)
        summary.refused_requests += len(corrections) - len(made)
        if apply and made:
            await _insert(store, made, rerate_id, reason)
            summary.rerate_id = rerate_id
        yield RerateResponse(progress=RerateProgress(requests_read=summary.requests, requests_total=total))
    for change in _changes(changes):
        yield RerateResponse(change=change)
    yield RerateResponse(summary=summary)


def _parameters(wanted: RerateRange, start_us: int, end_us: int) -> dict[str, Any]:
    return {"start": start_us, "end": end_us, "tenant": wanted.tenant_id}


def _corrections(rows: Iterable[Sequence[Any]], book: PriceBook) -> list[Correction]:
    """In a thread: it takes some 10 µs a request."""
    found = (correction_of(_charged(row), book) for row in rows)
    return [one for one in found if one is not None]


def _charged(row: Sequence[Any]) -> Charged:
    request_id, tenant, project, model, revision, key, operation, priority, finish, accepted, end, *rest = row
    inputs, cached, outputs, reasoning, charge, currency, version, number = rest
    return Charged(
        request_id=bytes(request_id),
        scope=Scope(tenant, project, model, revision),
        key_id=key,
        operation=operation,
        priority_class=priority,
        finish_reason=finish,
        accepted_us=int(accepted),
        end_us=int(end),
        usage=Usage(input_tokens=inputs, cached_input_tokens=cached, output_tokens=outputs, reasoning_tokens=reasoning),
        charge=charge,
        currency=currency,
        rate_version=version,
        corrections=int(number),
    )


async def _insert(store: Store, corrections: Sequence[Correction], rerate_id: str, reason: str) -> None:
    rows = adjustment_rows(corrections, rerate_id, reason, clock.now_us())
    await store.insert(rows.table, rows.data, f"{rerate_id}-{hashlib.sha256(rows.data).hexdigest()}")


def _changes(changes: dict[ChangeKey, Change]) -> list[RerateChange]:
    return [
        RerateChange(
            tenant_id=tenant, model=model, from_rate_version=was, to_rate_version=to, currency=currency,
            requests=change.requests, from_charge=decimal_text(change.from_charge),
            to_charge=decimal_text(change.to_charge),
            delta=decimal_text(EXACT.subtract(change.to_charge, change.from_charge)), refused=refused,
        )
        for (tenant, model, was, to, currency, refused), change in sorted(changes.items())
    ]  # fmt: skip

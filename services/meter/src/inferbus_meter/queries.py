"""Questions that the meter answers from the tables: usage, and the last moments for a live display."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from inferbus.meter.v1.meter_pb2 import GetLiveResponse, GetUsageResponse, Percentiles, UsageRow

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.spans import accepted_of
from inferbus_meter.partitions import BILLS_OF_SPAN, first_month

_NEVER_US = 4_102_444_800_000_000  # 2100: what a DateTime64 of microseconds surely holds
_ENDED = "end_time >= fromUnixTimestamp64Micro({start:Int64}) AND end_time < fromUnixTimestamp64Micro({end:Int64})"
_USAGE = f"""
SELECT tenant_id, project_id, model, count(), sum(input_tokens), sum(cached_input_tokens), sum(output_tokens),
       sum(charge), currency, estimated
FROM charges
WHERE {_ENDED} AND {accepted_of(_ENDED)} AND ({{tenant:String}} = '' OR tenant_id = {{tenant:String}})
GROUP BY tenant_id, project_id, model, currency, estimated
ORDER BY tenant_id, project_id, model, currency, estimated
"""  # noqa: S608 - no value in it
_LIVE_REQUESTS = f"""
SELECT count(), countIf(finish_reason = 'error'),
       quantiles(0.5, 0.95, 0.99)(ttft_us), quantiles(0.5, 0.95, 0.99)(e2e_us)
{BILLS_OF_SPAN}
"""
# What the window can hold at most lies in the parts of its months; the sorting key's five minutes prune within them.
_LIVE_TOKENS = """
SELECT count(), quantilesIf(0.5, 0.95, 0.99)(gap_us, `index` > 0)
FROM token_events WHERE time >= fromUnixTimestamp64Micro({start:Int64})
"""


async def usage(store: Store, start_us: int, end_us: int, tenant_id: str) -> GetUsageResponse:
    """Sums of requests that ended in [start, end), Unix microseconds. An empty ``tenant_id`` means all.

    Tokens that were counted and tokens that were estimated are never in one sum.
    """
    rows = await store.rows(_USAGE, {"start": start_us, "end": end_us, "tenant": tenant_id})
    return GetUsageResponse(rows=[_usage_row(row) for row in rows])


async def live(store: Store, now_us: int, window: timedelta) -> GetLiveResponse:
    """Counts and percentiles of the ``window`` before ``now_us`` (Unix microseconds); no lag yet."""
    start_us = now_us - round(window.total_seconds() * 1_000_000)
    month = await first_month(store, start_us, _NEVER_US)
    span = {"low": start_us, "high": _NEVER_US, "month": month}
    (requests, errors, ttft, e2e), *_ = await store.rows(_LIVE_REQUESTS, span)
    (tokens, itl), *_ = await store.rows(_LIVE_TOKENS, {"start": start_us})
    answer = GetLiveResponse(requests=requests, errors=errors, output_tokens=tokens)
    answer.window.FromTimedelta(window)
    for field, values in ((answer.ttft, ttft), (answer.itl, itl), (answer.e2e, e2e)):
        _put_percentiles(field, values)
    return answer


def _put_percentiles(into: Percentiles, micros: Sequence[float]) -> None:
    """Nothing is set where there was nothing to measure (not a number)."""
    fields: tuple[Duration, ...] = (into.p50, into.p95, into.p99)
    for field, value in zip(fields, micros, strict=True):
        if value == value:
            field.FromMicroseconds(round(value))


def _usage_row(row: Sequence[Any]) -> UsageRow:
    tenant, project, model, requests, inputs, cached, outputs, cost, currency, estimated = row
    return UsageRow(
        tenant_id=tenant, project_id=project, model=model, requests=requests, input_tokens=inputs,
        cached_input_tokens=cached, output_tokens=outputs, cost=decimal_text(cost), currency=currency,
        estimated=bool(estimated),
    )  # fmt: skip

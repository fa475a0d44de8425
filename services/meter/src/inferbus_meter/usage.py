"""What was used, what it costs, and what it earned: the answers of UsageService, from the tables."""

from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.meter.v1.usage_pb2 import (
    CostBucket,
    QueryCostsResponse,
    QueryMarginResponse,
    QueryUsageResponse,
    UsageBucket,
)
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.answers import fitting
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.discounts import Tiered, volume_discounts
from inferbus_meter.core.line_items import Charged, LineItem, line_items
from inferbus_meter.core.margin import OperatingPrices, margin_rows
from inferbus_meter.core.up_queries import unwatched_us, up_query, watched_query
from inferbus_meter.core.usage import (
    CSV,
    MOST_ROWS,
    Query,
    Question,
    cost_query,
    export_query,
    group_of,
    line_item_query,
    margin_query,
    month_tokens_query,
    spreadsheet_query,
    tiered_query,
    usage_query,
)

# What discounts are worked out from is told apart by more than an answer is.
_MOST_TIERED = 100_000
# Of one message to whoever reads an export.
_PART_BYTES = 1 << 18


async def usage(store: Store, asked: Question) -> QueryUsageResponse:
    """As all here: raises InferBusError INVALID_ARGUMENT for more than an answer can hold, and one of STORE_ERRORS."""
    rows = await _rows(store, usage_query(asked))
    return fitting(QueryUsageResponse(rows=[_usage_bucket(asked, row) for row in rows]))


def _usage_bucket(asked: Question, row: Sequence[Any]) -> UsageBucket:
    end = 1 + len(asked.dimensions)
    estimated, requests, choices, errors, inputs, cached, outputs, reasoning = row[end:]
    return UsageBucket(
        bucket_time=Timestamp(seconds=row[0]), group=group_of(asked.dimensions, row[1:end]), estimated=estimated,
        requests=requests, choices=choices, errors=errors, input_tokens=inputs, cached_input_tokens=cached,
        output_tokens=outputs, reasoning_tokens=reasoning,
    )  # fmt: skip


async def costs(store: Store, asked: Question) -> QueryCostsResponse:
    """Charges with their corrections."""
    end = 1 + len(asked.dimensions)
    rows = await _rows(store, cost_query(asked))
    found = [_cost_bucket(asked, row, LineItem("", row[end + 2], None)) for row in rows]
    return fitting(QueryCostsResponse(rows=found))


async def costs_by_line_item(store: Store, asked: Question, book: PriceBook) -> QueryCostsResponse:
    """:func:`costs`, each split by model and by what was charged for; and lines of the volume discounts, which are in
    no charge."""
    end = 1 + len(asked.dimensions)
    groups = groupby(await _rows(store, line_item_query(asked)), lambda row: tuple(row[: end + 2]))
    # Charged's fields are the columns after the key in their order.
    items = {_hashable(key): (key, line_items(Charged(*row[end + 2 :]) for row in rows)) for key, rows in groups}
    for key, discounts in await _discounts(store, asked, book):
        items.setdefault(_hashable(key), (tuple(key), []))[1].extend(discounts)
    found = [_cost_bucket(asked, key, line) for key, lines in items.values() for line in lines]
    return fitting(QueryCostsResponse(rows=found))


async def _discounts(
    store: Store, asked: Question, book: PriceBook
) -> Sequence[tuple[Sequence[Any], Sequence[LineItem]]]:
    """By the bucket, the dimensions, estimated and currency."""
    if not book.tiers:
        return ()
    end = 1 + len(asked.dimensions)
    rows = await _rows(store, tiered_query(asked, sorted(book.tiers)), _MOST_TIERED)
    keys = {_hashable(row[: end + 2]): row[: end + 2] for row in rows}
    charges = [(_hashable(row[: end + 2]), str(row[end + 1]), Tiered(*row[end + 2 :])) for row in rows]
    if not charges:
        return ()
    tenants, models, months = (
        sorted({getattr(of, name) for _, _, of in charges}) for name in ("tenant_id", "model", "month")
    )
    tokens = await _rows(store, month_tokens_query(tenants, models, (months[0], months[-1])), _MOST_TIERED)
    found = volume_discounts(charges, {tuple(row[:4]): int(row[4]) for row in tokens}, book.tiers)
    return [(keys[key], lines) for key, lines in found.items()]


def _hashable(values: Sequence[Any]) -> tuple[Any, ...]:
    """Tags are a dict."""
    return tuple(tuple(sorted(value.items())) if isinstance(value, dict) else value for value in values)


def _cost_bucket(asked: Question, row: Sequence[Any], line: LineItem) -> CostBucket:
    """``row``: the bucket, the dimensions, estimated, currency."""
    end = 1 + len(asked.dimensions)
    return CostBucket(
        bucket_time=Timestamp(seconds=row[0]), group=group_of(asked.dimensions, row[1:end]), estimated=row[end],
        currency=row[end + 1], line_item=line.name, amount=decimal_text(line.amount), quantity=line.quantity,
    )  # fmt: skip


async def export(store: Store, asked: Question, format_name: str) -> AsyncIterator[bytes]:
    """A file of all that the question covers, part by part."""
    query = spreadsheet_query(asked) if format_name == CSV else export_query(asked)
    waiting = bytearray()
    async for part in store.stream(query.sql, query.parameters, format_name):
        waiting += part
        while len(waiting) >= _PART_BYTES:
            yield bytes(waiting[:_PART_BYTES])
            del waiting[:_PART_BYTES]
    if waiting:
        yield bytes(waiting)


async def margin(store: Store, start_us: int, end_us: int, prices: OperatingPrices) -> QueryMarginResponse:
    rows = await _rows(store, margin_query(start_us, end_us))
    up = await _rows(store, up_query(start_us, end_us))
    ((watched_us, *first),) = await _rows(store, watched_query(start_us, end_us))
    unwatched = unwatched_us(start_us, end_us, clock.now_us(), (watched_us, *first))
    answer = QueryMarginResponse(
        rows=margin_rows(rows, up, prices),
        gpu_hour_price="" if prices.gpu_hour is None else decimal_text(prices.gpu_hour),
        kwh_price="" if prices.kwh is None else decimal_text(prices.kwh),
        currency=prices.currency,
        gpus_per_worker=prices.gpus_per_worker,
    )
    answer.watched.FromMicroseconds(int(watched_us))
    answer.unwatched.FromMicroseconds(unwatched)
    return answer


async def _rows(store: Store, query: Query, most: int | None = None) -> Sequence[Sequence[Any]]:
    most = most or MOST_ROWS
    rows = await store.rows(f"{query.sql}\nLIMIT {most + 1}", query.parameters)
    if len(rows) > most:
        raise invalid(
            f"That are more than {most} rows; ask for fewer buckets at a time, or for fewer groups.",
            reason="too_many_rows",
        )
    return rows

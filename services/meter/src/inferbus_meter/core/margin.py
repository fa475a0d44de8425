"""What was earned with a worker against what its GPUs cost. A report, no bill. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

from inferbus.meter.v1.usage_pb2 import MarginRow, Revenue
from inferbus_rating.amounts import EXACT, rounded

from inferbus_meter.core.decimals import decimal_text

_MICROSECONDS_AN_HOUR = Decimal(3_600_000_000)
_JOULES_A_KWH = Decimal(3_600_000)


@dataclass(frozen=True, slots=True)
class OperatingPrices:
    """In ``currency``; None: not known, and nothing is said of it. ``gpus_per_worker``: of one that names none."""

    gpu_hour: Decimal | None
    kwh: Decimal | None
    currency: str
    gpus_per_worker: int


@dataclass(frozen=True, slots=True)
class Up:
    """Microseconds: up; of them of starts that named no GPUs; of all GPUs that were named. See
    :func:`inferbus_meter.core.up_queries.up_query`."""

    up_us: int = 0
    unnamed_us: int = 0
    gpu_us: int = 0
    most_gpus: int = 0
    gpu_names: str = ""


_NEVER_UP = Up()
_NAMED = 4
_NOTHING_EARNED: tuple[Any, ...] = (0, 0, 0, 0, 0, ([], []), 0, 0.0, 0)


def margin_rows(
    earned: Iterable[Sequence[Any]], up: Iterable[Sequence[Any]], prices: OperatingPrices
) -> list[MarginRow]:
    """``earned``: rows of :func:`inferbus_meter.core.usage.margin_query`; ``up``: of
    :func:`inferbus_meter.core.up_queries.up_query`. One that was up and earned nothing has a row, too."""
    ups = {tuple(row[:_NAMED]): Up(*row[_NAMED:]) for row in up}
    rows = {tuple(row[:_NAMED]): row for row in earned}
    return [
        margin_row(rows.get(name, (*name, *_NOTHING_EARNED)), ups.get(name, _NEVER_UP), prices)
        for name in sorted(rows.keys() | ups.keys())
    ]


def margin_row(values: Sequence[Any], up: Up, prices: OperatingPrices) -> MarginRow:
    model, revision, worker, engine, choices, *tokens, revenue, busy_us, joules, measured = values
    inputs, outputs, estimated_inputs, estimated_outputs = tokens
    row = MarginRow(
        model=model, revision=revision, worker=worker, engine=engine, choices=choices, input_tokens=inputs,
        output_tokens=outputs, measured_choices=measured, estimated_input_tokens=estimated_inputs,
        estimated_output_tokens=estimated_outputs,
    )  # fmt: skip
    earned: Mapping[str, Decimal] = dict(zip(*revenue, strict=True))
    row.revenue.extend(
        Revenue(value=decimal_text(value), currency=currency) for currency, value in sorted(earned.items())
    )
    row.busy.FromMicroseconds(int(busy_us))
    if measured:
        row.energy_joules = joules
    hours = _gpu_hours(row, int(busy_us), up, prices.gpus_per_worker)
    spent = []
    if prices.gpu_hour is not None:
        spent.append(rounded(EXACT.multiply(hours, prices.gpu_hour)))
        row.gpu_cost = decimal_text(spent[-1])
    if prices.kwh is not None and measured:
        # Measured to a joule at best.
        kwh = EXACT.divide(Decimal(round(joules)), _JOULES_A_KWH)
        spent.append(rounded(EXACT.multiply(kwh, prices.kwh)))
        row.energy_cost = decimal_text(spent[-1])
    if spent:
        row.margin = decimal_text(reduce(EXACT.subtract, spent, earned.get(prices.currency, Decimal(0))))
    return row


def _gpu_hours(row: MarginRow, busy_us: int, up: Up, gpus_per_worker: int) -> Decimal:
    """Of all GPUs of the worker while it was up. What no meter watched counts as far as it was busy."""
    gpu_us = up.gpu_us + up.unnamed_us * gpus_per_worker
    # One that had another number of GPUs after a restart was busy with as many as it had on average.
    busy_gpu_us = busy_us * gpu_us // up.up_us if up.up_us else busy_us * gpus_per_worker
    hours = EXACT.divide(Decimal(max(gpu_us, busy_gpu_us)), _MICROSECONDS_AN_HOUR)
    busy_hours = EXACT.divide(Decimal(busy_gpu_us), _MICROSECONDS_AN_HOUR)
    row.gpu_hours, row.busy_gpu_hours = float(hours), float(busy_hours)
    row.gpus, row.gpu_names = up.most_gpus or gpus_per_worker, up.gpu_names
    if up.up_us:
        row.up.FromMicroseconds(up.up_us)
        if hours:
            row.utilization = float(EXACT.divide(busy_hours, hours))
    return hours

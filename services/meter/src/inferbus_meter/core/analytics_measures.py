"""The closed list of what analytics can be asked: which rows, which sums of them, and what is said of the sums. Pure.

Percentiles: a latency is kept as how many had about which value (``latency_counts``, within 1.6 %), so those of any
range and group are taken from all of its values together, ``quantilesExactWeighted(value, how many)``: histograms add
up, whereas percentiles of minutes or workers do not, and are never averaged here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from inferbus.meter.v1.analytics_pb2 import AnalyticsMeasure, AnalyticsUnit
from inferbus_rating.amounts import EXACT, MILLION

from inferbus_meter.core import analytics_sources as sources
from inferbus_meter.core.analytics_sources import Source

Sums = Mapping[str, Any]
_SECONDS, _COUNT = AnalyticsUnit.ANALYTICS_UNIT_SECONDS, AnalyticsUnit.ANALYTICS_UNIT_COUNT
_RATE, _SHARE = AnalyticsUnit.ANALYTICS_UNIT_PER_SECOND, AnalyticsUnit.ANALYTICS_UNIT_SHARE
_AMOUNT, _JOULES = AnalyticsUnit.ANALYTICS_UNIT_AMOUNT, AnalyticsUnit.ANALYTICS_UNIT_JOULES
# A millionth of the currency: a figure to compare, not to pay.
_SHOWN = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Column:
    """``of``: the value from a row's sums and the seconds of its step; None: it cannot be said."""

    name: str
    unit: AnalyticsUnit.ValueType
    description: str
    of: Callable[[Sums, float], float | Decimal | None]


@dataclass(frozen=True, slots=True)
class Measure:
    """``rows``: where it reads, the first that has what is asked for. ``keys``: columns that its rows are told apart by
    in any case. ``weight``: of which groups there is most."""

    rows: Sequence[Source]
    sums: Mapping[str, str]
    weight: str
    columns: Sequence[Column]
    keys: Sequence[str] = ()


def _each(name: str, unit: AnalyticsUnit.ValueType, description: str, scale: float = 1.0) -> Column:
    return Column(name, unit, description, lambda sums, _: float(sums[name]) * scale)


def _rate(name: str, of: str, description: str) -> Column:
    return Column(name, _RATE, description, lambda sums, seconds: sums[of] / seconds)


def _share(name: str, part: str, whole: str, description: str) -> Column:
    return Column(name, _SHARE, description, lambda sums, _: sums[part] / sums[whole] if sums[whole] else None)


def _percentile(at: int, name: str, description: str) -> Column:
    return Column(name, _SECONDS, description, lambda sums, _: sums["us"][at] / 1_000_000)


def _per_million(sums: Sums, _: float) -> Decimal | None:
    if not sums["tokens"]:
        return None
    return EXACT.quantize(EXACT.divide(EXACT.multiply(sums["charge"], MILLION), Decimal(sums["tokens"])), _SHOWN)


def _latency(rows: Sequence[Source], counted: str) -> Measure:
    return Measure(
        rows,
        {"us": "quantilesExactWeighted(0.5, 0.95, 0.99)(value_us, n)", "measured": "sum(n)"},
        "sum(n)",
        (
            _percentile(0, "p50", "Half of them took no longer."),
            _percentile(1, "p95", "19 of 20 took no longer."),
            _percentile(2, "p99", "99 of 100 took no longer."),
            _each("measured", _COUNT, counted),
        ),
    )


def _of_requests(name: str) -> Measure:
    return _latency(sources.latency_sources(name), "Requests that had it.")


_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
_HOW = {"input": "Of all of the input.", "cached_input": "Input that came from the KV cache, part of it.",
        "output": "Of the output that is billed.", "reasoning": "Output spent on reasoning, part of it."}  # fmt: skip
_BY_END = {
    "requests": "sum(requests)",
    "answered": "sumIf(requests, finish_reason IN ('stop', 'length'))",
    "cancelled": "sumIf(requests, finish_reason = 'cancelled')",
    "failed": "sumIf(requests, finish_reason = 'error')",
}

MEASURES: dict[AnalyticsMeasure.ValueType, Measure] = {
    AnalyticsMeasure.ANALYTICS_MEASURE_TTFT: _of_requests("ttft"),
    AnalyticsMeasure.ANALYTICS_MEASURE_ITL: _latency(sources.GAPS, "Gaps between two tokens."),
    AnalyticsMeasure.ANALYTICS_MEASURE_TPOT: _of_requests("tpot"),
    AnalyticsMeasure.ANALYTICS_MEASURE_E2E: _of_requests("e2e"),
    AnalyticsMeasure.ANALYTICS_MEASURE_QUEUE: _of_requests("queue"),
    AnalyticsMeasure.ANALYTICS_MEASURE_REQUESTS: Measure(
        sources.REQUESTS, _BY_END, "sum(requests)",
        (
            _rate("request_rate", "requests", "Requests that ended."),
            _rate("answered_rate", "answered", "Answered to their end (stop, length)."),
            _rate("cancelled_rate", "cancelled", "Left by their client."),
            _rate("failed_rate", "failed", "Failed."),
            _share("failed_share", "failed", "requests", "Failed, of all that ended."),
            _each("requests", _COUNT, "Requests that ended."),
            _each("failed", _COUNT, "Requests that failed."),
        ),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_TOKENS: Measure(
        sources.REQUESTS, {name: f"sum({name})" for name in _TOKENS}, "sum(input_tokens + output_tokens)",
        (
            *(_rate(f"{name.removesuffix('_tokens')}_rate", name, _HOW[name.removesuffix("_tokens")])
              for name in _TOKENS),
            *(_each(name, _COUNT, _HOW[name.removesuffix("_tokens")]) for name in _TOKENS),
        ),
        ("estimated",),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_OUTPUT: Measure(
        sources.TOKENS_MADE, {"output_tokens": "sum(tokens)"}, "sum(tokens)",
        (
            _rate("output_rate", "output_tokens", "Output tokens as they were made, void ones included."),
            _each("output_tokens", _COUNT, "How many."),
        ),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_GOODPUT: Measure(
        sources.OFFERED, {"offered": "count()", "good": "countIf(good)"}, "count()",
        (
            _rate("good_rate", "good", "Answered within the targets."),
            _rate("offered_rate", "offered", "All but what clients left."),
            _share("good_share", "good", "offered", "Within the targets, of all but what clients left."),
            _each("offered", _COUNT, "All but what clients left."),
        ),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_STALLS: Measure(
        sources.TOKENS_MADE,
        {"stalls": "sum(stalls)", "stalled": "sum(stalled_us)", "longest": "max(longest_gap_us)",
         "tokens": "sum(tokens)"},
        "sum(stalls)",
        (
            _each("stalls", _COUNT, "Gaps of more than a second."),
            _each("stalled", _SECONDS, "Those gaps together.", 1e-6),
            _each("longest", _SECONDS, "The longest gap between two tokens.", 1e-6),
            Column(
                "per_million", _COUNT, "Stalls in a million tokens.",
                lambda sums, _: 1e6 * sums["stalls"] / sums["tokens"] if sums["tokens"] else None,
            ),
        ),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_CACHE: Measure(
        sources.REQUESTS, {name: f"sum({name})" for name in _TOKENS[:2]}, "sum(input_tokens)",
        (
            _share("hit_rate", "cached_input_tokens", "input_tokens", "Input that came from the KV cache."),
            _each("input_tokens", _COUNT, "All of the input."),
            _each("cached_input_tokens", _COUNT, "Of it from the KV cache."),
        ),
        ("estimated",),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_ERRORS: Measure(
        sources.FAILED, {"failed": "sum(requests)"}, "sum(requests)",
        (_each("failed", _COUNT, "Requests that failed so."), _rate("failed_rate", "failed", "The same by time.")),
        ("error_class", "error_reason"),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_INTERRUPTIONS: Measure(
        sources.INTERRUPTED,
        {"interrupted": "count()", "void_tokens": "sum(void)", "waited": "sum(waited_us)", "lost": "sum(lost)"},
        "count()",
        (
            _each("interrupted", _COUNT, "Requests that another attempt finished."),
            _each("void_tokens", _COUNT, "Tokens that were made for them in vain; not charged."),
            _each("waited", _SECONDS, "How long their clients waited for the next token, together.", 1e-6),
            Column(
                "lost", _AMOUNT, "What the void tokens would have brought.",
                lambda sums, _: EXACT.divide(sums["lost"], MILLION).quantize(_SHOWN),
            ),
        ),
        ("currency",),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_COST: Measure(
        sources.CHARGED, {"tokens": "sum(tokens)", "charge": "sum(charge)"}, "sum(charge)",
        (
            Column("per_million", _AMOUNT, "Charges for a million tokens, input and output.", _per_million),
            Column("charge", _AMOUNT, "Charges, corrections included.", lambda sums, _: sums["charge"]),
            _each("tokens", _COUNT, "Input and output tokens of priced requests."),
        ),
        ("estimated", "currency"),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_IN_FLIGHT: Measure(
        sources.UNDER_WAY, {"busy_us": "sum(busy_us)"}, "sum(busy_us)",
        (
            Column(
                "in_flight", _COUNT, "On average at a time, of requests that have ended by now.",
                lambda sums, seconds: sums["busy_us"] / 1e6 / seconds,
            ),
        ),
    ),
    AnalyticsMeasure.ANALYTICS_MEASURE_BILLING_LAG: _latency(sources.STORED, "Requests that ended."),
    AnalyticsMeasure.ANALYTICS_MEASURE_ENERGY: Measure(
        sources.REQUESTS, {"joules": "sum(joules)", "tokens": "sum(measured_tokens)"}, "sum(joules)",
        (
            Column(
                "per_token", _JOULES, "Of input and output tokens of requests whose energy was measured.",
                lambda sums, _: sums["joules"] / sums["tokens"] if sums["tokens"] else None,
            ),
            _each("joules", _JOULES, "All that was measured."),
            _each("tokens", _COUNT, "Tokens of those requests."),
        ),
    ),
}  # fmt: skip

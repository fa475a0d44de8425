"""What an answer must be: plain sums and sorted lists over the same requests and tokens."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_meter.core.analytics import Question

from services.meter.tests.analytics.rows import (
    DIMENSIONS,
    LATENCIES,
    OF_TOKENS,
    ROWS,
    SECOND,
    STALL_US,
    Measure,
    Request,
    Token,
)


def near(us: int) -> int:
    """The middle of the bucket that a rollup keeps of it."""
    width = max(1, (1 << (us.bit_length() - 1)) // 32) if us else 1
    return us // width * width + width // 2


def percentile(values: Sequence[int], level: float) -> float:
    return sorted(values)[max(1, math.ceil(len(values) * level)) - 1] / SECOND


def latency_of(values: list[int]) -> dict[str, float]:
    levels = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {**{name: percentile(values, level) for name, level in levels.items()}, "measured": len(values)}


class Model:
    """What an answer must be, from the rows as they are."""

    def __init__(self, asked: Question, *, exact: bool) -> None:
        self.asked, self.exact = asked, exact
        self.names = [DIMENSIONS[one - 1] for one in asked.dimensions]
        self.found: dict[tuple[Any, ...], list[Any]] = defaultdict(list)

    def step(self, us: int) -> int:
        steps = self.asked.steps
        second = us // SECOND
        if steps.seconds == steps.end - steps.start and steps.origin == steps.start:
            return steps.start
        return second // steps.seconds * steps.seconds

    def within(self, us: int) -> bool:
        return self.asked.steps.start * SECOND <= us < self.asked.steps.end * SECOND

    def chosen(self) -> Iterator[Request]:
        only = self.asked.filter
        classes = {PriorityClass.Name(one).removeprefix("PRIORITY_CLASS_").lower() for one in only.priority_classes}
        wanted = (only.tenant_ids, only.project_ids, only.models, only.revisions, only.workers, classes)
        limits = {name: set(values) for name, values in zip(DIMENSIONS, wanted, strict=True) if values}
        yield from (row for row in ROWS if all(getattr(row, name) in values for name, values in limits.items()))

    def add(self, row: Request, us: int, value: Any, *more: Any) -> None:
        self.found[self.step(us), *(getattr(row, name) for name in self.names), *more].append(value)

    def answer(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        measure = self.asked.measure
        rows = [row for row in self.chosen() if self.within(row.end_us)]
        if measure in LATENCIES:
            for row in rows:
                value = row.times[LATENCIES[measure]]
                if value is not None:
                    self.add(row, row.end_us, value if self.exact else near(value))
            return self._each(lambda values, _: latency_of(values))
        if measure in OF_TOKENS:
            for row in self.chosen():
                for token in row.tokens:
                    if self.within(token.us) and (token.index > 0 or measure != Measure.ANALYTICS_MEASURE_ITL):
                        self.add(row, token.us, token)
            return self._each(self._of_tokens)
        if measure == Measure.ANALYTICS_MEASURE_IN_FLIGHT:
            return self._in_flight()
        for row in rows:
            self._of_row(row)
        return self._each(self._of_requests)

    def _each(self, numbers: Callable[[list[Any], float], dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
        steps = self.asked.steps
        return {
            key: numbers(values, min(key[0] + steps.seconds, steps.end) - max(key[0], steps.start))
            for key, values in self.found.items()
        }

    def _of_tokens(self, tokens: list[Token], seconds: float) -> dict[str, Any]:
        if self.asked.measure == Measure.ANALYTICS_MEASURE_ITL:
            return latency_of([one.gap_us if self.exact else near(one.gap_us) for one in tokens])
        if self.asked.measure == Measure.ANALYTICS_MEASURE_OUTPUT:
            return {"output_tokens": len(tokens), "output_rate": len(tokens) / seconds}
        gaps = [one.gap_us for one in tokens if one.index > 0]
        stalls = [gap for gap in gaps if gap > STALL_US]
        return {
            "stalls": len(stalls), "stalled": sum(stalls) / SECOND, "longest": max(gaps, default=0) / SECOND,
            "per_million": 1e6 * len(stalls) / len(tokens),
        }  # fmt: skip

    def _in_flight(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        steps = self.asked.steps
        begins = range(self.step(steps.start * SECOND), steps.end, steps.seconds)
        for row in self.chosen():
            for begin in begins:
                low = max(begin, steps.start) * SECOND
                high = min(begin + steps.seconds, steps.end) * SECOND
                if low <= row.end_us and row.accepted_us < high:
                    self.add(row, begin * SECOND, max(0, min(row.end_us, high) - max(row.accepted_us, low)))
        return self._each(lambda values, seconds: {"in_flight": sum(values) / SECOND / seconds})

    def _of_row(self, row: Request) -> None:
        measure, more = self.asked.measure, ()
        if measure in (Measure.ANALYTICS_MEASURE_TOKENS, Measure.ANALYTICS_MEASURE_CACHE):
            more = (row.estimated,)
        elif measure == Measure.ANALYTICS_MEASURE_ERRORS:
            more = row.error
        elif measure == Measure.ANALYTICS_MEASURE_COST:
            more = (row.estimated, row.currency)
        elif measure == Measure.ANALYTICS_MEASURE_INTERRUPTIONS:
            more = (row.currency,)
        counts = {
            Measure.ANALYTICS_MEASURE_GOODPUT: row.finish != "cancelled" and row.operation != "embeddings",
            Measure.ANALYTICS_MEASURE_ERRORS: row.finish == "error",
            Measure.ANALYTICS_MEASURE_COST: row.currency != "",
            Measure.ANALYTICS_MEASURE_INTERRUPTIONS: row.attempt > 1,
        }
        if counts.get(measure, True):
            self.add(row, row.end_us, row, *more)

    def _of_requests(self, rows: list[Request], seconds: float) -> dict[str, Any]:
        measure = self.asked.measure
        inputs, cached, outputs, reasoning = (sum(row.usage[at] for row in rows) for at in range(4))
        if measure == Measure.ANALYTICS_MEASURE_REQUESTS:
            ends = {name: sum(row.finish in how for row in rows) for name, how in {
                "answered": ("stop", "length"), "cancelled": ("cancelled",), "failed": ("error",),
            }.items()}  # fmt: skip
            return {
                "request_rate": len(rows) / seconds, **{f"{name}_rate": n / seconds for name, n in ends.items()},
                "failed_share": ends["failed"] / len(rows), "requests": len(rows), "failed": ends["failed"],
            }  # fmt: skip
        if measure == Measure.ANALYTICS_MEASURE_TOKENS:
            sums = {"input": inputs, "cached_input": cached, "output": outputs, "reasoning": reasoning}
            return {f"{name}_tokens": n for name, n in sums.items()} | {
                f"{name}_rate": n / seconds for name, n in sums.items()
            }
        if measure == Measure.ANALYTICS_MEASURE_CACHE:
            shown = {"input_tokens": inputs, "cached_input_tokens": cached}
            return shown | ({"hit_rate": cached / inputs} if inputs else {})
        if measure == Measure.ANALYTICS_MEASURE_ERRORS:
            return {"failed": len(rows), "failed_rate": len(rows) / seconds}
        if measure == Measure.ANALYTICS_MEASURE_GOODPUT:
            good = sum(self._good(row) for row in rows)
            return {
                "good_rate": good / seconds, "offered_rate": len(rows) / seconds, "good_share": good / len(rows),
                "offered": len(rows),
            }  # fmt: skip
        if measure == Measure.ANALYTICS_MEASURE_ENERGY:
            measured = [row for row in rows if row.energy is not None]
            joules, tokens = 2.5 * len(measured), sum(row.usage[0] + row.usage[2] for row in measured)
            return {"joules": joules, "tokens": tokens} | ({"per_token": joules / tokens} if tokens else {})
        if measure == Measure.ANALYTICS_MEASURE_COST:
            charge, tokens = sum(row.cost for row in rows), inputs + outputs
            shown = {"tokens": tokens, "charge": charge}
            return shown | (
                {"per_million": (charge * 1_000_000 / tokens).quantize(Decimal("0.000001"))} if tokens else {}
            )
        assert measure == Measure.ANALYTICS_MEASURE_INTERRUPTIONS
        return self._interrupted(rows)

    def _good(self, row: Request) -> bool:
        met = all((row.times[name] or 0) <= most for name, most in self.asked.targets_us.items())
        return row.finish in ("stop", "length") and met

    def _interrupted(self, rows: list[Request]) -> dict[str, Any]:
        void = sum(max(len(row.tokens) - row.usage[2], 0) for row in rows)
        waited = sum(
            token.gap_us
            for row in rows
            for token in row.tokens
            if token.attempt > 1 and token.index == row.usage[2] // 2
        )
        shown = {"interrupted": len(rows), "void_tokens": void, "waited": waited / SECOND}
        return shown | {"lost": Decimal(void) * 4 / 1_000_000}

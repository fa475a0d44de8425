"""A sum of charges split into what was charged for: input, output, calls. Pure, exact decimals."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce

from inferbus_rating.amounts import EXACT, MILLION, rounded


@dataclass(frozen=True, slots=True)
class Charged:
    """Requests of one model that were charged at the same rates. Amounts per million tokens; tokens are disjoint:
    ``fresh`` input was not in the cache, ``spoken`` output is not reasoning. ``adjusted`` is a part of ``charge``."""

    model: str
    per_fresh: Decimal
    per_cached: Decimal
    per_spoken: Decimal
    per_reasoning: Decimal
    factor: Decimal
    fresh: int
    cached: int
    spoken: int
    reasoning: int
    charge: Decimal
    adjusted: Decimal


@dataclass(frozen=True, slots=True)
class LineItem:
    """``quantity``: tokens; None for what is not counted in them."""

    name: str
    amount: Decimal
    quantity: int | None


def line_items(charges: Iterable[Charged]) -> list[LineItem]:
    """By model and kind, those of 0 tokens and 0 money left out. Their sum is the sum of ``charge`` exactly.

    A kind's amount is rounded half-even to 12 decimals; ``calls`` is what remains: prices per call, what minimums add,
    and the difference between the requests' own rounding and this one. Corrections were made by re-rating: they are
    the difference to the charge at the rates that the tokens' lines are worked out with.
    """
    by_model: dict[str, list[Charged]] = {}
    for one in charges:
        by_model.setdefault(one.model, []).append(one)
    return [line for model in sorted(by_model) for line in _of_model(model, by_model[model])]


def _of_model(model: str, charges: list[Charged]) -> Iterator[LineItem]:
    kinds = {
        "input_tokens": [(one.fresh, one.per_fresh, one.factor) for one in charges],
        "cached_input_tokens": [(one.cached, one.per_cached, one.factor) for one in charges],
        "output_tokens": [(one.spoken, one.per_spoken, one.factor) for one in charges],
        "reasoning_tokens": [(one.reasoning, one.per_reasoning, one.factor) for one in charges],
    }
    adjusted = reduce(EXACT.add, (one.adjusted for one in charges))
    rest = EXACT.subtract(reduce(EXACT.add, (one.charge for one in charges)), adjusted)
    for kind, parts in kinds.items():
        amount = Decimal(0)
        for tokens, rate, factor in parts:
            amount = EXACT.fma(EXACT.multiply(Decimal(tokens), rate), factor, amount)
        line = rounded(EXACT.divide(amount, MILLION))
        rest = EXACT.subtract(rest, line)
        quantity = sum(tokens for tokens, _, _ in parts)
        if quantity or line:
            yield LineItem(f"{model}, {kind}", line, quantity)
    for kind, left in (("calls", rest), ("corrections", adjusted)):
        if left:
            yield LineItem(f"{model}, {kind}", left, None)

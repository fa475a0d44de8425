"""Volume tiers: a discount on what a tenant spent on a model in a calendar month (UTC).

It is worked out from the sums of the month and is no part of a request's charge: a charge must not depend on which
request came first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import PriceTier

from inferbus_rating.amounts import EXACT, amount, rounded

_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Tier:
    """Tokens above ``above_tokens``, up to the next tier's, are charged times ``factor``."""

    above_tokens: int
    factor: Decimal


def tiers_of(given: Iterable[PriceTier]) -> tuple[Tier, ...]:
    """Raises ValueError unless they rise and their factors lie in 0 to 1."""
    tiers: list[Tier] = []
    for number, tier in enumerate(given):
        if tiers and tier.above_tokens <= tiers[-1].above_tokens:
            raise ValueError("tiers: above_tokens must rise from tier to tier")
        try:
            factor = amount(tier.factor)
        except ValueError as error:
            raise ValueError(f"tiers[{number}].factor: {error}") from error
        if not tier.factor or factor > _ONE:
            raise ValueError(f"tiers[{number}].factor must be given, 0 to 1")
        tiers.append(Tier(tier.above_tokens, factor))
    return tuple(tiers)


def discount(tiers: Sequence[Tier], month_tokens: int, charge: Decimal) -> Decimal:
    """What is taken off ``charge``, zero or more, rounded half-even to 12 decimals once.

    ``month_tokens``: input and output tokens of the tenant and model in the month, in one currency, under whatever
    price. ``charge``: what of it was charged under the price that has these ``tiers``. Tokens above a threshold are
    taken to cost what that charge is on average, so the order of the requests does not matter.
    """
    if month_tokens <= 0 or not tiers:
        return rounded(Decimal(0))
    saved = Decimal(0)
    ends = [*(tier.above_tokens for tier in tiers[1:]), month_tokens]
    for tier, end in zip(tiers, ends, strict=True):
        within = max(0, min(end, month_tokens) - tier.above_tokens)
        saved = EXACT.fma(Decimal(within), EXACT.subtract(_ONE, tier.factor), saved)
    return rounded(EXACT.divide(EXACT.multiply(charge, saved), Decimal(month_tokens)))

"""What a request costs. Decimals only; every charge names the rate it was computed with."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.usage_pb2 import Usage

COST_SCALE = 12
DEFAULT_PRICE = "default"
_MILLION = Decimal(1_000_000)
_QUANTUM = Decimal(1).scaleb(-COST_SCALE)
# Wide enough that nothing below is rounded but the result: 4 billion tokens at any rate that a Decimal(38, 12) holds.
_EXACT = Context(prec=76, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True, slots=True)
class Rate:
    """Amounts per million tokens in ``currency``. ``version`` empty: there is no price, and nothing is charged."""

    version: str
    currency: str
    input_per_million: Decimal
    cached_input_per_million: Decimal
    output_per_million: Decimal


UNRATED = Rate("", "", Decimal(0), Decimal(0), Decimal(0))


def rate_of(record: PriceRecord) -> Rate:
    """A price as it stands in the registry. Without an amount for cached input, that costs what input costs.

    Raises ValueError for an amount that is not a decimal, is negative, or has more than 12 decimals.
    """
    per_input = _amount(record.input_per_million)
    return Rate(
        record.rate_version,
        record.currency,
        per_input,
        _amount(record.cached_input_per_million) if record.cached_input_per_million else per_input,
        _amount(record.output_per_million),
    )


def rate_for(model: str, rates: Mapping[str, Rate]) -> Rate:
    """The model's own rate, else the default one, else UNRATED."""
    return rates.get(model) or rates.get(DEFAULT_PRICE) or UNRATED


def cost(usage: Usage, rate: Rate) -> Decimal:
    """The charge, rounded half-even to 12 decimals (exact for amounts of up to 6 decimals).

    Cached input is a part of the input and is charged instead of it, reasoning a part of the output.
    """
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    amount = _EXACT.multiply(Decimal(usage.input_tokens - cached), rate.input_per_million)
    amount = _EXACT.fma(Decimal(cached), rate.cached_input_per_million, amount)
    amount = _EXACT.fma(Decimal(usage.output_tokens), rate.output_per_million, amount)
    return _EXACT.quantize(_EXACT.divide(amount, _MILLION), _QUANTUM)


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text or "0")
    except InvalidOperation as error:
        raise ValueError("a price must be a decimal number") from error
    exponent = amount.as_tuple().exponent
    if not isinstance(exponent, int) or amount < 0 or amount >= Decimal(10) ** 12 or exponent < -COST_SCALE:
        raise ValueError("a price must be positive, below 10^12 and have at most 12 decimals")
    return amount

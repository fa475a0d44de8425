"""Amounts of money and factors, as text and as decimals: what is an amount, and how exactly it is kept."""

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

SCALE = 12
"""Decimals of an amount: what the columns Decimal(38, 12) hold."""
QUANTUM = Decimal(1).scaleb(-SCALE)
MILLION = Decimal(1_000_000)
# Wide enough that nothing is rounded before the end: 4 billion tokens, an amount of 24 digits and a factor of 24.
EXACT = Context(prec=120, rounding=ROUND_HALF_EVEN)


def amount(text: str) -> Decimal:
    """A price as it stands in a record; empty is 0.

    Raises ValueError for what is not a decimal, is negative, 10^12 or more, or has more than 12 decimals.
    """
    try:
        value = Decimal(text or "0")
    except InvalidOperation as error:
        raise ValueError(f"{text[:40]!r} is no decimal number") from error
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or value < 0 or value >= Decimal(10) ** 12 or exponent < -SCALE:
        raise ValueError(f"{text[:40]!r} must be 0 or more, below 10^12, with at most {SCALE} decimals")
    return value


def rounded(value: Decimal) -> Decimal:
    """Half-even to 12 decimals: done once, at the end."""
    return EXACT.quantize(value, QUANTUM)

"""What a request costs. Decimals only; every charge names the rate that it was computed with."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from inferbus.common.v1.usage_pb2 import FinishReason, Usage

from inferbus_rating.amounts import EXACT, MILLION, QUANTUM, rounded

_ANSWERED = (FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH)


@dataclass(frozen=True, slots=True)
class Rate:
    """All that a charge is computed with, in ``currency``. ``version`` empty: there is no price; nothing is charged."""

    version: str
    currency: str
    input_per_million: Decimal
    cached_input_per_million: Decimal
    output_per_million: Decimal
    reasoning_per_million: Decimal
    """Of the reasoning part of the output, instead of the output's."""
    per_call: Decimal
    """Of a call that was answered."""
    minimum: Decimal
    """Of a call that used anything."""
    factor: Decimal
    """The price's batch factor if the request is of class batch, else 1. The minimum is not multiplied."""


UNRATED = Rate("", "", Decimal(0), Decimal(0), Decimal(0), Decimal(0), Decimal(0), Decimal(0), Decimal(1))


def is_answered(finish_reason: FinishReason.ValueType) -> bool:
    """Whether the call is charged ``per_call``: it came to its end, not to an error and not to the client's leaving."""
    return finish_reason in _ANSWERED


def cost(usage: Usage, rate: Rate, *, first_choice: bool, answered: bool) -> Decimal:
    """The charge of one choice of a call, rounded half-even to 12 decimals once, at the end.

    Cached input is a part of the input and is charged instead of it; reasoning the same of the output. Of several
    choices of a call only the first one bears ``per_call`` and ``minimum``: the minimum is held against its own charge.
    """
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    total = EXACT.multiply(Decimal(usage.input_tokens - cached), rate.input_per_million)
    total = EXACT.fma(Decimal(cached), rate.cached_input_per_million, total)
    total = EXACT.fma(Decimal(usage.output_tokens - reasoning), rate.output_per_million, total)
    total = EXACT.fma(Decimal(reasoning), rate.reasoning_per_million, total)
    charge = EXACT.divide(total, MILLION)
    if first_choice and answered:
        charge = EXACT.add(charge, rate.per_call)
    charge = EXACT.multiply(charge, rate.factor)
    if first_choice and (answered or usage.input_tokens or usage.output_tokens):
        charge = max(charge, rate.minimum)
    return rounded(charge)


def most(rate: Rate, input_tokens: int, output_tokens: int, *, first_choice: bool) -> Decimal:
    """What one choice of a call can cost at most, rounded up: :func:`cost` of such a choice is never more.

    ``input_tokens``: that it bears (of several choices of one prompt the first alone does).
    """
    per_input = max(rate.input_per_million, rate.cached_input_per_million)
    per_output = max(rate.output_per_million, rate.reasoning_per_million)
    total = EXACT.fma(Decimal(input_tokens), per_input, EXACT.multiply(Decimal(output_tokens), per_output))
    charge = EXACT.divide(total, MILLION)
    if not first_choice:
        return _up(EXACT.multiply(charge, rate.factor))
    return _up(max(EXACT.multiply(EXACT.add(charge, rate.per_call), rate.factor), rate.minimum))


def _up(value: Decimal) -> Decimal:
    return value.quantize(QUANTUM, ROUND_CEILING, EXACT)

"""The charge of one request, split into what it is for, to its last decimal. Pure, exact decimals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce

from inferbus.meter.v1.requests_pb2 import TimelineCharge, TimelineChargeLine
from inferbus_rating.amounts import EXACT, MILLION

from inferbus_meter.core.decimals import decimal_text


@dataclass(frozen=True, slots=True)
class Charged:
    """A row of ``bills``: its tokens, the rates that it was charged at (by million tokens, or a call), and its cost."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    input_per_million: Decimal
    cached_input_per_million: Decimal
    output_per_million: Decimal
    reasoning_per_million: Decimal
    per_call: Decimal
    minimum: Decimal
    factor: Decimal
    cost: Decimal
    currency: str
    rate_version: str
    estimated: bool
    first_choice: bool
    answered: bool


@dataclass(frozen=True, slots=True)
class Correction:
    """A row of ``adjustments``. ``reason``: for the operator."""

    time_us: int
    delta: Decimal
    currency: str
    to_rate_version: str
    reason: str


def charge_of(charged: Charged, corrections: Sequence[Correction]) -> TimelineCharge:
    """Its lines add up to ``amount`` exactly. ``corrections`` in their order."""
    amount = reduce(EXACT.add, (one.delta for one in corrections), charged.cost)
    last = corrections[-1] if corrections else None
    currency = charged.currency or (last.currency if last else "")
    return TimelineCharge(
        amount=decimal_text(amount), currency=currency, rate_version=charged.rate_version,
        present_rate_version=last.to_rate_version if last else charged.rate_version, estimated=charged.estimated,
        lines=[*_lines(charged), *map(_correction, corrections)],
    )  # fmt: skip


def _lines(charged: Charged) -> Iterator[TimelineChargeLine]:
    """What was charged at first: none without a price."""
    if not charged.rate_version:
        return
    total = Decimal(0)
    for name, tokens, rate in _of_tokens(charged):
        amount = EXACT.divide(EXACT.multiply(EXACT.multiply(Decimal(tokens), rate), charged.factor), MILLION)
        total = EXACT.add(total, amount)
        if tokens:
            yield _line(name, tokens, rate, charged.factor, amount)
    if charged.first_choice and charged.answered and charged.per_call:
        amount = EXACT.multiply(charged.per_call, charged.factor)
        total = EXACT.add(total, amount)
        yield _line("call", 1, charged.per_call, charged.factor, amount)
    used = charged.answered or charged.input_tokens or charged.output_tokens
    if charged.first_choice and used and charged.minimum > total:
        yield _line("minimum", None, charged.minimum, None, EXACT.subtract(charged.minimum, total))
        total = charged.minimum
    rest = EXACT.subtract(charged.cost, total)
    if rest:
        yield _line("rounding", None, None, None, rest)


def _of_tokens(charged: Charged) -> Iterator[tuple[str, int, Decimal]]:
    cached = min(charged.cached_input_tokens, charged.input_tokens)
    reasoning = min(charged.reasoning_tokens, charged.output_tokens)
    yield "input_tokens", charged.input_tokens - cached, charged.input_per_million
    yield "cached_input_tokens", cached, charged.cached_input_per_million
    yield "output_tokens", charged.output_tokens - reasoning, charged.output_per_million
    yield "reasoning_tokens", reasoning, charged.reasoning_per_million


def _line(
    name: str, quantity: int | None, price: Decimal | None, factor: Decimal | None, amount: Decimal
) -> TimelineChargeLine:
    line = TimelineChargeLine(name=name, amount=decimal_text(amount))
    if quantity is not None:
        line.quantity = quantity
    if price is not None:
        line.unit_price = decimal_text(price)
    if factor is not None:
        line.factor = decimal_text(factor)
    return line


def _correction(one: Correction) -> TimelineChargeLine:
    return TimelineChargeLine(
        name="adjustment", amount=decimal_text(one.delta), rate_version=one.to_rate_version, reason=one.reason
    )

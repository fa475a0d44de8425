"""What stands on an invoice: sums of charges become lines, lines become totals. Decimals only, nothing is a float.

Money is rounded in two places and nowhere else: an amount of a line half-even to 12 decimals, and the sum of all lines
half-even to what the currency has (the line ``rounding`` says by how much). Tax is worked out from that rounded sum and
rounded the same way. So lines + rounding = net, and net + tax = total, exactly.

An invoice bills what is charged and was not invoiced before: the sums of each month as they are now, less those of all
invoices in force. For a new month that is all of it; for an earlier one it is what came late, or was rated anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from inferbus_rating.amounts import EXACT, MILLION, rounded
from inferbus_rating.tiers import Tier, discount

_CHECKSUM_MODULUS = 1 << 64
_ZERO = Decimal(0)
_ONE = Decimal(1)
# ISO 4217: what has other than two decimals.
_MINOR_UNITS = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF",
         "XOF", "XPF"), 0,
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}  # fmt: skip


class Group(NamedTuple):
    """What one line can be about: equal in all of it, so that a quantity has one price. ``month``: "2026-11"."""

    month: str
    project_id: str
    model: str
    operation: str
    rate_version: str
    estimated: bool
    input_per_million: Decimal
    cached_input_per_million: Decimal
    output_per_million: Decimal
    reasoning_per_million: Decimal
    per_call: Decimal
    minimum: Decimal
    factor: Decimal


class Sums(NamedTuple):
    """Of the requests of one group. ``input`` and ``output`` without their cached and reasoning parts; ``calls``: those
    that are charged by the call; ``checksum``: a sum, modulo 2^64, of a hash of each charge."""

    requests: int
    calls: int
    input: int
    cached_input: int
    output: int
    reasoning: int
    cost: Decimal
    checksum: int

    @property
    def tokens(self) -> int:
        return self.input + self.cached_input + self.output + self.reasoning

    def plus(self, other: "Sums", sign: int = 1) -> "Sums":
        return Sums(
            self.requests + sign * other.requests,
            self.calls + sign * other.calls,
            self.input + sign * other.input,
            self.cached_input + sign * other.cached_input,
            self.output + sign * other.output,
            self.reasoning + sign * other.reasoning,
            EXACT.fma(Decimal(sign), other.cost, self.cost),
            (self.checksum + sign * other.checksum) % _CHECKSUM_MODULUS,
        )

    def holds(self, part: "Sums") -> bool:
        """Whether these can be the charges of ``part`` and more. As many are the same ones, or some were exchanged."""
        rest = self.plus(part, -1)
        if rest.requests == 0:
            return not rest
        return min(rest[:6]) >= 0 and rest.cost >= 0

    def __bool__(self) -> bool:
        return any(self)


NOTHING = Sums(0, 0, 0, 0, 0, 0, _ZERO, 0)


class Rerating(NamedTuple):
    """Corrections of one re-rating in one month of requests, for one project and model."""

    month: str
    project_id: str
    model: str
    rerate_id: str
    rate_version: str
    estimated: bool


class Delta(NamedTuple):
    """``requests`` were corrected by ``amount`` in all."""

    requests: int
    amount: Decimal

    def plus(self, other: "Delta", sign: int = 1) -> "Delta":
        return Delta(self.requests + sign * other.requests, EXACT.fma(Decimal(sign), other.amount, self.amount))

    def __bool__(self) -> bool:
        return any(self)


class Saving(NamedTuple):
    """What a volume discount is taken off."""

    month: str
    project_id: str
    model: str
    rate_version: str
    estimated: bool


@dataclass(frozen=True, slots=True)
class Account:
    """What is charged, or what was invoiced, of one tenant in one currency; months by the end of the requests."""

    charges: Mapping[Group, Sums]
    adjustments: Mapping[Rerating, Delta]
    discounts: Mapping[Saving, Decimal]

    def less(self, invoiced: Iterable["Account"]) -> "Account":
        """What is left to invoice."""
        charges, adjustments, discounts = dict(self.charges), dict(self.adjustments), dict(self.discounts)
        for one in invoiced:
            for group, sums in one.charges.items():
                charges[group] = charges.get(group, NOTHING).plus(sums, -1)
            for rerating, delta in one.adjustments.items():
                adjustments[rerating] = adjustments.get(rerating, Delta(0, _ZERO)).plus(delta, -1)
            for saving, amount in one.discounts.items():
                discounts[saving] = EXACT.subtract(discounts.get(saving, _ZERO), amount)
        return Account(
            {group: charges[group] for group in sorted(charges) if charges[group]},
            {rerating: adjustments[rerating] for rerating in sorted(adjustments) if adjustments[rerating]},
            {saving: discounts[saving] for saving in sorted(discounts) if discounts[saving]},
        )

    def within(self, first: str, last: str) -> "Account":
        """Of the months from ``first`` to ``last``, both included."""
        return Account(
            {of: sums for of, sums in self.charges.items() if first <= of.month <= last},
            {of: delta for of, delta in self.adjustments.items() if first <= of.month <= last},
            {of: amount for of, amount in self.discounts.items() if first <= of.month <= last},
        )

    @property
    def requests(self) -> int:
        return sum(sums.requests for sums in self.charges.values())

    @property
    def months(self) -> list[str]:
        """Those with anything that stands on an invoice, earliest first."""
        return sorted({line.month for line in lines_of(self)})


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one :class:`Saving`: what was charged under that price, and the tokens of it."""

    charge: Decimal
    tokens: int


def discounts_of(spent: Mapping[Saving, Spent], tiers: Mapping[str, Sequence[Tier]]) -> dict[Saving, Decimal]:
    """Volume discounts. ``tiers`` by rate version.

    A discount hangs on all tokens of a model in a month, and is taken off what was charged under the price that has the
    tiers: by project and by whether the tokens are estimated, so that no line mixes them.
    """
    tokens: dict[tuple[str, str], int] = {}
    for saving, sums in spent.items():
        of = (saving.month, saving.model)
        tokens[of] = tokens.get(of, 0) + sums.tokens
    discounts = {
        saving: discount(tiers[saving.rate_version], tokens[saving.month, saving.model], sums.charge)
        for saving, sums in spent.items()
        if tiers.get(saving.rate_version)
    }
    return {saving: amount for saving, amount in discounts.items() if amount}


@dataclass(frozen=True, slots=True)
class Line:
    """``amount`` in the invoice's currency, exact to 12 decimals. ``unit_price`` per million tokens, or per call."""

    kind: str
    month: str
    project_id: str
    model: str
    operation: str
    rate_version: str
    estimated: bool
    quantity: int
    unit_price: Decimal
    factor: Decimal
    amount: Decimal


def lines_of(account: Account) -> list[Line]:
    """Earliest month first, then by project and model. The amounts add up to what is charged, exactly."""
    lines: list[Line] = []
    for group, sums in account.charges.items():
        lines += _lines_of_group(group, sums)
    for rerating, delta in account.adjustments.items():
        lines.append(
            Line("adjustment", rerating.month, rerating.project_id, rerating.model, "", rerating.rate_version,
                 rerating.estimated, delta.requests, _ZERO, _ONE, rounded(delta.amount))
        )  # fmt: skip
    for saving, amount in account.discounts.items():
        lines.append(
            Line("discount", saving.month, saving.project_id, saving.model, "", saving.rate_version, saving.estimated,
                 0, _ZERO, _ONE, rounded(-amount))
        )  # fmt: skip
    # Stable: within a project and model the order of above stays.
    return sorted(lines, key=lambda line: (line.month, line.project_id, line.model))


def _lines_of_group(group: Group, sums: Sums) -> list[Line]:
    per_million = (
        ("input", sums.input, group.input_per_million),
        ("cached_input", sums.cached_input, group.cached_input_per_million),
        ("output", sums.output, group.output_per_million),
        ("reasoning", sums.reasoning, group.reasoning_per_million),
    )
    empty = Line("", *group[:6], quantity=0, unit_price=_ZERO, factor=group.factor, amount=_ZERO)
    lines = []
    for kind, quantity, price in per_million:
        if quantity:
            exact = EXACT.divide(EXACT.multiply(EXACT.multiply(Decimal(quantity), price), group.factor), MILLION)
            lines.append(replace(empty, kind=kind, quantity=quantity, unit_price=price, amount=rounded(exact)))
    if sums.calls and group.per_call:
        exact = EXACT.multiply(EXACT.multiply(Decimal(sums.calls), group.per_call), group.factor)
        line = replace(empty, kind="call", quantity=sums.calls, unit_price=group.per_call, amount=rounded(exact))
        lines.append(line)
    # Requests that cost their minimum; and what each request was rounded by, in the twelfth decimal.
    rest = EXACT.subtract(sums.cost, added(line.amount for line in lines))
    if rest:
        lines.append(
            replace(empty, kind="minimum", quantity=0, unit_price=group.minimum, factor=_ONE, amount=rounded(rest))
        )
    return lines


@dataclass(frozen=True, slots=True)
class Totals:
    """``subtotal`` + ``rounding`` = ``net``; ``net`` + ``tax`` = ``total``."""

    subtotal: Decimal
    rounding: Decimal
    net: Decimal
    tax: Decimal
    total: Decimal


def totals_of(lines: Iterable[Line], currency: str, tax_rate: Decimal) -> Totals:
    """``tax_rate``: 0.19 is 19 %."""
    subtotal = added(line.amount for line in lines)
    net = payable(subtotal, currency)
    tax = payable(EXACT.multiply(net, tax_rate), currency)
    return Totals(subtotal, EXACT.subtract(net, subtotal), net, tax, EXACT.add(net, tax))


def added(amounts: Iterable[Decimal]) -> Decimal:
    """The sum, not rounded (decimal's own addition keeps 28 digits)."""
    total = _ZERO
    for amount in amounts:
        total = EXACT.add(total, amount)
    return total


def minor_units(currency: str) -> int:
    """Decimals that can be paid."""
    return _MINOR_UNITS.get(currency, 2)


def payable(amount: Decimal, currency: str) -> Decimal:
    """Half-even to what the currency has."""
    return EXACT.quantize(amount, Decimal(1).scaleb(-minor_units(currency)))

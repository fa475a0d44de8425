"""Corrections of charges, worked out again: each must lead from the charge before it to what its price gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from inferbus_rating import UNRATED, PriceBook, Rate
from inferbus_rating.amounts import EXACT

from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.frames import ClosedRequest
from inferbus_meter.core.rows import charge_of

Bearer = tuple[str, str, str, str, str]
"""Tenant, project, key, model, revision."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A row of ``adjustments``, as far as it follows from something. ``end_us``: Unix microseconds."""

    number: int
    bearer: Bearer
    end_us: int
    delta: Decimal
    currency: str
    from_version: str
    to_version: str


@dataclass(frozen=True, slots=True)
class Charged:
    """The row of ``requests`` that is corrected."""

    cost: Decimal
    currency: str
    version: str


def correction_faults(
    item: ClosedRequest, charged: Charged, found: Sequence[Adjustment], book: PriceBook, *, replaced: bool = False
) -> list[str]:
    """What is wrong with the corrections of a request, in words, by column. ``replaced``: it had ended before, and some
    may be of that end: then they are only held to what they lead to."""
    faults: list[str] = []
    charge, version = charged.cost, charged.version
    for number, one in enumerate(sorted(found, key=lambda one: one.number), 1):
        rates = _rates(item, one.to_version, book)
        which = f"correction {one.number}"
        if one.number != number:
            faults.append(f"{which}: number is {one.number} instead of {number}")
        pairs = _bearers(item, one)
        if not replaced:
            pairs.append(("end_time", one.end_us, item.time_us))
            pairs.append(("from_rate_version", one.from_version, version))
        pairs.append(("currency", one.currency, charged.currency or (rates[0].currency if rates else one.currency)))
        for name, there, right in pairs:
            if there != right:
                faults.append(f"{which}: {name} is {there!r} instead of {right!r}")
        if not rates:
            faults.append(f"{which}: to_rate_version {one.to_version!r} is not in the price book")
        to_charge = EXACT.add(charge, one.delta)
        gives = [charge_of(item.close, rate) for rate in rates]
        if gives and to_charge not in gives and (number == len(found) or not replaced):
            delta = decimal_text(EXACT.subtract(gives[0], charge))
            faults.append(f"{which}: delta is {decimal_text(one.delta)}, its to_rate_version gives {delta}")
        charge, version = to_charge, one.to_version
    return faults


def _bearers(item: ClosedRequest, one: Adjustment) -> list[tuple[str, str | int, str | int]]:
    of = item.context
    right = (of.tenant_id, of.project_id, of.key_id, of.model, of.revision)
    return list(zip(("tenant_id", "project_id", "key_id", "model", "revision"), one.bearer, right, strict=True))


def _rates(item: ClosedRequest, version: str, book: PriceBook) -> list[Rate]:
    """Empty: the book does not have that version."""
    if not version:
        return [UNRATED]
    return [price.rate(item.close.operation, item.close.priority_class) for price in book.named(version)]

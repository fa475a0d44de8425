"""What was invoiced, held against the charges that are there now: none of them may be gone, or be another one."""

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_meter.core.invoice import NOTHING, Account
from inferbus_meter.core.invoice_content import Content, account_of
from inferbus_meter.core.months import months_before

CORRECTED_MONTHS = 6
"""Charges that come late, and corrections, are invoiced for so many months back, the invoice's own included."""


@dataclass(frozen=True, slots=True)
class Part:
    """Months of which all charges up to ``position`` were invoiced."""

    position: int
    months: frozenset[str]


def parts_of(issued: Iterable[Content]) -> list[Part]:
    """Of the invoices in force: each month up to the last charge that any of them could have."""
    last: dict[str, int] = {}
    for content in issued:
        for back in range(CORRECTED_MONTHS):
            month = months_before(content["month"], back)
            last[month] = max(last.get(month, 0), content["basis"]["position"])
    return [
        Part(position, frozenset(month for month, its in last.items() if its == position))
        for position in sorted(set(last.values()))
    ]


def billed_on(issued: Iterable[Content]) -> Account:
    """All that stands on these invoices."""
    nothing = Account({}, {}, {})
    return nothing.less([nothing.less(account_of(content) for content in issued)])


def lost_months(billed: Account, present: Account, part: Part) -> set[str]:
    """Months of ``part`` of which ``present``, the charges up to its position, cannot be what was billed and more."""
    return {
        group.month
        for group, sums in billed.charges.items()
        if group.month in part.months and not present.charges.get(group, NOTHING).holds(sums)
    }

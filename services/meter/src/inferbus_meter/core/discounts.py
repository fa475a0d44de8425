"""Volume discounts in a report of costs, as the invoice of the month would have them if it were issued now. Pure.

A discount is taken off what a tenant was charged for a model in a calendar month under a price with tiers, and is in
proportion to it: so each part of that charge has its own share, whatever a report is split by.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from inferbus_rating.amounts import EXACT
from inferbus_rating.tiers import Tier, discount

from inferbus_meter.core.line_items import LineItem

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Tiered:
    """What was charged for a model in a month ("2026-11") under the price ``rate_version``, which has tiers. By
    project, so that a month's shares are rounded as the lines of its invoice are."""

    model: str
    tenant_id: str
    project_id: str
    month: str
    rate_version: str
    charge: Decimal


def volume_discounts(
    charges: Iterable[tuple[KeyT, str, Tiered]],
    month_tokens: Mapping[tuple[str, str, str, str], int],
    tiers: Mapping[str, Sequence[Tier]],
) -> dict[KeyT, list[LineItem]]:
    """By key, one line a model, its amount below 0. ``charges``: key, currency, and what was charged; ``month_tokens``:
    all tokens of (tenant, currency, model, month); ``tiers``: by rate version."""
    sums: dict[KeyT, dict[str, Decimal]] = {}
    for key, currency, of in charges:
        tokens = month_tokens.get((of.tenant_id, currency, of.model, of.month), 0)
        share = discount(tiers[of.rate_version], tokens, of.charge)
        if share:
            models = sums.setdefault(key, {})
            models[of.model] = EXACT.subtract(models.get(of.model, Decimal(0)), share)
    return {
        key: [LineItem(f"{model}, volume_discount", amount, None) for model, amount in sorted(models.items()) if amount]
        for key, models in sums.items()
    }

"""Volume discounts: against a model that prices a month token by token."""

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from inferbus_rating.tiers import Tier, discount

factors = st.decimals(min_value=0, max_value=1, places=4)
schedules = st.dictionaries(st.integers(0, 60), factors, max_size=4).map(
    lambda found: tuple(Tier(above, found[above]) for above in sorted(found))
)
charges = st.decimals(min_value=0, max_value=10**6, places=12)


def factor_of_token(tiers: tuple[Tier, ...], number: int) -> Fraction:
    """Of the month's token ``number``, counted from 1."""
    reached = [tier.factor for tier in tiers if number > tier.above_tokens]
    return Fraction(reached[-1]) if reached else Fraction(1)


@given(schedules, st.integers(0, 100), charges)
def test_a_discount_is_what_the_tokens_above_each_threshold_save(
    tiers: tuple[Tier, ...], tokens: int, charge: Decimal
) -> None:
    saved = sum((1 - factor_of_token(tiers, number) for number in range(1, tokens + 1)), Fraction(0))
    exact = Fraction(charge) * saved / tokens if tokens else Fraction(0)
    assert Fraction(discount(tiers, tokens, charge)) * 10**12 == round(exact * 10**12)


@given(schedules, st.integers(1, 10**9), charges)
def test_a_discount_is_never_more_than_the_charge_nor_below_zero(
    tiers: tuple[Tier, ...], tokens: int, charge: Decimal
) -> None:
    assert 0 <= discount(tiers, tokens, charge) <= charge


@given(schedules, st.integers(1, 10**9), st.lists(charges, min_size=1, max_size=4))
def test_a_month_split_over_prices_with_the_same_tiers_saves_what_the_whole_saves(
    tiers: tuple[Tier, ...], tokens: int, parts: list[Decimal]
) -> None:
    apart = sum(discount(tiers, tokens, part) for part in parts)
    assert abs(apart - discount(tiers, tokens, sum(parts, Decimal(0)))) <= len(parts) * Decimal("1e-12")


def test_below_the_first_threshold_nothing_is_taken_off() -> None:
    tiers = (Tier(1_000_000, Decimal("0.8")), Tier(10_000_000, Decimal("0.5")))
    assert discount(tiers, 1_000_000, Decimal(5)) == 0
    assert discount(tiers, 2_000_000, Decimal(10)) == 1  # half of the month at 20 % off
    assert discount((), 5_000_000, Decimal(10)) == 0

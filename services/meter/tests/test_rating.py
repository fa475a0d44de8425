"""Costs: exact decimals, and every amount from the rate that the charge names."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_meter.core.rating import UNRATED, Rate, cost, rate_for, rate_of

amounts = st.decimals(min_value=0, max_value=10**9, places=6)
counts = st.integers(0, 2**32 - 1)
rates = st.builds(Rate, st.just("v1"), st.just("USD"), amounts, amounts, amounts)


@given(counts, counts, counts, rates)
def test_cost_is_exact(inputs: int, cached: int, outputs: int, rate: Rate) -> None:
    cached = min(cached, inputs)
    usage = Usage(input_tokens=inputs, cached_input_tokens=cached, output_tokens=outputs)
    exact = (
        (inputs - cached) * Fraction(rate.input_per_million)
        + cached * Fraction(rate.cached_input_per_million)
        + outputs * Fraction(rate.output_per_million)
    ) / 1_000_000
    assert Fraction(cost(usage, rate)) == exact
    assert cost(usage, rate).as_tuple().exponent == -12


@given(counts, counts, st.decimals(min_value=0, max_value=10**9, places=12))
def test_more_decimals_are_rounded_by_less_than_half_a_unit(inputs: int, outputs: int, amount: Decimal) -> None:
    charge = cost(Usage(input_tokens=inputs, output_tokens=outputs), Rate("v", "USD", amount, amount, amount))
    assert abs(Fraction(charge) - (inputs + outputs) * Fraction(amount) / 1_000_000) <= Fraction(1, 2 * 10**12)


def test_more_cached_than_input_is_charged_as_all_cached() -> None:
    rate = Rate("v", "USD", Decimal(1), Decimal("0.5"), Decimal(2))
    assert cost(Usage(input_tokens=10, cached_input_tokens=99), rate) == Decimal("0.000005")


def test_a_model_has_its_own_rate_then_the_default_then_none() -> None:
    own, default = (Rate(name, "USD", Decimal(1), Decimal(1), Decimal(1)) for name in ("own", "default"))
    assert rate_for("m", {"m": own, "default": default}) is own
    assert rate_for("m", {"default": default}) is default
    assert rate_for("m", {}) is UNRATED
    assert cost(Usage(input_tokens=5, output_tokens=5), UNRATED) == 0


def test_cached_input_costs_what_input_costs_unless_priced() -> None:
    rate = rate_of(PriceRecord(rate_version="v", input_per_million="0.15", output_per_million="0.6"))
    assert rate.cached_input_per_million == rate.input_per_million == Decimal("0.15")


@pytest.mark.parametrize("text", ["a", "-1", "NaN", "Infinity", "0.0000000000001", "1e13"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        rate_of(PriceRecord(input_per_million=text))

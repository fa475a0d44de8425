"""Charges: exact decimals, against plain fractions."""

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_rating import UNRATED, Rate, cost, is_answered, most

amounts = st.decimals(min_value=0, max_value=10**9, places=6)
fine_amounts = st.decimals(min_value=0, max_value=10**9, places=12)
counts = st.integers(0, 2**32 - 1)


def rates(of: st.SearchStrategy[Decimal]) -> st.SearchStrategy[Rate]:
    return st.builds(
        Rate,
        version=st.just("v1"),
        currency=st.just("USD"),
        input_per_million=of,
        cached_input_per_million=of,
        output_per_million=of,
        reasoning_per_million=of,
        per_call=of,
        minimum=of,
        factor=st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.123456"), Decimal(0), Decimal(2)]),
    )


usages = st.builds(
    lambda inputs, cached, outputs, reasoning: Usage(
        input_tokens=inputs,
        cached_input_tokens=min(cached, inputs),
        output_tokens=outputs,
        reasoning_tokens=min(reasoning, outputs),
    ),
    counts, counts, counts, counts,
)  # fmt: skip


def exact(usage: Usage, rate: Rate, first: bool, answered: bool) -> Fraction:
    """The rule as written in docs/billing.md, in fractions."""
    tokens = (
        (usage.input_tokens - usage.cached_input_tokens) * Fraction(rate.input_per_million)
        + usage.cached_input_tokens * Fraction(rate.cached_input_per_million)
        + (usage.output_tokens - usage.reasoning_tokens) * Fraction(rate.output_per_million)
        + usage.reasoning_tokens * Fraction(rate.reasoning_per_million)
    )
    call = Fraction(rate.per_call) if first and answered else Fraction(0)
    charge = Fraction(rate.factor) * (tokens / 10**6 + call)
    used = answered or usage.input_tokens > 0 or usage.output_tokens > 0
    return max(charge, Fraction(rate.minimum)) if first and used else charge


@given(usages, rates(fine_amounts), st.booleans(), st.booleans())
def test_a_charge_is_the_rule_rounded_half_even_once(usage: Usage, rate: Rate, first: bool, answered: bool) -> None:
    charge = cost(usage, rate, first_choice=first, answered=answered)
    # round() of a Fraction is half-even.
    assert Fraction(charge) * 10**12 == round(exact(usage, rate, first, answered) * 10**12)
    assert charge.as_tuple().exponent == -12


@given(usages, rates(amounts))
def test_amounts_of_six_decimals_are_charged_without_any_rounding(usage: Usage, rate: Rate) -> None:
    plain = Rate(
        **{name: getattr(rate, name) for name in Rate.__dataclass_fields__ if name != "factor"}, factor=Decimal(1)
    )
    assert Fraction(cost(usage, plain, first_choice=True, answered=True)) == exact(usage, plain, True, True)


@given(usages, rates(fine_amounts), st.booleans(), st.booleans())
def test_no_choice_costs_more_than_the_most(usage: Usage, rate: Rate, first: bool, answered: bool) -> None:
    bound = most(rate, usage.input_tokens, usage.output_tokens, first_choice=first)
    assert cost(usage, rate, first_choice=first, answered=answered) <= bound


@given(usages, rates(fine_amounts))
def test_the_most_is_reached_by_a_call_that_uses_all_of_it(usage: Usage, rate: Rate) -> None:
    dear = Usage(
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.input_tokens * (rate.cached_input_per_million > rate.input_per_million),
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.output_tokens * (rate.reasoning_per_million > rate.output_per_million),
    )
    charge = cost(dear, rate, first_choice=True, answered=True)
    assert most(rate, usage.input_tokens, usage.output_tokens, first_choice=True) - charge <= Decimal("1e-12")


def test_more_cached_than_input_is_charged_as_all_cached_and_the_same_of_reasoning() -> None:
    rate = Rate("v", "USD", Decimal(1), Decimal("0.5"), Decimal(2), Decimal(3), Decimal(0), Decimal(0), Decimal(1))
    usage = Usage(input_tokens=10, cached_input_tokens=99, output_tokens=10, reasoning_tokens=99)
    assert cost(usage, rate, first_choice=True, answered=True) == Decimal("0.000035")


def test_without_a_price_nothing_is_charged() -> None:
    usage = Usage(input_tokens=5, output_tokens=5)
    assert cost(usage, UNRATED, first_choice=True, answered=True) == 0
    assert most(UNRATED, 1000, 1000, first_choice=True) == 0


def test_only_the_first_choice_of_an_answered_call_bears_the_price_of_the_call() -> None:
    rate = Rate("v", "USD", *[Decimal(0)] * 4, per_call=Decimal("0.25"), minimum=Decimal(0), factor=Decimal("0.5"))
    nothing = Usage()
    assert cost(nothing, rate, first_choice=True, answered=True) == Decimal("0.125")
    assert cost(nothing, rate, first_choice=False, answered=True) == 0
    assert cost(nothing, rate, first_choice=True, answered=False) == 0
    ends = {FinishReason.Name(reason): is_answered(reason) for reason in FinishReason.values()}
    assert {name for name, answered in ends.items() if answered} == {"FINISH_REASON_STOP", "FINISH_REASON_LENGTH"}


def test_the_minimum_is_of_a_call_that_used_anything_and_is_not_multiplied() -> None:
    rate = Rate("v", "USD", *[Decimal(1)] * 4, per_call=Decimal(0), minimum=Decimal("0.01"), factor=Decimal("0.5"))
    some = Usage(output_tokens=1)
    assert cost(some, rate, first_choice=True, answered=False) == Decimal("0.01")
    assert cost(some, rate, first_choice=False, answered=False) == Decimal("0.0000005")
    assert cost(Usage(), rate, first_choice=True, answered=False) == 0

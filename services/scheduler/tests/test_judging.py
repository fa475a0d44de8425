"""Whether a revision is worse: the tests against what others compute, and against what chance does."""

from dataclasses import replace
from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_scheduler.core.judging import (
    Bounds,
    Sample,
    Verdict,
    agreement,
    binomial_tail,
    fisher,
    judge,
    mann_whitney,
    quantile,
)

TIMES = st.lists(st.floats(0.001, 100.0), min_size=20, max_size=60)
BOUNDS = Bounds()


def test_fisher_is_exact() -> None:
    """Fisher's tea: 3 of 4 right, 1 of 4 wrong; and one with a rare fault, summed by hand."""
    assert fisher(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher(5, 5, 0, 500) == pytest.approx(1 / comb(505, 5), rel=1e-6)
    assert fisher(0, 10, 3, 10) == pytest.approx(1.0)


@given(of=st.integers(1, 40), missed=st.integers(0, 40), probability=st.floats(0.0, 1.0))
def test_the_binomial_tail_is_the_sum_of_its_terms(of: int, missed: int, probability: float) -> None:
    hits = max(0, of - missed)
    terms = [comb(of, k) * probability**k * (1 - probability) ** (of - k) for k in range(hits, of + 1)]
    assert binomial_tail(hits, of, probability) == pytest.approx(min(1.0, sum(terms)), abs=1e-9)


def test_mann_whitney_is_what_others_compute() -> None:
    """SciPy 1.17.1's mannwhitneyu(x, y, alternative="greater", method="asymptotic")."""
    apart = mann_whitney([1.1, 2.2, 3.3, 4.4, 5.5], [0.5, 1.0, 2.0, 2.5, 3.0])
    assert apart == pytest.approx(0.07183604090348, abs=1e-9)
    assert mann_whitney([1, 2, 2, 3], [2, 2, 3, 4]) == pytest.approx(0.8922618866576, abs=1e-9)


@given(one=TIMES, other=TIMES)
def test_ranks_decide_one_way_or_the_other(one: list[float], other: list[float]) -> None:
    above, below = mann_whitney(one, other), mann_whitney(other, one)
    assert 0.0 <= above <= 1.0
    assert above + below >= 1.0 - 1e-9  # both count what is equal
    assert mann_whitney([each * 3 for each in one], [each * 3 for each in other]) == pytest.approx(above)


@given(values=st.lists(st.floats(0, 1e6), min_size=1), level=st.floats(0.01, 1.0))
def test_a_quantile_is_one_of_the_values_and_leaves_enough_below(values: list[float], level: float) -> None:
    found = quantile(values, level)
    assert found in values
    assert sum(value <= found for value in values) >= level * len(values) - 1e-6


def _drawn(random: Random, count: int, *, slower: float = 1.0, failing: float = 0.0) -> Sample:
    failed = sum(random.random() < failing for _ in range(count))
    ttft = tuple(random.lognormvariate(-2.0, 0.5) * slower for _ in range(count - failed))
    itl = tuple(random.lognormvariate(-4.0, 0.3) * slower for _ in range(count - failed))
    return Sample(count, failed, count - failed, (count - failed) // 3, 0, ttft, itl)


def test_what_is_equal_is_seldom_held_to_be_worse() -> None:
    """200 times the same against the same: seven figures of a significance of 0.01, each by more than is allowed."""
    random, wrong = Random(5), 0
    for _ in range(200):
        figures = judge(_drawn(random, 100), _drawn(random, 900), BOUNDS)
        wrong += any(figure.verdict is Verdict.BAD for figure in figures)
    assert wrong <= 4


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"slower": 2.0}, {"ttft", "ttft_p95", "itl", "itl_p95"}),
        ({"failing": 0.3}, {"error_rate"}),
    ],
)
def test_what_is_worse_is_found(broken: dict[str, float], named: set[str]) -> None:
    random = Random(7)
    for _ in range(20):
        figures = judge(_drawn(random, 100, **broken), _drawn(random, 900), BOUNDS)
        assert named & {figure.name for figure in figures if figure.verdict is Verdict.BAD}
        assert not {figure.name for figure in figures if figure.verdict is Verdict.BAD} - named


def test_a_tail_alone_is_found() -> None:
    """One in five is ten times as slow: the medians are equal."""
    random = Random(11)
    good = _drawn(random, 900)
    bad = _drawn(random, 200)
    slow = tuple(value * (10 if number % 5 == 0 else 1) for number, value in enumerate(bad.ttft))
    named = {figure.name for figure in judge(replace(bad, ttft=slow), good, BOUNDS) if figure.verdict is Verdict.BAD}
    assert "ttft_p95" in named


def test_a_slowdown_within_the_bound_is_no_reason() -> None:
    random = Random(13)
    assert all(
        figure.verdict is not Verdict.BAD
        for _ in range(20)
        for figure in judge(_drawn(random, 400, slower=1.1), _drawn(random, 2000), BOUNDS)
    )


def test_few_samples_say_nothing_and_clear_ones_say_it_soon() -> None:
    stable = Sample(500, 0, 500, 100, 0)
    assert judge(Sample(2, 2), stable, BOUNDS)[0].verdict is Verdict.OPEN
    assert judge(Sample(5, 5), stable, BOUNDS)[0].verdict is Verdict.BAD
    assert judge(Sample(), Sample(), BOUNDS)[0].verdict is Verdict.OPEN


def test_answers_that_never_end_or_are_empty_are_found() -> None:
    stable = Sample(500, 0, 500, 100, 2)
    endless = {f.name: f.verdict for f in judge(Sample(60, 0, 60, 58, 0), stable, BOUNDS)}
    empty = {f.name: f.verdict for f in judge(Sample(60, 0, 60, 0, 55), stable, BOUNDS)}
    assert endless["length_rate"] is Verdict.BAD
    assert empty["empty_rate"] is Verdict.BAD


def test_agreement_ends_at_the_first_difference() -> None:
    assert agreement([(1, 2, 3, 4)], [(1, 2, 9, 4)]) == 0.5
    assert agreement([(1, 2), ()], [(1, 2), ()]) == 1.0
    assert agreement([(1,)], [(1, 2)]) == 0.5
    assert agreement([], []) is None

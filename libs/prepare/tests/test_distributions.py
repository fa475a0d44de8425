"""What is told of two distributions, of which only the likeliest tokens are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_prepare.distributions import agreement, divergence, mean_divergence, perplexity, same_first
from inferbus_prepare.measured import Distribution

VOCABULARY = 12
logits = st.lists(st.floats(-8, 8), min_size=VOCABULARY, max_size=VOCABULARY)
tops = st.integers(1, VOCABULARY)
texts = st.lists(st.integers(0, 3), max_size=12)


def probabilities(values: list[float]) -> list[float]:
    total = sum(map(math.exp, values))
    return [math.exp(value) / total for value in values]


def listed(whole: list[float], top: int, target: int = 0) -> Distribution:
    likeliest = sorted(range(len(whole)), key=lambda token: -whole[token])[:top]
    return Distribution(target, {token: math.log(whole[token]) for token in likeliest})


def true_divergence(p: list[float], q: list[float]) -> float:
    return math.fsum(one * math.log(one / other) for one, other in zip(p, q, strict=True))


@given(logits, logits, tops, tops)
def test_it_is_at_most_the_true_divergence(one: list[float], other: list[float], p_top: int, q_top: int) -> None:
    p, q = probabilities(one), probabilities(other)
    told = divergence(listed(p, p_top), listed(q, q_top))
    assert 0 <= told <= true_divergence(p, q) + 1e-6


@given(logits, logits)
def test_of_whole_lists_it_is_the_true_divergence(one: list[float], other: list[float]) -> None:
    p, q = probabilities(one), probabilities(other)
    told = divergence(listed(p, VOCABULARY), listed(q, VOCABULARY))
    assert told == pytest.approx(true_divergence(p, q), abs=1e-6)


@given(logits, tops)
def test_equal_distributions_do_not_diverge(values: list[float], top: int) -> None:
    whole = probabilities(values)
    assert divergence(listed(whole, top), listed(whole, top)) == pytest.approx(0, abs=1e-9)


def test_lists_with_no_token_in_common_are_far_apart() -> None:
    """Merging alone would say that nothing is known of them, and so that nothing differs."""
    p = Distribution(0, {token: math.log(0.24) for token in range(4)})
    q = Distribution(0, {token: math.log(0.24) for token in range(10, 14)})
    assert divergence(p, q) > 2


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_what_is_no_probability_diverges_without_bound(value: float) -> None:
    p = Distribution(0, {0: math.log(0.5), 1: math.log(0.4)})
    q = Distribution(0, {0: value, 1: math.log(0.4)})
    assert divergence(p, q) == math.inf
    assert divergence(p, Distribution(0, {})) == math.inf
    assert perplexity([q], 10) == math.inf or value == math.inf


@given(st.integers(2, 50_000))
def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary(vocabulary: int) -> None:
    log = -math.log(vocabulary)
    of_listed = [Distribution(0, {0: log, 1: log})]
    of_the_tail = [Distribution(5, {0: log})]
    assert perplexity(of_listed, vocabulary) == pytest.approx(vocabulary)
    assert perplexity(of_the_tail, vocabulary) == pytest.approx(vocabulary, rel=1e-6)


def test_perplexity_of_a_model_that_knows_the_text_is_one() -> None:
    assert perplexity([Distribution(7, {7: 0.0})] * 3, 100) == pytest.approx(1)


@given(texts, texts)
def test_agreement_ends_at_the_first_difference(one: list[int], other: list[int]) -> None:
    part = agreement(one, other)
    assert 0 <= part <= 1
    assert part == agreement(other, one)
    assert (part == 1) == (one == other)
    same = round(part * max(len(one), len(other)))
    assert one[:same] == other[:same]
    assert one[same : same + 1] != other[same : same + 1] or one == other


def test_the_mean_counts_each_position_once() -> None:
    p, q = Distribution(0, {0: math.log(0.9)}), Distribution(0, {0: math.log(0.5)})
    apart = divergence(p, q)
    assert mean_divergence([p, p], [p, q]) == pytest.approx(apart / 2)
    assert same_first([p, p], [q, Distribution(0, {1: math.log(0.9)})]) == 0.5

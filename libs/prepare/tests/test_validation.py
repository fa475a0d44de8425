"""Figures, and the bounds that a candidate must keep."""

import dataclasses
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_prepare.measured import Distribution, Measured
from inferbus_prepare.validation import Side, Thresholds, compare, figure, sound, verdict

LOGS = {1: math.log(0.6), 2: math.log(0.3)}
MEASURED = Measured(
    text_ids=(1, 2, 1),
    vocabulary=10,
    greedy=((1, 2, 3, 4), (5, 6)),
    distributions=(Distribution(2, LOGS), Distribution(1, LOGS)),
    reading_rate=100.0,
    writing_rate=10.0,
    rss_bytes=1000,
)


def passed(candidate: Measured, size: int = 50, **thresholds: float | None) -> dict[str, bool]:
    figures = compare(Side(MEASURED, 100), Side(candidate, size), Thresholds(**thresholds))
    return {one.name: one.passed for one in figures}


def test_the_same_file_passes_with_each_figure_at_its_best() -> None:
    figures = {one.name: one.value for one in compare(Side(MEASURED, 100), Side(MEASURED, 100), Thresholds())}
    assert figures["greedy_agreement"] == figures["same_first_token"] == figures["perplexity_ratio"] == 1
    assert figures["kl_divergence"] == 0
    assert all(passed(MEASURED).values())


def test_a_candidate_that_writes_something_else_fails_by_its_texts() -> None:
    other = dataclasses.replace(MEASURED, greedy=((9, 9, 9, 9), (9, 9)))
    assert [name for name, good in passed(other).items() if not good] == ["greedy_agreement"]


def test_a_candidate_that_thinks_something_else_fails_by_its_distributions() -> None:
    logs = {1: math.log(0.1), 2: math.log(0.05), 3: math.log(0.8)}
    other = dataclasses.replace(MEASURED, distributions=(Distribution(2, logs), Distribution(1, logs)))
    assert {name for name, good in passed(other).items() if not good} == {
        *("same_first_token", "kl_divergence", "perplexity_ratio")
    }


def test_another_tokenizer_cannot_be_compared() -> None:
    assert passed(dataclasses.replace(MEASURED, text_ids=(1, 2))) == {"same_tokens": False}
    assert passed(dataclasses.replace(MEASURED, vocabulary=11)) == {"same_tokens": False}


def test_speed_and_size_are_told_unless_a_bound_is_asked_for() -> None:
    slow = dataclasses.replace(MEASURED, writing_rate=1.0)
    assert all(passed(slow, size=500).values())
    assert not passed(slow, min_speed_ratio=0.5)["tokens_per_second_ratio"]
    assert not passed(MEASURED, size=500, max_size_ratio=1.0)["size_ratio"]


@given(st.floats(), st.none() | st.floats(-1, 1), st.none() | st.floats(-1, 1))
def test_a_figure_passes_within_its_bounds_only(value: float, low: float | None, high: float | None) -> None:
    made = figure("x", value, at_least=low, at_most=high)
    inside = (low is None or value >= low) and (high is None or value <= high)
    assert made.passed == inside
    assert made.HasField("at_least") == (low is not None)
    assert not (math.isnan(value) and made.passed and (low is not None or high is not None))


@pytest.mark.parametrize(("faults", "good"), [([], False), ([None], True), ([None, "cut off"], False)])
def test_a_validation_passes_if_it_has_figures_and_all_pass(faults: list[str | None], good: bool) -> None:
    end = datetime(2026, 11, 23, tzinfo=UTC)
    made = verdict([sound("structure", fault) for fault in faults], "f16", end, timedelta(seconds=2))
    assert made.passed == good
    assert made.duration.seconds == 2


def test_what_was_measured_is_the_same_after_json() -> None:
    import json

    assert Measured.from_dict(json.loads(json.dumps(MEASURED.as_dict()))) == MEASURED

"""What the pages of batches work out (``lib/batches_data.js``), in Node: no browser, no stack."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.batch.v1.batch_pb2 import Job, JobState
from inferbus_dialect.batches import batch_object

from tests.console.in_node import FEW, Js

NOW = 1_800_000_000


def batch(state: str = "ACTIVE", lines: int = 0, done: int = 0, failed: int = 0, **fields: Any) -> dict[str, Any]:
    """As the API gives it: of a job of one hour that was made, and began, a minute ago."""
    job = Job(
        job_id=fields.pop("job_id", "batch_1"), state=JobState.Value(f"JOB_STATE_{state}"), line_count=lines,
        completed_line_count=done, failed_line_count=failed,
    )  # fmt: skip
    moments = {"create_time": NOW - 60, "expire_time": NOW + 3540, "active_time": NOW - 60, **fields}
    for name, second in moments.items():
        getattr(job, name).seconds = second
    return batch_object(job)


# --- progress, rate, time left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (batch("VALIDATING"), "its lines are being checked"),
        (batch(lines=20_000), "0 of 20,000 lines (0 %)"),
        (batch(lines=20_000, done=4_997, failed=3), "5,000 of 20,000 lines (25 %), 3 with an error"),
        (batch(lines=20_000, done=19_999), "19,999 of 20,000 lines (99.9 %)"),
        (batch("COMPLETED", lines=1_000_000, done=1_000_000), "1,000,000 of 1,000,000 lines (100 %)"),
        # What did not run is in the file of errors, and has not been done.
        (batch("CANCELLED", lines=2_000, done=150, failed=1_850), "150 of 2,000 lines were answered"),
        (batch("EXPIRED"), "no line has run"),
        ({**batch("FAILED"), "errors": {"data": [{}]}}, "1 fault, nothing has run"),
        ({**batch("FAILED"), "errors": {"data": [{}] * 1000}}, "the first 1,000 faults, nothing has run"),
    ],
)
def test_progress_in_words(js: Js, shown: dict[str, Any], text: str) -> None:
    assert js("return data.progressText(input);", shown).replace("\u202f", " ") == text


@FEW
@given(
    st.lists(
        st.tuples(st.floats(0.02, 3000), st.floats(1, 6), st.lists(st.floats(1.5, 6), min_size=30, max_size=40)),
        min_size=20, max_size=20,
    )
)  # fmt: skip
def test_the_rate_is_that_of_the_job_though_its_counts_come_in_steps(
    js: Js, jobs: list[tuple[float, float, list[float]]]
) -> None:
    """(lines a second, seconds between two checkpoints, seconds between two looks)."""
    looks = []
    for speed, step, gaps in jobs:
        at, seen = 0.0, []
        for gap in gaps:
            at += gap
            seen.append([at, int(int(at / step) * step * speed)])
        looks.append(seen)
    found = js(
        "return input.looks.map((seen) => {"
        " const samples = seen.reduce((all, [at, done]) => data.sampled(all, at, done), []);"
        " return [samples.length, data.rateOf(input.batch, samples, 0)]; });",
        {"looks": looks, "batch": batch(lines=10**9)},
    )
    for (speed, step, gaps), (kept, rate) in zip(jobs, found, strict=True):
        # Off by one checkpoint at each end of the window, and one line.
        window = min(sum(gaps[1:]), 60 - 6)
        assert abs(rate - speed) <= speed * 2 * step / window + 2 / window
        assert kept <= 60 / 1.5 + 2


def test_before_there_are_samples_the_rate_is_that_since_its_beginning(js: Js) -> None:
    shown = [batch(lines=100, done=30), batch(lines=100), batch("VALIDATING"), batch("COMPLETED", lines=9, done=9)]
    assert js("return input.map((one) => data.rateOf(one, [{at: 5, done: 1}], " + str(NOW) + "));", shown) == [
        0.5, None, None, None,
    ]  # fmt: skip


def test_a_tab_that_was_not_seen_for_long_compares_with_what_it_saw_before(js: Js) -> None:
    body = (
        "const all = input.reduce((all, [at, done]) => data.sampled(all, at, done), []);"
        f"return data.rateOf({json.dumps(batch(lines=10_000))}, all, 0);"
    )
    assert js(body, [[0, 0], [3, 30], [1003, 5030], [1005, 5040]]) == pytest.approx(5010 / 1002)
    # Of another job, or by another clock: nothing is known.
    assert js("return input.reduce((all, [at, done]) => data.sampled(all, at, done), []);", [[0, 50], [9, 40]]) == [
        {"at": 9, "done": 40}
    ]


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (12.34, "12 lines/s"), (1, "1 lines/s"), (1234.4, "1,234 lines/s"), (0.5, "30 lines/min"),
        (0.01, "36 lines/h"), (0, "0 lines/h"), (None, "–"), (2.25, "2.3 lines/s"),
    ],
)  # fmt: skip
def test_a_rate_in_the_unit_in_which_it_is_at_least_one(js: Js, rate: float | None, text: str) -> None:
    assert js("return data.rateText(input);", rate) == text


def test_time_left_and_whether_that_is_too_long(js: Js) -> None:
    body = f"return input.map(([one, rate]) => [data.leftText(one, rate), data.isLate(one, rate, {NOW})]);"
    cases = [
        (batch(lines=100, done=50), 0.5), (batch(lines=100, done=99, failed=1), 0.5), (batch(lines=100_000), 20),
        (batch(lines=100), 0), (batch(lines=100), None), (batch("VALIDATING"), None), (batch("FINALIZING", 9, 9), None),
        (batch("COMPLETED", 9, 9), None),
    ]  # fmt: skip
    assert js(body, cases) == [
        ["about 1m 40s", False], ["a moment", False], ["about 1h 23m", True], ["it waits", False], ["–", False],
        ["–", False], ["–", False], ["", False],
    ]  # fmt: skip


def test_the_times_of_its_life_and_its_deadline(js: Js) -> None:
    body = f"return [data.times(input), data.endOf(input), data.deadlineText(input, {NOW}), data.meanRate(input)];"
    assert js(body, batch()) == [[["Created", NOW - 60], ["Started", NOW - 60]], None, "in 59m", None]
    ended = batch("CANCELLED", 100, 20, 80, cancel_time=NOW - 30, finalize_time=NOW - 25, end_time=NOW - 20)
    assert js(body, ended) == [
        [["Created", NOW - 60], ["Started", NOW - 60], ["Cancel asked for", NOW - 30], ["Finalizing", NOW - 25],
         ["Cancelled", NOW - 20]],
        NOW - 20, "", 0.5,
    ]  # fmt: skip
    assert js(body, batch(expire_time=NOW - 1))[2] == "now"


@FEW
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 45), st.integers(0, 40), st.integers(0, 3)), min_size=25))
def test_a_list_that_is_refreshed_is_the_apis_from_the_newest_on_with_no_gap(
    js: Js, cases: list[tuple[int, int, int, int]]
) -> None:
    """(batches there were, how many of them are shown, how many are new, which of the first page are gone)."""
    asked, wanted = [], []
    for there, seen, new, gone in cases:
        before = [batch(job_id=f"batch_{at}", create_time=NOW + at) for at in reversed(range(there))]
        shown = before[:seen]
        missing = {one["id"] for one in before[:gone]}
        now = [batch(job_id=f"batch_{at}", create_time=NOW + at) for at in reversed(range(there, there + new))]
        now += [one for one in before if one["id"] not in missing]
        asked.append([shown, now[:20], len(now) > 20])
        wanted.append([one["id"] for one in now])
    found = js("return input.map((one) => data.merged(...one).map(({id}) => id));", asked)
    for (shown, page, _), names, all_there in zip(asked, found, wanted, strict=True):
        assert names == all_there[: len(names)]
        assert len(names) >= len(page)
        known = {one["id"] for one in shown} & set(all_there)
        assert known <= set(names) or not known & {one["id"] for one in page}

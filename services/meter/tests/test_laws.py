"""Which tokens count: the quick reader against one that keeps every token."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_meter.core.audit import Tally, fold
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.laws import Run, append_run, read

runs_of_a_request = st.lists(
    st.builds(Run, attempt=st.integers(1, 4), first=st.integers(0, 12), count=st.integers(0, 6)), max_size=12
)


def naive(runs: list[Run]) -> tuple[int, set[int], int]:
    """Token by token, as the edge would: (attempt in force, valid indices, repeated)."""
    attempt, valid, repeated, following = 0, set(), 0, 0
    for run in runs:
        if run.attempt < attempt:
            continue
        if run.attempt > attempt:
            attempt = run.attempt
            valid = {kept for kept in valid if kept < run.first}
            following = max(valid, default=-1) + 1
        for index in range(run.first, run.end):
            if index < following:
                repeated += 1
            else:
                valid.add(index)
                following = index + 1
    return attempt, valid, repeated


@given(runs_of_a_request)
def test_reading_runs_gives_what_reading_tokens_gives(runs: list[Run]) -> None:
    attempt, valid, repeated = naive(runs)
    reading = read(runs)
    assert (reading.attempt, reading.tokens, reading.repeated) == (attempt, len(valid), repeated)
    assert reading.missing == max(valid, default=-1) + 1 - len(valid)


@given(runs_of_a_request)
def test_joining_runs_changes_nothing(runs: list[Run]) -> None:
    joined: list[Run] = []
    for run in runs:
        append_run(joined, run)
    reading = read(runs)
    # A first attempt without a token is not kept: there is nothing that it could void.
    assert read(joined) == (reading if joined else replace(reading, attempt=0))
    assert len(joined) <= len(runs)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_resumption_where_the_last_attempt_ended_loses_and_repeats_nothing(counts: list[int]) -> None:
    first, runs = 0, []
    for attempt, count in enumerate(counts, start=1):
        runs.append(Run(attempt, first, count))
        first += count
    assert read(runs).tokens == sum(counts)
    assert (read(runs).missing, read(runs).repeated) == (0, 0)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 9), st.integers(0, 3)), max_size=5)
    ),
    st.integers(1, 5),
)
def test_folding_does_not_depend_on_where_batches_are_cut(
    make: SimpleNamespace, frames: list[list[tuple[int, int, int, int]]], size: int
) -> None:
    requests = [bytes([number]) * 16 for number in range(4)]
    stored = []
    for sequence, deltas in enumerate(frames, start=1):
        frame = Frame(edge="e", worker="w", time_us=1_795_000_000_000_000)
        for number, attempt, first, count in deltas:
            make.tokens(frame, requests[number], first, list(range(count)), attempt=attempt)
        stored.append((sequence, frame.time_us, frame.SerializeToString()))
    whole, parts = {}, {}
    _fold_all(whole, stored)
    for begin in range(0, len(stored), size):
        _fold_all(parts, stored[begin : begin + size])
    assert whole == parts
    assert sum(tally.rows for tally in whole.values()) == sum(count for deltas in frames for *_, count in deltas)


def _fold_all(tallies: dict[bytes, Tally], stored: list[tuple[int, int, bytes]]) -> None:
    gather = FrameGather(bordered=False)
    for frame in stored:
        assert gather.add(*frame)
    fold(tallies, gather.finish())


@pytest.mark.parametrize(
    ("runs", "tokens"),
    [
        ([Run(1, 0, 10)], 10),
        ([Run(1, 0, 10), Run(2, 8, 4)], 12),  # 8 and 9 of the first attempt are void
        ([Run(1, 0, 4), Run(2, 4, 2), Run(1, 4, 9)], 6),  # a zombie's late frames
        ([Run(1, 0, 4), Run(3, 4, 2), Run(2, 1, 9)], 6),  # an attempt that never was in force resumes nothing
        ([Run(2, 0, 3)], 3),
        ([Run(1, 0, 3), Run(2, 3, 0), Run(1, 3, 2)], 3),  # the second attempt has named its index, and made nothing yet
        ([Run(1, 0, 5), Run(2, 3, 0)], 3),
    ],
)
def test_attempts(runs: list[Run], tokens: int) -> None:
    assert read(runs).tokens == tokens

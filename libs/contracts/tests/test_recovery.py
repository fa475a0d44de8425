"""How far a request has come, by its frames."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close, Fence, Frame
from inferbus.bus.v1.request_pb2 import Resume
from inferbus_contracts.recovery import Recovered, begun, fold

KEY = b"r" * 16


def delta(attempt: int, first: int, ids: list[int], time_us: int = 1) -> Frame:
    text = "".join(chr(97 + one) for one in ids)
    return Frame(
        request_ids=KEY, attempt=[attempt], first_index=[first], token_count=[len(ids)], token_id=ids,
        text=text.encode(), text_size=[len(text)], gap_us=[0], time_us=time_us,
    )  # fmt: skip


def fence(attempt: int) -> Frame:
    return Frame(fences=[Fence(request_id=KEY, attempt=attempt)])


def folded(*frames: Frame, resume: Resume | None = None) -> Recovered:
    recovered = begun(resume or Resume())
    for frame in frames:
        fold(frame, {KEY: recovered})
    return recovered


@given(st.lists(st.integers(0, 20), max_size=8), st.lists(st.integers(0, 20), max_size=8))
def test_what_is_stored_before_a_fence_counts_and_nothing_of_it_after(before: list[int], after: list[int]) -> None:
    tokens = [delta(1, index, [one], time_us=index + 1) for index, one in enumerate(before)]
    late = [delta(1, len(before) + index, [one], time_us=99) for index, one in enumerate(after)]
    found = folded(*tokens, fence(2), *late, Frame(closes=[Close(request_id=KEY, attempt=1)]), fence(2))
    assert (found.attempt, found.ids, found.closed) == (2, before, False)
    assert b"".join(text for _, text in found.texts).decode() == "".join(chr(97 + one) for one in before)
    assert found.last_us == len(before)


def test_an_end_before_the_fence_is_the_end() -> None:
    assert folded(delta(1, 0, [1]), Frame(closes=[Close(request_id=KEY, attempt=1)]), fence(2)).closed


@given(st.lists(st.integers(0, 20), max_size=5), st.lists(st.integers(0, 20), max_size=5))
def test_a_resumed_attempt_goes_on_after_what_it_was_given(first: list[int], second: list[int]) -> None:
    resume = Resume(attempt=2, token_ids=first, text=b"x" * len(first))
    resume.first_token_time.FromMicroseconds(5)
    resume.last_token_time.FromMicroseconds(7)
    opening = delta(2, len(first), [])
    tokens = [delta(2, len(first) + index, [one], time_us=20) for index, one in enumerate(second)]
    found = folded(opening, *tokens, fence(3), resume=resume)
    assert (found.attempt, found.ids) == (3, first + second)
    assert found.last_us == (20 if second else 7)
    assert found.first_us == (20 if second and not first else 5)
    assert len(b"".join(text for _, text in found.texts)) == len(first) + len(second)


@st.composite
def answers(draw: st.DrawFn) -> list[Frame]:
    """The log of one answer: attempts that go on where the fence before them left it, each of some tokens, which come
    one or several at a time; what is late of the one before comes anywhere behind its fence."""
    log, have = [], 0
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        if attempt > 1:
            late = delta(attempt - 1, have, [3])
            log += [fence(attempt), *([late] if draw(st.booleans()) else []), delta(attempt, have, [])]
        for count in draw(st.lists(st.integers(1, 3), max_size=4)):
            log.append(delta(attempt, have, [attempt] * count))
            have += count
    return log


@given(answers(), st.data())
def test_who_reads_from_the_middle_sees_a_gap_or_has_all(log: list[Frame], data: st.DataObject) -> None:
    """Unless it saw nothing at all."""
    whole, rest = folded(*log), log[data.draw(st.integers(0, len(log))) :]
    found = folded(*rest)
    assert not whole.gap
    if any(frame.first_index for frame in rest):
        assert found.gap or found.ids == whole.ids


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 8))
def test_a_gap_at_what_an_attempt_was_given_is_seen(first: list[int], missing: int) -> None:
    """Its resume has fewer tokens than its frames go on after."""
    resume = Resume(attempt=2, token_ids=first)
    found = folded(delta(2, len(first) + missing, [1]), fence(3), resume=resume)
    assert (found.gap, found.ids) == (True, first)


def test_a_later_attempt_that_joins_on_mends_a_gap() -> None:
    found = folded(delta(1, 0, [1, 2]), delta(1, 5, [6]))
    assert (found.gap, found.ids) == (True, [1, 2])
    fold(delta(2, 2, []), {KEY: found})
    fold(delta(2, 2, [3]), {KEY: found})
    assert (found.gap, found.ids) == (False, [1, 2, 3])

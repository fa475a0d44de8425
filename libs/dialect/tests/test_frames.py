"""Frames are decoded as they were built, and delivered by the laws of the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close, DeltaLogprobs, Frame, TokenLogprob
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_dialect.frames import deltas
from inferbus_dialect.order import Verdict, judge
from inferbus_dialect.sse import escape
from inferbus_runtime.errors import InferBusError

ROW = st.tuples(
    st.binary(min_size=16, max_size=16), st.integers(0, 2), st.integers(1, 3), st.integers(0, 1 << 20),
    st.integers(0, 5), st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)  # fmt: skip


def build(rows: list[tuple[bytes, int, int, int, int, str]]) -> Frame:
    return Frame(
        contexts=[RequestContext()] * 3,
        request_ids=b"".join(row[0] for row in rows),
        context_index=[row[1] for row in rows],
        attempt=[row[2] for row in rows],
        first_index=[row[3] for row in rows],
        token_count=[row[4] for row in rows],
        text_size=[len(row[5].encode()) for row in rows],
        text="".join(row[5] for row in rows).encode(),
    )


@given(st.lists(ROW, max_size=8))
def test_rows_come_back(rows: list[tuple[bytes, int, int, int, int, str]]) -> None:
    expected = [(*row[:5], row[5].encode(), escape(row[5].encode()), ()) for row in rows]
    assert list(deltas(Frame.FromString(build(rows).SerializeToString()))) == expected


def test_columns_left_out_have_their_defaults() -> None:
    frame = Frame(contexts=[RequestContext()], request_ids=b"a" * 32, first_index=[4, 5], text_size=[1, 0], text=b"x")
    assert list(deltas(frame)) == [(b"a" * 16, 0, 1, 4, 1, b"x", b"x", ()), (b"a" * 16, 0, 1, 5, 1, b"", b"", ())]


def test_log_probabilities_are_given_to_the_delta_that_they_belong_to() -> None:
    frame = build([(b"a" * 16, 0, 1, 0, 1, "x"), (b"b" * 16, 0, 1, 0, 2, "yz")])
    tokens = [TokenLogprob(token_id=one, logprob=-float(one)) for one in (7, 8)]
    frame.logprobs.append(DeltaLogprobs(delta=1, tokens=tokens))
    first, second = deltas(frame)
    assert list(first[7]) == []
    assert list(second[7]) == tokens


@pytest.mark.parametrize(
    "change",
    [
        {"request_ids": b"short"}, {"text_size": [1]}, {"text": b"abc"}, {"context_index": [0, 9]},
        {"attempt": [1]}, {"attempt": [1, 0]}, {"token_count": [1, 1, 1]},
        {"closes": [Close(context_index=7)]}, {"contexts": []},
    ],
)  # fmt: skip
def test_columns_that_do_not_agree_are_an_error(change: dict[str, object]) -> None:
    columns = {
        "contexts": [RequestContext()], "request_ids": b"a" * 32, "first_index": [0, 1], "text_size": [1, 1],
        "text": b"xy", **change,
    }  # fmt: skip
    with pytest.raises(InferBusError) as caught:
        deltas(Frame(**columns))
    assert caught.value.reason == "broken_frame"


# (attempt, first index, token count) of deltas as they may stand in the log
LOG = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(0, 3)), max_size=30)


@given(LOG)
def test_each_index_is_delivered_once_in_order_and_never_from_a_void_attempt(log: list[tuple[int, int, int]]) -> None:
    attempt, index, delivered = 0, 0, []
    highest = 0
    for delta_attempt, first_index, count in log:
        verdict = judge(attempt, index, delta_attempt, first_index, count)
        highest = max(highest, delta_attempt)
        if verdict is Verdict.GAP:
            assert first_index > index or first_index + count > index > first_index
            break
        attempt = max(attempt, delta_attempt)
        if verdict is Verdict.ACCEPT:
            assert delta_attempt == highest
            delivered += range(first_index, first_index + count)
            index = first_index + count
    assert delivered == list(range(len(delivered)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.data())
def test_a_log_without_a_gap_is_delivered_whole_whatever_is_repeated(counts: list[int], data: st.DataObject) -> None:
    starts = [sum(counts[:at]) for at in range(len(counts))]
    index = 0
    for first_index, count in zip(starts, counts, strict=True):
        assert judge(1, index, 1, first_index, count) is Verdict.ACCEPT
        index = first_index + count
        again = data.draw(st.integers(0, starts.index(first_index)))
        if starts[again] < index:
            assert judge(1, index, 1, starts[again], counts[again]) is Verdict.DROP

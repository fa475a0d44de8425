"""Properties of the pure parts."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1 import request_pb2 as wire
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import Labels
from inferbus.common.v1.usage_pb2 import Operation
from inferbus_contracts.pieces import CallStart, Pieces, Reasoning, Spans, Text, pieces_of
from inferbus_contracts.recovery import Recovered, fold
from inferbus_runtime.clock import timestamp
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.columns import StepFrames, close_of
from inferbus_worker.core.kv_budget import KvBudget
from inferbus_worker.core.lifecycle import State, advance
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.core.timing import gap_us, unix_us
from inferbus_worker.core.wire import generation_of
from inferbus_worker.engine import (
    Alternative,
    Chat,
    Constraint,
    ConstraintKind,
    Embed,
    Finish,
    Finished,
    Generation,
    Infer,
    Message,
    Output,
    Prompt,
    Step,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolMode,
    Vector,
)

TEXT = st.text(alphabet="ab €", max_size=12)


def chunks_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)]


def filtered(chunks: list[str], stops: tuple[str, ...], reader: Pieces | None = None) -> tuple[str, bool]:
    stop_filter, out = StopFilter(stops, reader), ""
    for chunk in chunks:
        cut = stop_filter.feed(chunk)
        out += cut.text
        if cut.stopped:
            return out, True
    out += stop_filter.flush()
    return out, stop_filter.found is not None


@given(TEXT, st.lists(st.integers(0, 12)), st.lists(st.text(alphabet="ab €", max_size=4), max_size=3))
def test_stops_do_not_depend_on_chunks(text: str, cuts: list[int], stops: list[str]) -> None:
    given_stops = tuple(stops)
    out, stopped = filtered(chunks_of(text, cuts), given_stops)
    assert (out, stopped) == filtered(list(text), given_stops)
    real = [stop for stop in given_stops if stop]
    assert stopped == any(stop in text for stop in real)
    assert not any(stop in out for stop in real)
    assert text.startswith(out)
    if not stopped:
        assert out == text


@given(TEXT, st.lists(st.integers(0, 12)), st.text(alphabet="ab €", min_size=1, max_size=4))
def test_stops_hold_back_no_more_than_they_must(text: str, cuts: list[int], stop: str) -> None:
    stop_filter, out = StopFilter((stop,)), ""
    for chunk in chunks_of(text, cuts):
        cut = stop_filter.feed(chunk)
        out += cut.text
        if cut.stopped:
            return
    assert len(text) - len(out) < len(stop)


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>b"}}\n</tool_call>'
MARKED = st.lists(
    st.sampled_from([CALL, CALL[:20], "<tool_call>", "<think>", "</think>", "\n", "ab", "b", "<", '"']), max_size=8
).map("".join)
READING = st.fixed_dictionaries({"tools": st.booleans(), "reasoning": st.booleans(), "must_call": st.booleans()})


@given(
    MARKED, st.lists(st.integers(0, 200)), READING,
    st.lists(st.sampled_from(["\n", "b", "}", "<", "ab\n", ">", "a\nb"]), min_size=1, max_size=3),
)  # fmt: skip
def test_stops_are_looked_for_where_a_client_sees_text(
    text: str, cuts: list[int], reading: dict[str, bool], stops: list[str]
) -> None:
    reading["must_call"] &= reading["tools"]
    out, stopped = filtered(chunks_of(text, cuts), tuple(stops), Pieces(**reading))
    assert (out, stopped) == filtered(list(text), tuple(stops), Pieces(**reading))
    assert text.startswith(out)
    assert stopped or out == text
    spans = Spans(Pieces(**reading))
    runs = [""]
    for span in [*spans.feed(text), *spans.end()]:
        runs = [*runs[:-1], runs[-1] + span.raw] if span.said else [*runs, ""]
    assert stopped == any(stop in run for run in runs for stop in stops)
    shown = pieces_of(out, **reading).text
    assert shown == "".join(runs)[: len(shown)]


@pytest.mark.parametrize(
    ("text", "stops", "out"),
    [
        (CALL, ("\n", "}", "<", '"'), CALL),
        (CALL + "\n" + CALL, ("\n",), CALL + "\n" + CALL),
        ("<think>\nso\n</think>\n\nfine\nno", ("\n", "so"), "<think>\nso\n</think>\n\nfine"),
        ("I look.\n" + CALL, ("\n",), "I look."),
        (CALL + " Done.", ("Done",), CALL + " "),
        ("a" + CALL + "b", ("ab",), "a" + CALL + "b"),
        ("<tool_call>no call\n", ("\n",), "<tool_call>no call"),
        ("a <tool", ("<",), "a "),
    ],
)  # fmt: skip
def test_stops_and_calls(text: str, stops: tuple[str, ...], out: str) -> None:
    for chunks in ([text], list(text)):
        assert filtered(chunks, stops, Pieces(tools=True, reasoning=True)) == (out, out != text)


def test_words_that_look_like_a_call_are_text_where_there_are_none() -> None:
    assert filtered([CALL], ("\n",)) == ("<tool_call>", True)
    assert filtered(["<think>a</think>"], ("a",), Pieces(tools=True)) == ("<think>", True)


def test_who_has_calls_and_thoughts() -> None:
    def of(reasons: bool = False, source: Any = None, **chat: Any) -> Pieces | None:
        made = source or Chat((Message("user", "x"),), **chat)
        return reader_of(Generation(b"k" * 16, made), reasons=reasons)

    assert of() is None
    assert of(tools=(Tool("f"),), tool_mode=ToolMode.NONE) is None
    assert of(True, Prompt("x")) is None
    tools = of(tools=(Tool("f"),))
    assert tools is not None
    assert tools.feed(CALL)[0] == CallStart(0, "f")
    thinks = of(True)
    assert thinks is not None
    assert thinks.feed("<think>x") == [Reasoning("x")]
    assert thinks.feed("</think>" + CALL) == [Text(CALL)]


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3), TEXT), max_size=20))
def test_coalescing_keeps_order_and_names_each_once(deltas: list[tuple[int, list[int], str]]) -> None:
    builder = StepBuilder()
    for key, ids, text in deltas:
        builder.add(bytes([key]), ids, text.encode())
    assert builder.tokens == sum(len(ids) for _, ids, _ in deltas)
    step = builder.take(5)
    assert not builder
    assert len(set(step.keys)) == len(step.keys)
    position = 0
    for key, count, text in zip(step.keys, step.counts, step.texts, strict=True):
        assert step.token_ids[position : position + count] == [i for k, ids, _ in deltas if k == key[0] for i in ids]
        assert text.decode() == "".join(t for k, _, t in deltas if k == key[0])
        position += count


@given(st.lists(st.integers(0, 400)), st.integers(0, 2000), st.integers(100, 1000))
def test_kv_budget(held: list[int], wanted: int, size: int) -> None:
    budget = KvBudget(size)
    back = budget.overflow(held)
    left = held[: len(held) - back]
    assert len(left) >= min(1, len(held))
    assert sum(left) <= budget.usable or len(left) == 1
    if back:
        assert sum(held[: len(left) + 1]) > budget.usable, "no more step back than must"
    if held and budget.admits(held, wanted):
        assert budget.overflow([*held, wanted]) == 0


def test_lifecycle_has_no_way_back() -> None:
    assert advance(State.STARTING, State.ACTIVE) is State.ACTIVE
    for state in State:
        with pytest.raises(ValueError, match="does not go"):
            advance(state, State.STARTING)
    with pytest.raises(ValueError, match="does not go"):
        advance(State.DRAINED, State.ACTIVE)


def test_restart_limit_counts_within_its_window() -> None:
    limit = RestartLimit(2, 10.0)
    assert limit.allows([], 0.0)
    assert limit.allows([1.0], 2.0)
    assert not limit.allows([1.0, 2.0], 3.0)
    assert limit.allows([1.0, 2.0], 11.5)


def test_gaps_fit_their_column() -> None:
    assert gap_us(10, 4) == 6
    assert gap_us(4, 10) == 0
    assert gap_us(1 << 60, 0) == (1 << 32) - 1


# --- frames ---------------------------------------------------------------------------------------------------------

START = 1_700_000_000_000_000


def new_running(number: int, tenant: int, edge: int, attempt: int = 1) -> Running:
    request = GenerateRequest(request_id=bytes([number]) * 16, edge=f"edge-{edge}", accepted_time=timestamp(START))
    request.context.tenant_id = f"tenant-{tenant}"
    return running_of(Work(request=request, placed_time=timestamp(START + 1)), "rev", attempt)


def test_what_it_waited_for_its_model_is_in_its_close() -> None:
    work = Work(request=GenerateRequest(request_id=bytes(16)), cold_start_us=9_000)
    finished = Finished(bytes(16), Finish.CANCELLED, 0)
    assert close_of(running_of(work, "rev"), finished, "e", START).cold_start_us == 9_000


DELTA = st.tuples(st.lists(st.integers(0, 50_000), max_size=3), st.text(max_size=4))


@st.composite
def histories(draw: Any) -> list[list[tuple[int, list[int], str]]]:
    """Steps; in each, some of up to six requests have a delta."""
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        who = draw(st.lists(st.integers(0, 5), unique=True, max_size=6))
        steps.append([(number, *draw(DELTA)) for number in who])
    return steps


def six(largest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, largest), min_size=6, max_size=6)


def apply(running: dict[bytes, Running], deltas: list[tuple[int, list[int], str]], now: int) -> list[Frame]:
    step = Step(now)
    for number, ids, text in deltas:
        step.keys.append(bytes([number]) * 16)
        step.counts.append(len(ids))
        step.token_ids += ids
        step.texts.append(text.encode())
    frames = StepFrames(now)
    assert frames.add_deltas(step, running) == sum(
        len(ids) for number, ids, _ in deltas if bytes([number]) * 16 in running
    )
    return frames.frames()


def stored(frame: Frame) -> Frame:
    return Frame.FromString(frame.SerializeToString())


@given(
    histories(),
    st.lists(st.integers(0, 1), min_size=6, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_frames_hold_what_the_engine_said(
    take_frame: Any, received_type: Any, history: Any, edges: list[int], tenants: list[int]
) -> None:
    """Any interleaving of steps gives frames that decode to the same tokens, by the laws, on each edge."""
    running = {one.key: one for one in (new_running(n, tenants[n], edges[n]) for n in range(5))}  # 5 is not ours
    received = {key: received_type() for key in running}
    now = START
    for deltas in history:
        now += 20_000
        frames = apply(running, deltas, now)
        assert len({frame.edge for frame in frames}) == len(frames)
        for frame in frames:
            take_frame(stored(frame), received)
    end = StepFrames(now)
    for one in running.values():
        end.add_close(one, Finished(one.key, Finish.LENGTH, 7, 3), "test")
    for frame in end.frames():
        take_frame(stored(frame), received)
    for number, one in enumerate(running.values()):
        mine = [(ids, text) for deltas in history for n, ids, text in deltas if n == number]
        assert received[one.key].ids == [token for ids, _ in mine for token in ids] == one.ids
        assert received[one.key].text.decode() == "".join(text for _, text in mine)
        close = received[one.key].close
        assert (close.usage.input_tokens, close.usage.cached_input_tokens) == (7, 3)
        times = sum(received[one.key].gaps)
        assert times == (one.last_us - START if one.ids else 0), "gaps add up to the time since acceptance"


@given(histories(), st.integers(0, 8), st.integers(0, 3))
def test_recovery_reads_what_was_stored(history: Any, broken_at: int, resent: int) -> None:
    """A second attempt that resumes from the log has all tokens of the first, and a zombie's late frames are void."""
    running = {one.key: one for one in (new_running(n, 0, 0) for n in range(6))}
    before, after = history[:broken_at], history[broken_at:]
    log = [stored(frame) for deltas in before for frame in apply(running, deltas, START)]
    found = {key: Recovered() for key in running}
    for frame in log:
        fold(frame, found)
    for key, one in running.items():
        assert found[key].ids == one.ids
        assert found[key].attempt <= 1
        assert not found[key].closed
    again = {one.key: one for one in (new_running(n, 0, 0, attempt=2) for n in range(6))}
    opening = StepFrames(START + 100)
    for one in again.values():
        one.ids = list(found[one.key].ids)
        opening.open_attempt(one)
    log += [stored(frame) for frame in opening.frames()]
    zombie = [stored(frame) for deltas in after[:resent] for frame in apply(running, deltas, START + 101)]
    rest = [stored(frame) for deltas in after for frame in apply(again, deltas, START + 102)]
    final = {key: Recovered() for key in running}
    for frame in [*log, *zombie, *rest]:
        fold(frame, final)
    for key, one in again.items():
        assert final[key].ids == one.ids
        assert final[key].attempt == 2


@pytest.mark.parametrize("said", [START + 7, 0])
def test_each_attempt_hands_on_when_an_engine_had_it_first(said: int) -> None:
    """Where the first one left it on the log; when a later one began is not taken for it."""
    first, second, third = (new_running(0, 0, 0, attempt=attempt) for attempt in (1, 2, 3))
    first.first_started_us, found = said, Recovered()
    for one in (first, second, third):
        if one is not first:
            one.first_started_us, one.started_us = found.first_started_us, START + 1000 * one.attempt
        frames = StepFrames(START + 2000)
        frames.open_attempt(one)
        for frame in frames.frames():
            fold(stored(frame), {one.key: found})
        assert found.first_started_us == said
    close = close_of(third, Finished(third.key, Finish.STOP, 1), "synthetic", START + 9000)
    assert close.HasField("first_started_time") == bool(said)
    assert unix_us(close.first_started_time) == said
    assert unix_us(close.started_time) == START + 3000


def test_columns_that_hold_their_default_stay_empty() -> None:
    running = {one.key: one for one in (new_running(n, 0, 0) for n in range(3))}
    (frame,) = apply(running, [(0, [1], "a"), (1, [2], "b"), (2, [3], "c")], START + 5)
    assert not frame.context_index
    assert not frame.attempt
    assert not frame.token_count
    assert len(frame.contexts) == 1
    assert list(frame.gap_us) == [5, 5, 5]


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token, b"\xf0", -0.5, (Alternative(token, b"\xf0", -0.5), Alternative(7, b"x", -2.0)))


@given(histories(), st.sets(st.integers(0, 5)))
def test_logprobs_come_with_their_tokens_and_only_to_who_asked(
    take_frame: Any, received_type: Any, history: Any, asked: set[int]
) -> None:
    running = {one.key: one for one in (new_running(n, 0, n % 2) for n in range(5))}  # 5 is not ours
    received = {key: received_type() for key in running}
    for deltas in history:
        builder = StepBuilder()
        for number, ids, text in deltas:
            wanted = [logprob(token) for token in ids] if number in asked else None
            builder.add(bytes([number]) * 16, ids, text.encode(), wanted)
        frames = StepFrames(START)
        frames.add_deltas(builder.take(START), running)
        for frame in frames.frames():
            take_frame(stored(frame), received)
            for said in frame.logprobs:
                assert frame.request_ids[16 * said.delta] in asked
    for number, one in enumerate(running.values()):
        got = received[one.key].logprobs
        assert [said.token_id for said in got] == (one.ids if number in asked else [])
        assert all((said.text, [other.token_id for other in said.top][1:]) == (b"\xf0", [7]) for said in got)


def test_an_attempt_opens_once_with_what_an_edge_needs(take_frame: Any, received_type: Any) -> None:
    one, other, refused = (new_running(number, number, 0) for number in range(3))
    for running in (one, other, refused):
        running.request.reply = b"reply of " + running.key[:1]
    known = {running.key: running for running in (one, other)}
    received = {running.key: received_type() for running in (one, other, refused)}
    frames = [*apply(known, [(0, [1], "a")], START), *apply(known, [(0, [2], "b"), (1, [3], "c")], START)]
    end = StepFrames(START)
    for running in (one, refused):
        end.add_close(running, Finished(running.key, Finish.STOP, 1), "test")
    frames += end.frames()
    again = new_running(1, 1, 0, attempt=2)
    again.ids, again.request.reply = [3], other.request.reply
    opening = StepFrames(START)
    opening.open_attempt(again)
    frames += opening.frames()
    for frame in frames:
        take_frame(stored(frame), received)
    assert [[opens.request_id[0] for opens in frame.opens] for frame in frames] == [[0], [1], [2], [1]]
    assert received[refused.key].replies == [b"reply of \x02"]
    assert received[other.key].attempts == [1, 2]
    contexts = [frame.contexts[opens.context_index].tenant_id for frame in frames for opens in frame.opens]
    assert contexts == ["tenant-0", "tenant-1", "tenant-2", "tenant-1"]


def test_vectors_are_frames_without_deltas(take_frame: Any, received_type: Any) -> None:
    one, gone = new_running(0, 0, 0), new_running(1, 0, 0)
    received = {one.key: received_type()}
    for index in range(2):
        frames = StepFrames(START)
        step = Step(START, embeddings=[Vector(one.key, index, b"v%d" % index), Vector(gone.key, 0, b"void")])
        assert frames.add_deltas(step, {one.key: one}) == 0
        (frame,) = frames.frames()
        assert not frame.request_ids
        assert len(frame.opens) == (index == 0)
        take_frame(stored(frame), received)
    end = StepFrames(START)
    end.add_close(one, Finished(one.key, Finish.STOP, 9), "test")
    take_frame(stored(end.frames()[0]), received)
    assert received[one.key].vectors == {0: b"v0", 1: b"v1"}
    assert received[one.key].attempts == [1]
    assert (received[one.key].close.usage.input_tokens, received[one.key].close.usage.output_tokens) == (9, 0)


def test_vectors_on_the_log_are_of_an_attempt() -> None:
    """Else the next one would have its number, and what is late of the first would be taken for the second's."""
    one, other = new_running(0, 0, 0, attempt=3), new_running(1, 0, 0)
    frames = StepFrames(START)
    frames.add_deltas(Step(START, embeddings=[Vector(one.key, 0, b"v")]), {one.key: one})
    (frame,) = frames.frames()
    found = {one.key: Recovered(), other.key: Recovered(attempt=2, ids=[5])}
    frame.embeddings.add(request_id=other.key, values=b"void")
    fold(stored(frame), found)
    assert (found[one.key].attempt, found[one.key].ids) == (3, [])
    assert (found[other.key].attempt, found[other.key].ids) == (2, [5])


def test_parts_of_an_answer_on_the_log_are_of_an_attempt(take_frame: Any, received_type: Any) -> None:
    first, second = new_running(0, 0, 0), new_running(0, 0, 0, attempt=2)
    found, received = {first.key: Recovered()}, {first.key: received_type()}
    for one, data in ((first, b"void"), (second, b"kept")):
        frames = StepFrames(START)
        assert frames.add_deltas(Step(START, outputs=[Output(one.key, 0, data)]), {one.key: one}) == 0
        (frame,) = frames.frames()
        assert not frame.request_ids
        take_frame(stored(frame), received)
        fold(stored(frame), found)
        assert (found[one.key].attempt, found[one.key].ids, found[one.key].closed) == (one.attempt, [], False)
    assert (received[first.key].output, received[first.key].attempts) == (b"kept", [1, 2])


def test_an_end_says_what_was_asked() -> None:
    asked = {
        Operation.OPERATION_CHAT: lambda request: request.chat.messages.add(),
        Operation.OPERATION_TEXT_COMPLETION: lambda request: setattr(request.prompt, "text", "x"),
        Operation.OPERATION_EMBEDDINGS: lambda request: request.embedding.inputs.add(),
        Operation.OPERATION_INFERENCE: lambda request: setattr(request.inference, "request", b"x"),
        Operation.OPERATION_UNSPECIFIED: lambda request: request.ClearField("chat"),
    }
    for operation, ask in asked.items():
        request = GenerateRequest(request_id=b"r" * 16)
        ask(request)
        one = running_of(Work(request=request), "rev", 1)
        assert StepFrames(START).add_close(one, Finished(one.key, Finish.STOP, 0), "test").operation == operation
        if operation == Operation.OPERATION_INFERENCE:
            assert generation_of(one).input == Infer(b"x")


def test_an_end_says_what_the_tenant_said_of_the_request() -> None:
    said = Labels(end_user="ada", tags={"team": "search"})
    for labels in (said, None):
        one = running_of(Work(request=GenerateRequest(request_id=b"r" * 16, labels=labels)), "rev", 1)
        frames = StepFrames(START)
        close = frames.add_close(one, Finished(one.key, Finish.STOP, 0), "test")
        assert close.HasField("labels") == (labels is not None)
        assert close.labels == (labels or Labels())
        # What is in every frame does not have it.
        assert b"ada" not in b"".join(context.SerializeToString() for context in frames.frames()[0].contexts)


def test_input_is_billed_with_one_choice_only() -> None:
    one = new_running(0, 0, 0)
    one.request.input_counted_elsewhere = True
    close = StepFrames(START).add_close(one, Finished(one.key, Finish.STOP, 9, 5), "test")
    assert (close.usage.input_tokens, close.usage.cached_input_tokens) == (0, 0)


def test_all_that_the_bus_can_ask_reaches_the_engine() -> None:
    request = GenerateRequest(request_id=b"r" * 16, cache_salt=b"salt")
    request.chat.messages.add(role="assistant", content="c", name="n").tool_calls.add(id="1", name="f", arguments="{}")
    request.chat.messages.add(role="tool", content="t", tool_call_id="1")
    request.chat.tools.add(name="f", description="d", parameters="{}")
    request.chat.tool_mode, request.chat.tool_name = wire.ToolMode.TOOL_MODE_REQUIRED, "f"
    request.chat.parallel_tool_calls, request.chat.reasoning_effort = True, "low"
    request.constraint.regex = "a*"
    request.sampling.logit_bias[5] = -1.5
    request.sampling.logprobs, request.sampling.min_p = 0, 0.5
    made = generation_of(running_of(Work(request=request), "rev", 1))
    call = ToolCall("1", "f", "{}")
    assert made.input == Chat(
        (Message("assistant", "c", "n", (call,)), Message("tool", "t", "", (), "1")),
        (Tool("f", "d", "{}"),), ToolMode.REQUIRED, "f", True, "low",
    )  # fmt: skip
    assert (made.constraint, made.cache_salt) == (Constraint(ConstraintKind.REGEX, "a*"), b"salt")
    assert (made.sampling.logit_bias, made.sampling.logprobs, made.sampling.min_p) == (((5, -1.5),), 0, 0.5)


def test_prompts_and_texts_to_embed_reach_the_engine() -> None:
    request = GenerateRequest(request_id=b"r" * 16)
    request.prompt.tokens.ids.extend([1, 2])
    assert generation_of(running_of(Work(request=request), "rev", 1)).input == Prompt((1, 2))
    request.prompt.text = "x"
    assert generation_of(running_of(Work(request=request), "rev", 1)).input == Prompt("x")
    request.embedding.inputs.add(text="a")
    request.embedding.inputs.add().tokens.ids.append(3)
    assert generation_of(running_of(Work(request=request), "rev", 1)).input == Embed((Prompt("a"), Prompt((3,))))
    assert generation_of(running_of(Work(request=request), "rev", 1)).constraint is None


def test_sampling_keeps_absent_apart_from_zero() -> None:
    request = GenerateRequest(request_id=b"r" * 16)
    request.chat.messages.add(role="user", content="x")
    request.sampling.temperature = 0.0
    generation = generation_of(running_of(Work(request=request), "rev", 1))
    assert generation.sampling.temperature == 0.0
    assert generation.sampling.top_p is None
    assert generation.sampling.max_tokens is None

"""The decisions of the engine ``openai`` by themselves: what may be delivered, what is a call, who may ask again."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.pieces import pieces_of
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import Chat, Generation, Message, Prompt
from inferbus_worker.engines.openai_calls import CallError, CallWriter
from inferbus_worker.engines.openai_errors import Kind, RefusedError, TooLongError, UpstreamError, failure_of
from inferbus_worker.engines.openai_events import BrokenAnswerError, Chunk, FailedEventError, chunk_of
from inferbus_worker.engines.openai_limits import Breaker, BreakerLimits, RetryBudget
from inferbus_worker.engines.openai_run import Form, Run
from inferbus_worker.engines.openai_writer import Ledger, LogText, Out

ASKED = Generation(b"k" * 16, Chat((Message("user", "x"),)))


# --- text and its tokens ----------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_tokens_go_out_with_their_text(events: list[str], stops: list[str]) -> None:
    """At every moment: the text that is out is that of the tokens that are out, and nothing is lost at the end."""
    ledger, out_ids, out_text, stopped = Ledger(StopFilter(tuple(stops))), [], "", False
    for number, text in enumerate(events):
        out = ledger.feed(text, [number])
        out_ids += out.ids
        out_text += out.text
        if stopped := out.stopped:
            assert out_ids == list(range(number + 1))
            break
        assert "".join(events[one] for one in out_ids) == out_text
    if not stopped:
        rest = ledger.flush()
        assert out_ids + rest.ids == list(range(len(events)))
        assert out_text + rest.text == "".join(events)
    whole = "".join(events)
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(out_text)


@given(st.text("abc", max_size=12), st.integers(0, 12), st.text("abc", min_size=1, max_size=4))
def test_what_was_delivered_is_not_delivered_again(text: str, at: int, stop: str) -> None:
    before, after = text[:at], text[at:]
    ledger = Ledger(StopFilter((stop,)))
    if ledger.delivered(before):
        assert stop in before
        return
    out = ledger.feed(after, [1])
    said = out.text + ("" if out.stopped else ledger.flush().text)
    # A stop string that began in what was delivered is found, and what was delivered of it stays delivered.
    assert said == (text[: text.index(stop)][len(before) :] if stop in text else after)


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.data())
def test_halves_of_characters_become_whole(text: str, data: Any) -> None:
    units = text.encode("utf-16-le")
    log, said, at = LogText("", shows_thoughts=False), "", 0
    while at < len(units):
        size = 2 * data.draw(st.integers(1, 4))
        part = units[at : at + size].decode("utf-16-le", "surrogatepass")
        # As JSON gives it: a pair inside one string is one character, a half stays one.
        said += log.feed(Chunk(text=json.loads(json.dumps(part))))
        said.encode()
        at += size
    assert said + log.end() == text


def test_thoughts_have_their_marks_or_are_left_out() -> None:
    chunks = [Chunk(reasoning="Hm"), Chunk(reasoning=", yes."), Chunk(text="Four"), Chunk(text=".")]
    for shown, expected in ((True, "<think>Hm, yes.</think>Four."), (False, "Four.")):
        log = LogText("", shows_thoughts=shown)
        assert "".join(map(log.feed, chunks)) + log.end() == expected
        assert log.plain is not shown
    cut = LogText("", shows_thoughts=True)
    assert cut.feed(Chunk(reasoning="Hm")) + cut.end() == "<think>Hm</think>"


def test_an_answer_made_again_gives_only_what_is_new() -> None:
    run = Run(ASKED, StopFilter(()), shows_thoughts=False, continues=False, count=None)
    assert run.begin() is Form.FRESH
    assert run.take(Chunk(text="One, ", output_tokens=2, input_tokens=9)) == Out([2**32 - 1] * 2, "One, ")
    assert run.begin() is Form.AGAIN
    assert run.take(Chunk(text="On", output_tokens=1)).text == ""
    assert run.begin() is Form.AGAIN, "it broke off once more, before it was as far"
    assert run.take(Chunk(text="One", output_tokens=1)) == Out()
    assert run.take(Chunk(text=", two", output_tokens=4)) == Out([2**32 - 1] * 2, "two")
    run.take(Chunk(input_tokens=9, output_tokens=5, final=True))
    run.add_surplus()
    assert run.ledger.flush().ids == [2**32 - 1]
    assert (run.tokens, run.input_tokens, run.estimated) == (5, 9, False)


# --- calls ------------------------------------------------------------------------------------------------------------


def call(index: int | None = 0, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    made = {"function": {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}}
    return made if index is None else made | {"index": index}


def written(deltas: list[Any]) -> str:
    writer = CallWriter()
    return "".join(map(writer.feed, deltas)) + writer.end()


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        ([call(0, "f", ""), call(0, None, '{"a"'), call(0, None, ": 1}")], [("f", '{"a": 1}')]),
        ([call(0, "f", '{"a": 1}'), call(1, "g", "{}")], [("f", '{"a": 1}'), ("g", "{}")]),
        ([call(None, "f", '{"a": 1}'), call(None, "g", '{"b": 2}')], [("f", '{"a": 1}'), ("g", '{"b": 2}')]),
        ([call(0, "f"), call(0, "f", "{"), call(0, "f", "}")], [("f", "{}")]),
        ([call(0, "f")], [("f", "{}")]),
        ([call(0, "f", "null")], [("f", "{}")]),
        ([call(0, "f", {"a": "é"})], [("f", '{"a": "é"}')]),
        ([call(0, 'f"\\', '\n{"a": "}"}')], [('f"\\', '{"a": "}"}')]),
        ([call(3, "f", "{}"), call(7, "g", "{}")], [("f", "{}"), ("g", "{}")]),
    ],
)
def test_calls_are_written_as_the_edge_reads_them(deltas: list[Any], calls: list[tuple[str, str]]) -> None:
    said = pieces_of(written(deltas), tools=True)
    assert [(one.name, one.arguments) for one in said.calls] == calls
    assert said.text == ""


@pytest.mark.parametrize(
    "deltas",
    [[call(0, None, "{}")], [call(0, "")], [call(0, "f", '"text"')], [call(1, "f", "{}"), call(0, "g", "{}")]],
)
def test_what_is_no_call_is_none(deltas: list[Any]) -> None:
    with pytest.raises(CallError):
        written(deltas)


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "stop"),
    [
        ({"choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": "ab"}]}, "ab"),
        ({"choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": 2}]}, None),
        ({"choices": [{"delta": {}, "finish_reason": "stop", "matched_stop": "ab"}]}, "ab"),
        ({"choices": [{"text": "", "finish_reason": "stop"}], "__verbose": {"stopping_word": "ab"}}, "ab"),
    ],
)
def test_whoever_names_the_stop_string_is_heard(event: Any, stop: str | None) -> None:
    assert chunk_of(event).stop == stop


def test_old_probabilities_of_completions() -> None:
    said = {"tokens": ["a", "b"], "token_logprobs": [None, -0.5], "top_logprobs": [None, {"b": -0.5, "c": -0.1}]}
    read = chunk_of({"choices": [{"text": "ab", "logprobs": said}]}).logprobs
    assert [(one.text, one.logprob) for one in read] == [(b"a", 0.0), (b"b", -0.5)]
    assert [one.text for one in read[1].top] == [b"c", b"b"]


@pytest.mark.parametrize("event", [5, [], {"choices": 5}, {"choices": ["x"]}, {"choices": [{"delta": {"content": 5}}]}])
def test_what_nobody_understands(event: Any) -> None:
    with pytest.raises(BrokenAnswerError):
        chunk_of(event)


@pytest.mark.parametrize(
    ("error", "status"), [({"code": 429}, 429), ({"code": "server_error"}, 500), ("it broke", 500), ({"code": 7}, 500)]
)
def test_errors_in_a_stream(error: Any, status: int) -> None:
    with pytest.raises(FailedEventError) as failed:
        chunk_of({"error": error})
    assert failed.value.status == status


# --- errors -----------------------------------------------------------------------------------------------------------

# What servers say of an input that is too long.
TOO_LONG = (
    "This model's maximum context length is 8192 tokens. However, your prompt contains at least 8193 input tokens",
    "request (9031 tokens) exceeds the available context size (8192 tokens), try increasing it",
    "the rendered prompt is 40031 tokens; the model context is 8192 — shorten the conversation or raise --ctx",
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens: too many tokens",
    "The sum of prompt length (9000) and query length (0) should not exceed max_num_tokens (8192)",
)


@pytest.mark.parametrize("message", TOO_LONG)
def test_too_long_in_many_words(message: str) -> None:
    for source, where in ((ASKED.input, "messages"), (Prompt("x"), "prompt")):
        failure = failure_of(
            400, {}, json.dumps({"error": {"message": message}}).encode(), Generation(b"", source), 0.0
        )
        assert isinstance(failure, TooLongError)
        assert (failure.refusal.reason, failure.refusal.param) == ("context_length_exceeded", where)
        assert message not in failure.refusal.message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sat, 21 Nov 2026 19:00:10 GMT"}, 10.0), ({"retry-after": "soon"}, None), ({}, None),
    ],
)  # fmt: skip
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    failure = failure_of(429, headers, b"not JSON", ASKED, 1795287600.0)
    assert isinstance(failure, UpstreamError)
    assert (failure.kind, failure.after) == (Kind.BUSY, seconds)
    error = failure.to_tenant()
    assert error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    assert error.retry_after == timedelta(seconds=max(1.0, seconds or 1.0))


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b'{"error": "text"}', b"<html>", b"\xff\xfe"])
def test_any_body_is_an_answer(body: bytes) -> None:
    assert isinstance(failure_of(400, {}, body, ASKED, 0.0), RefusedError)
    assert isinstance(failure_of(500, {}, body, ASKED, 0.0), UpstreamError)


# --- limits -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200))
def test_retries_stay_within_their_share(moves: list[tuple[bool, float]]) -> None:
    budget, now, requests, retries = RetryBudget(0.1, 2, 10.0), 0.0, [], []
    for is_request, pause in moves:
        now += pause
        if is_request:
            budget.request(now)
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
        recent = sum(1 for at in retries if at > now - 9)
        assert recent <= max(2, 0.1 * sum(1 for at in requests if at > now - 11))


def test_a_breaker_opens_tries_and_closes() -> None:
    breaker = Breaker(BreakerLimits(3, 0.5, 10.0))
    assert [breaker.failed(0.0), breaker.failed(0.0), breaker.failed(0.0)] == [False, False, True]
    assert breaker.wait(4.0) == 6.0
    assert breaker.wait(10.0) == 0.0, "one may try"
    assert breaker.wait(11.0) == 9.0, "and nobody else meanwhile"
    assert not breaker.failed(12.0)
    assert breaker.wait(12.0) == 10.0
    assert breaker.wait(22.0) == 0.0
    assert breaker.wait(32.0) == 0.0, "the one that tried never came back"
    breaker.succeeded()
    assert breaker.wait(33.0) == 0.0
    assert not breaker.open


def test_a_breaker_opens_by_rate_too() -> None:
    breaker = Breaker(BreakerLimits(100, 0.5, 10.0))
    for number in range(9):
        breaker.succeeded() if number % 2 else breaker.failed(0.0)
    assert not breaker.open
    assert breaker.failed(0.0)

"""A chat answer's form: the same whatever the deltas, and what the SDK's own types read."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Alternative, Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.ids import choice_id
from inferbus_dialect.chat_form import ChatForm
from inferbus_dialect.errors import internal
from inferbus_edge.core.forms import form_of
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

FIRST = b"0123456789abcde\0"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "\\u00e9}"}}\n</tool_call>'
SOUP = st.lists(
    st.sampled_from(["<tool_call>", CALL, "<think>", "</think>", "<", "\n", "é", "a\u2028b", '{"name": "']), max_size=8
).map("".join)
REPLY = st.fixed_dictionaries(
    {"n": st.integers(1, 3)},
    optional={
        "tools": st.booleans(), "reasoning": st.booleans(), "logprobs": st.booleans(), "include_usage": st.booleans(),
        "continuous_usage": st.booleans(), "service_tier": st.just("flex"), "must_call": st.booleans(),
    },
)  # fmt: skip


def described(**reply: Any) -> dict[str, Any]:
    return {"api": "chat", "model": "m", "created": 7, "n": 1, **reply}


def end(reason: Any = FinishReason.FINISH_REASON_STOP, tokens: int = 3) -> Close:
    return Close(finish_reason=reason, usage=Usage(input_tokens=5, cached_input_tokens=2, output_tokens=tokens))


def token(text: bytes, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(text=text, logprob=logprob, top=[Alternative(text=b"\xff", logprob=-1)])


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:stop] for start, stop in pairwise(ends)]


def tell(form: ChatForm, texts: dict[int, list[str]], *, logprobs: bool = False) -> list[Any]:
    """All events' data of an answer with these deltas for each choice; ``[DONE]`` as text."""
    events: list[bytes] = []
    for choice, deltas in texts.items():
        events += form.open(choice, "rev")
        for text in deltas:
            events += form.delta(choice, text, 1, [token(text.encode())] if logprobs else [])
    for choice, deltas in texts.items():
        events += form.close(choice, "rev", end(tokens=len(deltas)))
    events += form.finish()
    assert all(one.endswith(b"\n\n") and one.count(b"\n\n") == 1 for one in events)
    data = [one.decode().removeprefix("data: ") for one in events]
    return [one.strip() if one.startswith("[") else json.loads(one) for one in data]


def chunks(events: list[Any]) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate(one, strict=True) for one in events if one != "[DONE]"]


def collected(events: list[Any], n: int) -> list[dict[str, Any]]:
    """Message, end and log-probabilities of each choice, put together from the chunks."""
    out = [{"content": "", "reasoning": "", "calls": {}, "logprobs": [], "finish": None} for _ in range(n)]
    for event in events:
        for part in [] if event == "[DONE]" else event["choices"]:
            one: Any = out[part["index"]]
            delta = part["delta"]
            one["content"] += delta.get("content") or ""
            one["reasoning"] += delta.get("reasoning_content", "")
            one["logprobs"] += (part["logprobs"] or {}).get("content", [])
            one["finish"] = part["finish_reason"] or one["finish"]
            for call in delta.get("tool_calls", []):
                known = one["calls"].setdefault(call["index"], {"arguments": ""})
                known["arguments"] += call["function"].pop("arguments")
                known.update({**call["function"], **({"id": call["id"]} if "id" in call else {})})
    return out


@given(REPLY, st.lists(st.tuples(SOUP, st.lists(st.integers(0, 999), max_size=9)), min_size=3, max_size=3))
def test_stream_and_body_say_the_same(reply: dict[str, Any], texts: list[tuple[str, list[int]]]) -> None:
    n = reply["n"]
    deltas = {choice: cut(text, places) for choice, (text, places) in enumerate(texts[:n])}
    whole = {choice: [text] if text else [] for choice, (text, _) in enumerate(texts[:n])}
    logprobs = reply.get("logprobs", False)

    events = tell(ChatForm(FIRST, described(**reply), True), deltas, logprobs=logprobs)
    chunks(events)
    streamed = collected(events, n)
    unary = ChatForm(FIRST, described(**reply), False)
    assert unary.body() == b""
    assert tell(unary, deltas, logprobs=logprobs) == []
    body = json.loads(unary.body())
    ChatCompletion.model_validate(body, strict=True)
    for one, said in zip(body["choices"], streamed, strict=True):
        message = one["message"]
        assert (message["content"] or "") == said["content"]
        assert message.get("reasoning_content", "") == said["reasoning"]
        assert one["finish_reason"] == said["finish"]
        assert [call["function"] | {"id": call["id"]} for call in message.get("tool_calls", [])] == list(
            said["calls"].values()
        )
        assert ((one["logprobs"] or {}).get("content") or []) == said["logprobs"]
        # No token's log-probability is lost, though its text may be held back; and none is of what is no text.
        text = texts[one["index"]][0]
        if "<" not in text and (text.strip() or not text):
            assert len(said["logprobs"]) == (len(deltas[one["index"]]) if logprobs else 0)
        if not said["content"]:
            assert not said["logprobs"]
    # However it is cut.
    other = collected(tell(ChatForm(FIRST, described(**reply), True), whole), n)
    assert [one | {"logprobs": []} for one in streamed] == other
    again = tell(ChatForm(FIRST, described(**reply), True), deltas, logprobs=logprobs)
    assert collected(again, n) == streamed


def test_a_call_comes_in_parts() -> None:
    form = form_of(FIRST, described(tools=True), stream=True)
    assert isinstance(form, ChatForm)
    events = tell(form, {0: ["I see. ", '<tool_call>\n{"name": "f", "argu', 'ments": {"a"', ": 1}}", "\n</tool_call>"]})
    deltas = [one["choices"][0]["delta"] for one in events if one != "[DONE]"]
    name = f"call_{FIRST.hex()}_0"
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "I see. "},
        {"tool_calls": [{"index": 0, "id": name, "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {},
    ]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert events[-1] == "[DONE]"


def test_an_answer_of_calls_only_has_no_content() -> None:
    form = ChatForm(FIRST, described(tools=True, n=2), False)
    tell(form, {0: [CALL, CALL], 1: ["no"]})
    first, second = json.loads(form.body())["choices"]
    assert first["message"]["content"] is None
    ids = [call["id"] for call in first["message"]["tool_calls"]]
    assert ids == [f"call_{choice_id(FIRST, 0).hex()}_{index}" for index in (0, 1)]
    assert (second["message"]["content"], "tool_calls" in second["message"]) == ("no", False)
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")


def test_a_call_that_was_cut_off_ends_by_length() -> None:
    form = ChatForm(FIRST, described(tools=True), False)
    form.open(0, "rev")
    form.delta(0, '<tool_call>{"name": "f", "arguments": {"a', 1, [])
    form.close(0, "rev", end(FinishReason.FINISH_REASON_LENGTH))
    form.finish()
    choice = json.loads(form.body())["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a'


@pytest.mark.parametrize("cut_in", ["<", "<tool_call>", '<tool_call>\n{"name": "f", "argu'])
@pytest.mark.parametrize("must_call", [False, True])
def test_a_call_that_was_cut_off_in_its_head_is_not_shown(cut_in: str, must_call: bool) -> None:
    shown = "" if must_call or cut_in != "<" else cut_in  # a text may also end so
    for stream in (False, True):
        form = ChatForm(FIRST, described(tools=True, must_call=must_call, logprobs=True), stream)
        events = [*form.open(0, "rev"), *form.delta(0, cut_in, 1, [token(cut_in.encode())])]
        events += [*form.close(0, "rev", end(FinishReason.FINISH_REASON_LENGTH)), *form.finish()]
        if stream:
            said = collected([json.loads(one.removeprefix(b"data: ")) for one in events[:-1]], 1)[0]
            assert (said["content"], said["calls"], said["finish"]) == (shown, {}, "length")
            assert len(said["logprobs"]) == len(shown)
        else:
            choice = json.loads(form.body())["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (shown, "length")
            assert "tool_calls" not in choice["message"]
            assert len(choice["logprobs"]["content"]) == len(shown)


@pytest.mark.parametrize("whole", [0, 1])
def test_calls_are_the_end_only_if_the_last_one_is_whole(whole: int) -> None:
    """A stop string of an older worker, or of an engine that does not know calls, may end it inside."""
    form = ChatForm(FIRST, described(tools=True), False)
    tell(form, {0: [*[CALL] * whole, '<tool_call>{"name": "f", "arguments": {"a": 1']})
    assert json.loads(form.body())["choices"][0]["finish_reason"] == "stop"
    form = ChatForm(FIRST, described(tools=True), False)
    tell(form, {0: [*[CALL] * whole, '<tool_call>{"name": "f", "arguments": {"a": 1}']})
    assert json.loads(form.body())["choices"][0]["finish_reason"] == "tool_calls"


def test_logprobs_are_those_of_the_text() -> None:
    parts = ["<think>", "hm", "</think>", "\n", "Well", ".", " ", *CALL, "\n", "Bye"]
    reply = described(tools=True, reasoning=True, logprobs=True)
    events = tell(ChatForm(FIRST, reply, True), {0: parts}, logprobs=True)
    said = collected(events, 1)[0]
    assert said["content"] == "Well. \nBye"
    assert [one["token"] for one in said["logprobs"]] == ["Well", ".", " ", "\n", "Bye"]
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert {"content": ""} not in deltas
    form = ChatForm(FIRST, reply, False)
    tell(form, {0: list(CALL)}, logprobs=True)
    choice = json.loads(form.body())["choices"][0]
    assert (choice["message"]["content"], choice["logprobs"]["content"]) == (None, [])
    events = tell(ChatForm(FIRST, reply, True), {0: list(CALL)}, logprobs=True)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert not any("content" in one for one in deltas[1:]), "only the role comes with an empty text"


def test_usage_all_along() -> None:
    form = ChatForm(FIRST, described(include_usage=True, continuous_usage=True, n=2), True)
    events = tell(form, {0: ["a", "b"], 1: ["c"]})
    assert [one["usage"]["completion_tokens"] for one in events[:-1]] == [0, 1, 2, 2, 3, 3, 3, 3]
    assert [one["usage"]["prompt_tokens"] for one in events[:-1]] == [0, 0, 0, 0, 0, 5, 10, 10]
    assert events[-2]["choices"] == []


def test_usage_only_at_the_end() -> None:
    events = tell(ChatForm(FIRST, described(include_usage=True), True), {0: ["a"]})
    assert [one["usage"] for one in events[:-2]] == [None] * 3
    assert events[-2]["usage"]["total_tokens"] == 6
    assert "usage" not in tell(ChatForm(FIRST, described(), True), {0: ["a"]})[0]


def test_another_attempt_says_no_second_role() -> None:
    form = ChatForm(FIRST, described(), True)
    assert len(form.open(0, "rev-1")) == 1
    assert form.open(0, "rev-2") == ()
    assert b'"rev-2"' in form.delta(0, "x", 1, [])[0]


def test_logprobs_of_parts_of_characters_and_of_what_cannot_be() -> None:
    form = ChatForm(FIRST, described(logprobs=True), False)
    form.open(0, "rev")
    form.delta(0, "", 1, [token(b"\xc3")])
    form.delta(0, "é", 1, [token(b"\xa9", float("-inf"))])
    form.close(0, "rev", end())
    form.finish()
    body = ChatCompletion.model_validate_json(form.body(), strict=True)
    logprobs = body.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(one.bytes or ()) for one in logprobs.content) == "é".encode()
    assert [one.logprob for one in logprobs.content] == [-0.5, -9999.0]


@pytest.mark.parametrize("stored", [False, True])
def test_the_body_of_a_stream_is_kept_only_for_the_store(stored: bool) -> None:
    form = ChatForm(FIRST, described(stored=stored, metadata={"k": "v"}), True)
    tell(form, {0: ["x"]})
    if stored:
        body = json.loads(form.body())
        assert (body["choices"][0]["message"]["content"], body["metadata"]) == ("x", {"k": "v"})
    else:
        assert form.body() == b""


def test_a_bad_end() -> None:
    (event,) = ChatForm(FIRST, described(), True).fail(internal())
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "internal_error"


def test_the_sdk_puts_the_chunks_together() -> None:
    form = ChatForm(FIRST, described(tools=True, logprobs=True, include_usage=True), True)
    events = tell(form, {0: ["Well. ", *CALL]}, logprobs=True)
    state: Any = ChatCompletionStreamState()
    for chunk in chunks(events):
        state.handle_chunk(chunk)
    answer = state.get_final_completion()
    message = answer.choices[0].message
    assert message.content == "Well. "
    assert json.loads(message.tool_calls[0].function.arguments) == {"a": "é}"}
    assert [one.token for one in answer.choices[0].logprobs.content] == ["Well. "]
    assert answer.usage.prompt_tokens == 5

"""Messages as they come off the log, read back with the Anthropic SDK's own types."""

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.ids import uuid_text
from inferbus_dialect.form import Form
from inferbus_dialect.sse import escape
from inferbus_edge.core.forms import form_of
from inferbus_runtime.errors import InferBusError
from pydantic import TypeAdapter

FIRST = bytes(range(16))
STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage(input_tokens=7, cached_input_tokens=3, output_tokens=4, reasoning_tokens=1)


def reply(**fields: Any) -> dict[str, Any]:
    return {
        "api": "messages", "n": 1, "model": "m", "created": 1, "tools": True, "reasoning": True, "max_tokens": 10,
        "stops": ["END", "STOP"],
    } | fields  # fmt: skip


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def fed(form: Form, deltas: list[str], finish: Any = STOP) -> list[bytes]:
    out = list(form.open(0, "rev"))
    for text in deltas:
        out += form.delta(0, text, 1, ())
    out += form.close(0, "rev", Close(finish_reason=finish, usage=USAGE))
    return [*out, *form.finish()]


def parsed(events: list[bytes]) -> list[Any]:
    """Each event as the SDK's type; its name is its type."""
    found = []
    for one in events:
        name, data = one.decode().removesuffix("\n\n").split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(EVENTS.validate_python(value))
    return found


def joined(events: list[bytes]) -> Message:
    """As the SDK's stream helper puts them together."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for one in parsed(events):
        snapshot = accumulate_event(event=one, current_snapshot=snapshot, json_bufs=buffers)
    return Message.model_validate(snapshot.to_dict())


def answered(text: str, finish: Any = STOP, **fields: Any) -> Message:
    form = form_of(FIRST, reply(**fields), stream=False)
    assert fed(form, [text], finish) == []
    return Message.model_validate_json(form.body(), strict=True)


def same(unary: Message, streamed: Message) -> None:
    left, right = unary.to_dict(), streamed.to_dict()
    # Only the end of a stream has room for usage; and what the SDK adds to an empty block.
    for one in (left, right):
        one.pop("stop_details", None)
    assert left == right


def test_text() -> None:
    message = answered("Hello")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert (message.id, message.role, message.model) == (f"msg_{FIRST.hex()}", "assistant", "m")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (4, 3, 0)
    assert (usage.output_tokens, usage.service_tier) == (4, "standard")
    assert usage.output_tokens_details is not None
    assert usage.output_tokens_details.thinking_tokens == 1


def test_a_stop_sequence_is_named() -> None:
    closed = Close(finish_reason=STOP, usage=USAGE, stop_index=1)
    form = form_of(FIRST, reply(), stream=True)
    events = [*form.open(0, "rev"), *form.delta(0, "Hello", 1, ()), *form.close(0, "rev", closed), *form.finish()]
    message = joined(events)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "STOP")
    assert Message.model_validate_json(form.body()).stop_sequence == "STOP"


def test_the_order_of_a_streams_events() -> None:
    text = "<think>hm</think>Hi " + call("f", '{"a": 1}') + "\n" + call("g", "{}")
    events = parsed(fed(form_of(FIRST, reply(), stream=True), list(text)))
    kinds = [one.type for one in events if one.type != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block * 4, "message_delta", "message_stop"]
    starts = [one.content_block for one in events if one.type == "content_block_start"]
    assert [one.type for one in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert [one.index for one in events if one.type == "content_block_stop"] == [0, 1, 2, 3]
    deltas = {one.delta.type for one in events if one.type == "content_block_delta"}
    assert deltas == {"thinking_delta", "text_delta", "input_json_delta"}
    assert events[0].message.usage.output_tokens == 0
    assert events[-2].delta.stop_reason == "tool_use"
    assert (events[-2].usage.input_tokens, events[-2].usage.output_tokens) == (4, 4)


def test_calls() -> None:
    big = 10**30
    message = answered(call("weather", f'{{"city": "Köln", "n": {big}}}') + "\n" + call("clock", "{}"))
    first, second = [block.to_dict() for block in message.content]
    assert first == {
        "type": "tool_use", "id": f"toolu_{FIRST.hex()}_0", "name": "weather", "input": {"city": "Köln", "n": big}
    }  # fmt: skip
    assert (second["id"], second["input"]) == (f"toolu_{FIRST.hex()}_1", {})
    assert message.stop_reason == "tool_use"


def test_a_call_that_was_cut_off_is_as_far_as_it_came() -> None:
    text = call("weather", '{"city": "Köln", "days": [1, 2')
    text = text[: text.index("[1, 2") + 5]
    message = answered(text, LENGTH, max_tokens=4)
    assert message.content[0].to_dict()["input"] == {"city": "Köln", "days": [1, 2]}
    assert message.stop_reason == "max_tokens"
    same(message, joined(fed(form_of(FIRST, reply(max_tokens=4), stream=True), [text], LENGTH)))


@pytest.mark.parametrize("text", ["<tool_call>", '<tool_call>\n{"name": "weather", "argu'])
def test_a_call_that_was_cut_off_in_its_head_is_not_shown(text: str) -> None:
    for must_call in (False, True):
        message = answered(text, LENGTH, max_tokens=4, must_call=must_call)
        assert (message.content, message.stop_reason) == ([], "max_tokens")
    assert answered("<tool", LENGTH, must_call=True).content == []
    assert [block.to_dict() for block in answered("I look. " + text, LENGTH).content] == [
        {"type": "text", "text": "I look. "}
    ]


def test_tool_use_is_the_end_only_if_the_last_call_is_whole() -> None:
    whole = call("f", "{}")
    assert answered(whole + "\n" + whole.removesuffix("}}\n</tool_call>")).stop_reason == "end_turn"
    assert answered(whole + "\n" + whole).stop_reason == "tool_use"


def test_arguments_that_are_no_json_are_text() -> None:
    message = answered(call("f", "{a: 1}"))
    assert message.content[0].to_dict() == {"type": "text", "text": '<tool_call>\n{"name": "f", "arguments": {a: 1}'}
    assert message.stop_reason == "end_turn"


def test_without_tools_the_marks_are_text() -> None:
    text = call("f", "{}")
    message = answered(text, tools=False)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": text}]


def test_how_an_answer_ended() -> None:
    assert answered("x", LENGTH, max_tokens=4).stop_reason == "max_tokens"
    # Fewer tokens than were allowed: there was no more room.
    assert answered("x", LENGTH, max_tokens=5).stop_reason == "model_context_window_exceeded"
    assert answered("").content == []


def test_an_answer_that_goes_on_after_a_worker_was_lost_begins_once() -> None:
    form = form_of(FIRST, reply(), stream=True)
    events = [*form.open(0, "a"), *form.delta(0, "x", 1, ()), *form.open(0, "b"), *form.delta(0, "y", 1, ())]
    events += [*form.close(0, "b", Close(finish_reason=STOP)), *form.finish()]
    assert joined(events).content[0].to_dict()["text"] == "xy"


def test_an_answer_without_a_delta_is_whole() -> None:
    form = form_of(FIRST, reply(), stream=True)
    events = [*form.close(0, "a", Close(finish_reason=STOP)), *form.finish()]
    assert [one.type for one in parsed(events)] == ["message_start", "message_delta", "message_stop"]


def test_a_bad_end_in_a_stream() -> None:
    form = form_of(FIRST, reply(), stream=True)
    error = InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "worker_lost", "Retry.", diagnostic="host 7")
    (one,) = form.fail(error)
    name, data = one.decode().removesuffix("\n\n").split("\n")
    assert name == "event: error"
    value = json.loads(data.removeprefix("data: "))
    assert value["error"] == {
        "type": "overloaded_error", "message": "Retry.", "details": {"error_code": "worker_lost"}
    }  # fmt: skip
    assert value["request_id"] == uuid_text(FIRST)
    assert b"host 7" not in one


PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["<think>", "</think>", "<tool_call>", "\n", "\u2028", '"', "</tool_call>", "{", " "]),
    st.builds(
        call,
        st.sampled_from(["f", "g_1"]),
        st.dictionaries(st.text(max_size=3), st.integers() | st.text()).map(json.dumps),
    ),
)


@given(parts=st.lists(PARTS, max_size=8), data=st.data())
def test_any_cut_gives_the_same_message_and_a_stream_joins_to_the_body(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    deltas = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events = fed(form_of(FIRST, reply(), stream=True), deltas)
    unary = form_of(FIRST, reply(), stream=False)
    fed(unary, deltas)
    whole = answered(text)
    assert Message.model_validate_json(unary.body()).to_dict() == whole.to_dict()
    for one in events:
        # No character that some readers of event streams take for the end of a line.
        assert not set(one.decode()) & {"\u2028", "\u2029", "\x85"}
    streamed = joined(events)
    same(whole, streamed)


def test_escape_is_not_needed_for_the_forms_events() -> None:
    form = form_of(FIRST, reply(), stream=True)
    form.open(0, "a")
    events = form.delta(0, "a\u2028b\n", 1, ())
    assert escape("a\u2028b\n".encode()) in events[-1]

"""The pure parts of the Responses API: what is accepted, what becomes of it, and how its answer is written."""

import json
from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Alternative, Close, TokenLogprob
from inferbus.bus.v1.request_pb2 import ToolMode
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass, Usage
from inferbus_dialect.plan import Plan
from inferbus_dialect.responses_form import ResponsesForm
from inferbus_dialect.responses_items import distinct, items_of, owner_of, page, with_ids
from inferbus_dialect.responses_objects import in_words_of_responses, parse_response_id, response_id
from inferbus_dialect.responses_plan import plan_responses
from inferbus_dialect.responses_schema import parse_responses_request
from inferbus_edge.core.forms import form_of
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

FIRST = bytes(range(16))
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(list[ResponseItem])
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


SAID = [CALL, "Hello ", "<tool_call>", "\n", "<think>", "x</think>", "é", '{"a']


def body(**fields: Any) -> bytes:
    return orjson.dumps({"model": "m", "input": "hi", **fields})


def plan(**fields: Any) -> Plan:
    request = parse_responses_request(body(**fields))
    return plan_responses(request, items_of(request.input))


def refused(**fields: Any) -> InferBusError:
    with pytest.raises(InferBusError) as caught:
        plan(**fields)
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    return caught.value


def reply_of(made: Plan, **facts: Any) -> dict[str, Any]:
    """As it comes off the log."""
    described = {"reasoning": False, **made.reply, "model": made.model, "created": 1_700_000_000, **facts}
    found: dict[str, Any] = orjson.loads(orjson.dumps(described))
    return found


def close_of(tokens: int = 3, reason: Any = FinishReason.FINISH_REASON_STOP) -> Close:
    usage = Usage(input_tokens=5, cached_input_tokens=2, output_tokens=tokens, reasoning_tokens=1)
    close = Close(finish_reason=reason, usage=usage)
    close.end_time.FromSeconds(1_700_000_007)
    return close


def parsed(events: list[bytes]) -> list[Any]:
    """Each event as the SDK's own type of its name, and its number."""
    out = []
    for number, one in enumerate(events):
        name, data = one.decode().removesuffix("\n\n").split("\n")
        fields = json.loads(data.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        assert fields["sequence_number"] == number
        out.append(EVENTS.validate_python(fields))
    return out


def run(reply: dict[str, Any], texts: list[str], close: Close | None = None) -> tuple[list[Any], dict[str, Any]]:
    """(the events of a stream, the body of a unary answer): of the same deltas, they must agree."""
    close = close or close_of(len(texts))
    made = []
    for stream in (True, False):
        form = form_of(FIRST, reply, stream=stream)
        events = [*form.open(0, "rev-1")]
        for text in texts:
            events += form.delta(0, text, 1, [])
        events += [*form.close(0, "rev-1", close), *form.finish()]
        made.append((events, orjson.loads(form.body())))
    (events, of_stream), (none, of_body) = made
    assert not none
    assert of_stream == of_body
    Response.model_validate(of_body)
    return parsed(events), of_body


# --- what may be asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar", "definition": "x"}}}, "text.format.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input[0].type"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.reason, error.param) == ("unsupported_parameter", param)
    assert f"'{param}'" in error.message


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"bogus": 1}, "unknown_parameter", "bogus"),
        ({"input": [{"role": "user", "content": "x", "tool_calls": []}]}, "unknown_parameter", "input[0].tool_calls"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"input": [3]}, "invalid_type", "input[0]"),
        ({"input": [{"type": "sonnet"}]}, "invalid_value", "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"include": ["file_search_call.results"]}, "invalid_value", "include"),
        ({"store": False, "background": True}, "invalid_value", "background"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"metadata": {"a": "x" * 513}}, "invalid_value", "metadata"),
        ({"metadata": {str(at): "" for at in range(17)}}, "invalid_value", "metadata"),
        ({"tools": [WEATHER, WEATHER]}, "invalid_value", "tools[1].name"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "invalid_value", "tool_choice.name"),
        (
            {"tools": [{**WEATHER, "parameters": {"type": "array"}}]},
            "invalid_schema",
            "tools[0].parameters",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "nonsense"}}}},
            "invalid_schema",
            "text.format.schema",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "call_1", "output": "rain"}]},
            "invalid_value",
            "input[0].call_id",
        ),
    ],
)
def test_a_bad_request_is_refused_where_it_is_bad(fields: dict[str, Any], reason: str, param: str) -> None:
    error = refused(**fields)
    assert (error.reason, error.param) == (reason, param)


def test_what_no_message_of_the_bus_can_hold_is_refused() -> None:
    error = refused(instructions="x" * (4 << 20))  # shown to the model, and said back in the response
    assert error.reason == "request_too_large"


def test_what_asks_for_nothing_is_taken() -> None:
    made = plan(
        truncation="disabled", store=None, background=False, conversation=None, include=[], tools=[], metadata={},
        text={"format": {"type": "text"}, "verbosity": None}, reasoning={"effort": None}, tool_choice="auto",
        service_tier="auto", max_tool_calls=3, stream_options=None, top_logprobs=0, parallel_tool_calls=True,
    )  # fmt: skip
    assert [need.capability for need in made.needs] == ["chat"]
    assert made.stored is not None
    assert not made.detached
    assert not made.stream


def test_capabilities_are_asked_for_in_the_name_of_what_needs_them() -> None:
    made = plan(
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:", "detail": "auto"}]}],
        tools=[WEATHER],
        text={"format": {"type": "json_object"}},
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
    )
    assert {need.capability: need.param for need in made.needs} == {
        "chat": "model",
        "tools": "tools",
        "structured_output": "text.format",
        "logprobs": "include",
        "reasoning": "reasoning.effort",
        "vision": "input[0].content[0]",
    }


# --- what the model is shown ------------------------------------------------------------------------------------------


def test_instructions_come_first_and_developers_are_the_system() -> None:
    request = plan(
        instructions="Be brief.", input=[{"role": "developer", "content": "No."}, {"role": "user", "content": "hi"}]
    )
    said = [(one.role, one.content) for one in request.requests[0].chat.messages]
    assert said == [("system", "Be brief."), ("system", "No."), ("user", "hi")]


def test_a_turn_with_calls_is_one_message_of_the_assistant() -> None:
    made = plan(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
            {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        ],
        tools=[WEATHER],
    )  # fmt: skip
    messages = made.requests[0].chat.messages
    assert [(one.role, one.content) for one in messages] == [
        ("user", "ab"), ("assistant", "Let me see."), ("tool", "rain"), ("tool", "sun"),
    ]  # fmt: skip
    assert [(call.id, call.name, call.arguments) for call in messages[1].tool_calls] == [
        ("c1", "weather", "{}"), ("c2", "weather", "{}"),
    ]  # fmt: skip
    assert [one.tool_call_id for one in messages[2:]] == ["c2", "c1"]


def test_the_conversation_before_comes_before_the_input() -> None:
    request = parse_responses_request(body(input=[{"type": "function_call_output", "call_id": "c", "output": "sun"}]))
    earlier = [
        *items_of("weather?"),
        {"id": "fc_x", "type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
    ]
    made = plan_responses(request, items_of(request.input), earlier, FIRST)
    assert [one.role for one in made.requests[0].chat.messages] == ["user", "assistant", "tool"]
    assert made.previous == FIRST
    # Only its own items are stored with it: the others are stored already.
    assert [item["type"] for item in orjson.loads(made.stored or b"")] == ["function_call_output"]


@pytest.mark.parametrize(
    ("choice", "mode", "name", "shown"),
    [
        (None, ToolMode.TOOL_MODE_AUTO, "", ["weather", "time"]),
        ("auto", ToolMode.TOOL_MODE_AUTO, "", ["weather", "time"]),
        ("none", ToolMode.TOOL_MODE_NONE, "", ["weather", "time"]),
        ("required", ToolMode.TOOL_MODE_REQUIRED, "", ["weather", "time"]),
        ({"type": "function", "name": "time"}, ToolMode.TOOL_MODE_REQUIRED, "time", ["weather", "time"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            ToolMode.TOOL_MODE_REQUIRED,
            "",
            ["time"],
        ),
    ],
)
def test_the_choice_of_tools(choice: Any, mode: int, name: str, shown: list[str]) -> None:
    made = plan(tools=[WEATHER, {"type": "function", "name": "time"}], tool_choice=choice, parallel_tool_calls=False)
    chat = made.requests[0].chat
    assert (chat.tool_mode, chat.tool_name) == (mode, name)
    assert [tool.name for tool in chat.tools] == shown
    assert not chat.parallel_tool_calls
    # Without calls to look for, what looks like one is text.
    assert made.reply["tools"] is (mode != ToolMode.TOOL_MODE_NONE)
    assert made.reply["must_call"] is (mode == ToolMode.TOOL_MODE_REQUIRED)
    assert made.reply["echo"]["tool_choice"] == (choice or "auto")


def test_sampling_constraint_and_class() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    made = plan(
        temperature=0, top_p=0.5, max_output_tokens=7, top_logprobs=2, service_tier="flex",
        text={"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}},
    )  # fmt: skip
    request = made.requests[0]
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (0, 0.5, 7)
    assert request.sampling.logprobs == 2
    assert json.loads(request.constraint.json_schema)["properties"] == schema["properties"]
    assert request.priority_class == PriorityClass.PRIORITY_CLASS_BACKGROUND
    assert made.output_bound == 7
    echo = made.reply["echo"]
    assert echo["text"]["format"] == {"type": "json_schema", "name": "s", "schema": schema, "strict": True}
    assert echo["service_tier"] == "flex"
    assert not plan().requests[0].sampling.HasField("logprobs")
    assert plan().requests[0].priority_class == PriorityClass.PRIORITY_CLASS_INTERACTIVE


def test_a_background_response_runs_alone() -> None:
    made = plan(background=True)
    assert made.detached
    assert made.stored is not None
    assert made.requests[0].priority_class == PriorityClass.PRIORITY_CLASS_BACKGROUND
    assert plan(background=True, service_tier="priority").requests[0].priority_class == (
        PriorityClass.PRIORITY_CLASS_INTERACTIVE
    )


# --- how the answer is written ----------------------------------------------------------------------------------------


def test_the_events_of_a_text() -> None:
    events, response = run(reply_of(plan()), ["Hel", "", "lo"])
    assert [one.type for one in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "Hello"
    assert {one.item_id for one in events if hasattr(one, "item_id")} == {f"msg_{FIRST.hex()}_0"}
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []
    last = events[-1].response
    assert last.id == response_id(FIRST)
    assert last.output_text == "Hello"
    assert last.model_dump(exclude_unset=True) == Response.model_validate(response).model_dump(exclude_unset=True)
    assert (response["status"], response["completed_at"]) == ("completed", 1_700_000_007)
    assert response["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 8,
    }  # fmt: skip


def test_a_background_response_is_queued_first() -> None:
    reply = reply_of(plan(background=True))
    assert orjson.loads(form_of(FIRST, reply, stream=False).body())["status"] == "queued"
    events, _ = run(reply, ["x"])
    assert [one.type for one in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [one.response.status for one in events[:3]] == ["queued", "queued", "in_progress"]


def test_what_is_said_at_acceptance_changes_no_event() -> None:
    reply = reply_of(plan(background=True))
    live, replayed = form_of(FIRST, reply, stream=True), form_of(FIRST, reply, stream=True)
    assert isinstance(live, ResponsesForm)
    early = [*live.accept()]
    assert [one.type for one in parsed(early)] == ["response.created", "response.queued"]
    assert orjson.loads(live.body())["status"] == "queued"
    assert [*early, *live.open(0, "r"), *live.delta(0, "x", 1, [])] == [
        *replayed.open(0, "r"), *replayed.delta(0, "x", 1, []),
    ]  # fmt: skip
    assert not live.accept()


def test_the_events_of_a_call() -> None:
    events, response = run(reply_of(plan(tools=[WEATHER])), ["Let me see.\n", *CALL, "\n", *CALL])
    types = [one.type for one in events]
    assert types.count("response.output_item.added") == types.count("response.output_item.done") == 3
    text, first, second = response["output"]
    assert text["content"][0]["text"].strip() == "Let me see."
    assert [item["arguments"] for item in (first, second)] == ['{"city": "Paris"}'] * 2
    assert len({first["id"], second["id"]}) == len({first["call_id"], second["call_id"]}) == 2
    assert first["call_id"] == f"call_{FIRST.hex()}_1"
    assert first["status"] == "completed"
    deltas = [one.delta for one in events if one.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Paris"}' * 2
    assert len(deltas) > 2
    done = [one for one in events if one.type == "response.function_call_arguments.done"]
    assert [one.output_index for one in done] == [1, 2]


def test_without_tools_what_looks_like_a_call_is_text() -> None:
    _, response = run(reply_of(plan()), [CALL])
    assert response["output"][0]["content"][0]["text"] == CALL


def test_reasoning_comes_as_an_item_of_its_own() -> None:
    reply = reply_of(plan(reasoning={"effort": "low"}), reasoning=True)
    events, response = run(reply, ["<thi", "nk>so", " so</think>", "\n\nYes"])
    thought, text = response["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "so so")
    assert text["content"][0]["text"] == "Yes"
    assert "response.reasoning_text.delta" in [one.type for one in events]


def test_an_answer_cut_off_by_its_bound_is_incomplete() -> None:
    cut = close_of(2, FinishReason.FINISH_REASON_LENGTH)
    events, response = run(reply_of(plan(tools=[WEATHER])), [CALL[:-25]], cut)
    assert events[-1].type == "response.incomplete"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    assert '{"city": "Paris"}'.startswith(response["output"][0]["arguments"])


def test_an_answer_without_a_token_is_an_empty_message() -> None:
    _, response = run(reply_of(plan(tools=[WEATHER])), [], close_of(0))
    assert response["output"][0]["content"][0]["text"] == ""
    form = form_of(FIRST, reply_of(plan()), stream=True)
    assert not form.close(0, "rev-1", close_of(0))  # it ended without ever being opened
    assert parsed([*form.finish()])[0].type == "response.created"


def test_log_probabilities_go_with_their_text() -> None:
    form = form_of(FIRST, reply_of(plan(top_logprobs=1)), stream=True)
    tops = [Alternative(text=b"Ha", logprob=-0.5)]
    events = [
        *form.open(0, "r"),
        *form.delta(0, "H", 1, [TokenLogprob(text=b"H", logprob=-0.25, top=tops)]),
        *form.delta(0, "", 1, [TokenLogprob(text=b"\xc3", logprob=-1)]),
        *form.delta(0, "\xe9", 1, [TokenLogprob(text=b"\xa9", logprob=-2)]),
    ]
    form.close(0, "r", close_of())
    done = parsed([*events, *form.finish()])
    said = [one for event in done if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [one.logprob for one in said] == [-0.25, -1, -2]
    assert said[0].top_logprobs[0].token == "Ha"
    whole = orjson.loads(form.body())["output"][0]["content"][0]["logprobs"]
    assert [one["bytes"] for one in whole] == [[72], [0xC3], [0xA9]]


def test_log_probabilities_are_not_those_of_calls_and_thoughts() -> None:
    form = form_of(FIRST, reply_of(plan(top_logprobs=1, tools=[WEATHER]), reasoning=True), stream=False)
    form.open(0, "r")
    for text in ["<think>", "hm", "</think>", "\n", "Well", "\n", *CALL, "\n", "Bye"]:
        form.delta(0, text, 1, [TokenLogprob(text=text.encode(), logprob=-1)])
    form.close(0, "r", close_of())
    parts = [item["content"][0] for item in orjson.loads(form.body())["output"] if item["type"] == "message"]
    assert [part["text"] for part in parts] == ["Well\n", "\nBye"]
    assert ["".join(one["token"] for one in part["logprobs"]) for part in parts] == ["Well\n", "\nBye"]


@pytest.mark.parametrize("cut_in", ["<tool", "<tool_call>", '<tool_call>\n{"name": "wea'])
def test_a_call_that_was_cut_off_in_its_head_is_not_shown(cut_in: str) -> None:
    cut = close_of(1, FinishReason.FINISH_REASON_LENGTH)
    _, response = run(reply_of(plan(tools=[WEATHER], tool_choice="required")), [cut_in], cut)
    assert (response["status"], response["output"][0]["content"][0]["text"]) == ("incomplete", "")
    _, response = run(reply_of(plan(tools=[WEATHER])), ["I look. ", "<tool_call>", cut_in[11:]], cut)
    assert [item["content"][0]["text"] for item in response["output"]] == ["I look. "]


@given(st.data())
def test_the_answer_does_not_depend_on_how_its_text_was_cut(data: st.DataObject) -> None:
    said = data.draw(
        st.lists(st.sampled_from([CALL, "Hello ", "<tool_call>", "\n", "<think>", "x</think>", "é", '{"a']), max_size=6)
    )
    text = "".join(said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reply = reply_of(plan(tools=[WEATHER]), reasoning=data.draw(st.booleans()))
    close = close_of()
    events, response = run(reply, pieces, close)
    assert response["output"] == run(reply, [text], close)[1]["output"]
    # What the stream says item by item is what the answer says as a whole.
    assert [one.item.model_dump() for one in events if one.type == "response.output_item.done"] == [
        item.model_dump() for item in Response.model_validate(response).output
    ]
    for at, item in enumerate(response["output"]):
        joined = "".join(one.delta for one in events if one.type.endswith(".delta") and one.output_index == at)
        assert joined == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (invalid("too long", param="messages"), "failed", "invalid_prompt"),
        (InferBusError(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "full", "later"), "failed", "rate_limit_exceeded"),
        (InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "engine_failed", "no"), "failed", "server_error"),
        (InferBusError(ErrorClass.ERROR_CLASS_CANCELLED, "cancelled", "off"), "cancelled", None),
    ],
)
def test_a_bad_end(error: InferBusError, status: str, code: str | None) -> None:
    form = form_of(FIRST, reply_of(plan()), stream=True)
    events = [*form.open(0, "r"), *form.delta(0, "Hel", 1, []), *form.fail(error)]
    last = parsed(events)[-1]
    assert (last.type, last.response.status, last.response.output_text) == ("response.failed", status, "Hel")
    stored = orjson.loads(form.body())
    Response.model_validate(stored)
    assert stored["status"] == status
    assert (stored["error"] or {}).get("code") == code
    assert stored["output"][0]["status"] == "incomplete"


def test_an_edge_that_stops_has_not_failed_the_response() -> None:
    form = form_of(FIRST, reply_of(plan(background=True)), stream=True)
    stops = unavailable("draining", "This server has stopped; retry.", retry_after=timedelta(seconds=1))
    last = parsed([*form.open(0, "r"), *form.fail(stops)])[-1]
    assert (last.type, last.code) == ("error", "draining")
    assert orjson.loads(form.body())["status"] == "in_progress"


def test_errors_name_parameters_as_this_api_names_them() -> None:
    error = in_words_of_responses(invalid("'max_tokens' is too large.", param="max_tokens"))
    assert (error.param, error.message) == ("max_output_tokens", "'max_output_tokens' is too large.")


# --- ids and lists ----------------------------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.integers(0, 999))
def test_ids_say_whose_they_are(first: bytes, at: int) -> None:
    assert parse_response_id(response_id(first)) == first
    assert owner_of(f"msg_{first.hex()}_{at}") == owner_of(f"fco_{first.hex()}_i{at}") == first


@pytest.mark.parametrize(
    "name",
    ["", "resp_", "resp_123", "chatcmpl-" + "0" * 32, "resp_" + "0" * 31 + "-", "resp_" + "A" * 32, "resp_" + "g" * 32],
)
def test_what_is_no_id(name: str) -> None:
    with pytest.raises(ValueError):
        parse_response_id(name)


def test_listed_items_are_the_sdks() -> None:
    given_items = parse_responses_request(
        body(
            input=[
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "x"},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"role": "user", "content": [{"type": "input_text", "text": "d"}]},
            ]
        )
    ).input
    items = with_ids(FIRST, items_of(given_items))
    ITEMS.validate_python(items)
    assert items[0]["id"] == f"msg_{FIRST.hex()}_i0"
    assert items[4]["id"] == "rs_1"


@given(st.integers(0, 60), st.integers(1, 30), st.sampled_from(["asc", "desc"]))
def test_pages_give_each_item_once(count: int, limit: int, order: str) -> None:
    items = [{"id": "same" if at % 3 == 0 else f"m{at}", "type": "message"} for at in range(count)]
    rows = distinct(FIRST, items)
    assert len({item["id"] for item in rows}) == count
    got: list[str] = []
    after: str | None = None
    while True:
        found = page(rows, limit=limit, order=order, after=after)
        got += [item["id"] for item in found["data"]]
        assert len(found["data"]) <= limit
        if not found["has_more"]:
            break
        after = found["last_id"]
    ids = [item["id"] for item in rows]
    assert got == (ids if order == "asc" else ids[::-1])
    with pytest.raises(InferBusError):
        page(rows, limit=limit, order=order, after="nobody")

"""What a Messages request may say, and what it comes to on the bus."""

import json
from typing import Any

import pytest
from inferbus.bus.v1.request_pb2 import ToolMode
from inferbus_contracts.sampling_bounds import MAX_STOPS
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.schema import parse
from inferbus_edge.core.messages_plan import plan_count, plan_message
from inferbus_edge.core.messages_schema import CountRequest, MessageRequest
from inferbus_runtime.errors import InferBusError

WEATHER = {
    "name": "weather",
    "description": "How it is outside.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [WEATHER, {"name": "clock", "input_schema": {"type": "object"}}]


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], **fields}


def plan(**fields: Any) -> Plan:
    return plan_message(parse(MessageRequest, json.dumps(request(**fields)).encode()))


def refused(**fields: Any) -> InferBusError:
    with pytest.raises(InferBusError) as error:
        plan(**fields)
    return error.value


def said(one: Plan) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in one.requests[0].chat.messages]


def test_a_plain_request() -> None:
    one = plan(
        system="Be kind.", temperature=0.5, top_p=0.25, top_k=7, stop_sequences=["END"], metadata={"user_id": "u"},
        service_tier="auto", stream=True,
    )  # fmt: skip
    assert said(one) == [("system", "Be kind."), ("user", "hi")]
    sampling = one.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, list(sampling.stop)) == (0.5, 0.25, 7, ["END"])
    assert (sampling.max_tokens, one.output_bound, one.stream, one.model) == (50, 50, True, "m")
    assert one.needs == (Need("chat", "model"),)
    assert one.reply == {
        "api": "messages", "n": 1, "tools": False, "must_call": False, "max_tokens": 50, "stops": ["END"]
    }  # fmt: skip
    assert not one.requests[0].chat.tools
    assert one.requests[0].chat.reasoning_effort == ""


def test_what_is_left_out_is_the_models_default() -> None:
    sampling = plan().requests[0].sampling
    assert not any(sampling.HasField(name) for name in ("temperature", "top_p", "top_k", "seed"))


def test_blocks_become_the_turns_of_a_chat() -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    one = plan(
        system=[{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}],
        tools=TOOLS,
        messages=[
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two", "citations": None}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}, **cached},
                {"type": "tool_use", "id": "t2", "name": "clock", "input": {}, "caller": {"type": "direct"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain", **cached},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [
                    {"type": "text", "text": "no"}, {"type": "text", "text": "clock"},
                ]},
                {"type": "text", "text": "and?"},
            ]},
            {"role": "system", "content": "Now short."},
            {"role": "user", "content": "go"},
        ],
    )  # fmt: skip
    assert said(one) == [
        ("system", "a\nb"), ("user", "one\ntwo"), ("assistant", "I look."), ("tool", "rain"),
        ("tool", "Error: no\nclock"), ("user", "and?"), ("system", "Now short."), ("user", "go"),
    ]  # fmt: skip
    messages = one.requests[0].chat.messages
    assert [(call.id, call.name) for call in messages[2].tool_calls] == [("t1", "weather"), ("t2", "clock")]
    assert json.loads(messages[2].tool_calls[0].arguments) == {"city": "Köln"}
    assert [(one.tool_call_id, one.name) for one in messages[3:5]] == [("t1", "weather"), ("t2", "clock")]


@pytest.mark.parametrize(
    ("choice", "mode", "name", "parallel"),
    [
        (None, ToolMode.TOOL_MODE_AUTO, "", True),
        ({"type": "auto"}, ToolMode.TOOL_MODE_AUTO, "", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolMode.TOOL_MODE_AUTO, "", False),
        ({"type": "any"}, ToolMode.TOOL_MODE_REQUIRED, "", True),
        ({"type": "tool", "name": "clock"}, ToolMode.TOOL_MODE_REQUIRED, "clock", True),
        ({"type": "none"}, ToolMode.TOOL_MODE_NONE, "", True),
    ],
)
def test_tool_choice(choice: Any, mode: Any, name: str, parallel: bool) -> None:
    one = plan(tools=TOOLS, tool_choice=choice)
    chat = one.requests[0].chat
    assert (chat.tool_mode, chat.tool_name, chat.parallel_tool_calls) == (mode, name, parallel)
    assert [tool.name for tool in chat.tools] == ["weather", "clock"]
    assert json.loads(chat.tools[0].parameters)["required"] == ["city"]
    assert Need("tools", "tools") in one.needs
    assert one.reply["tools"] is (mode != ToolMode.TOOL_MODE_NONE)
    assert one.reply["must_call"] is (mode == ToolMode.TOOL_MODE_REQUIRED)


def test_as_many_stop_sequences_as_a_worker_takes() -> None:
    many = [f"END {number}" for number in range(MAX_STOPS)]
    one = plan(stop_sequences=many)
    assert list(one.requests[0].sampling.stop) == one.reply["stops"] == many


def test_thinking_asks_for_a_reasoning_model() -> None:
    one = plan(max_tokens=4096, thinking={"type": "enabled", "budget_tokens": 2048})
    assert Need("reasoning", "thinking") in one.needs
    assert one.requests[0].chat.reasoning_effort == "medium"
    one = plan(thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert one.requests[0].chat.reasoning_effort == "high"
    assert Need("reasoning", "output_config.effort") in one.needs
    # Templates know OpenAI's names.
    assert plan(output_config={"effort": "max"}).requests[0].chat.reasoning_effort == "xhigh"
    one = plan(thinking={"type": "disabled"})
    assert (one.requests[0].chat.reasoning_effort, one.needs) == ("none", (Need("chat", "model"),))


def test_earlier_thinking_is_given_back_to_the_model() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Hi!"},
        ]},
        {"role": "user", "content": "more"},
    ]  # fmt: skip
    one = plan(messages=turns)
    assert said(one)[1] == ("assistant", "<think>\nhm\n</think>\n\nHi!")
    assert Need("reasoning", "messages[1].content[0]") in one.needs


def test_structured_output() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    one = plan(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(one.requests[0].constraint.json_schema) == schema
    assert Need("structured_output", "output_config.format") in one.needs
    forced = plan(output_config={"format": {"type": "json_schema", "schema": schema}}, tools=TOOLS,
                  tool_choice={"type": "any"})  # fmt: skip
    assert not forced.requests[0].HasField("constraint")


def test_images_need_a_model_that_sees() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    one = plan(messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}])
    assert Need("vision", "messages[0].content[1]") in one.needs


def test_counting_takes_the_same_conversation() -> None:
    fields = {"model": "m", "system": "s", "tools": TOOLS, "messages": [{"role": "user", "content": "hi"}]}
    counted = plan_count(parse(CountRequest, json.dumps(fields).encode()))
    assert counted.requests[0].chat == plan(system="s", tools=TOOLS).requests[0].chat
    with pytest.raises(InferBusError) as error:
        parse(CountRequest, json.dumps({**fields, "max_tokens": 5}).encode())
    assert error.value.param == "max_tokens"


TURN = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"temperature": 1.5}, "temperature", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 2000}] * 6}, "messages",
         "invalid_value"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": ""}] * 2000}] * 6}]},
         "messages", "invalid_value"),
        ({"seed": 1}, "seed", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "poem"}]}]}, "messages[0].content[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0]", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages[0].content[0]",
         "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text",
         "missing_required_parameter"),
        ({"messages": [TURN, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, TURN]},
         "messages[1].content[0]", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
         "messages[0].content[0].tool_use_id", "invalid_value"),
        ({"messages": [TURN, {"role": "assistant", "content": "The answer is ("}]}, "messages[1]",
         "unsupported_parameter"),
        ({"system": [{"type": "text", "text": "a", "citations": [{}]}]}, "system[0].citations",
         "unsupported_parameter"),
        ({"system": [{"type": "text", "text": "a", "cache_control": {"type": "for ever"}}]},
         "system[0].cache_control.type", "invalid_value"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]", "unsupported_parameter"),
        ({"tools": [{**WEATHER, "name": "no spaces"}]}, "tools[0].name", "invalid_value"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema", "missing_required_parameter"),
        ({"tools": [{"name": "x", "input_schema": {"type": "string"}}]}, "tools[0].input_schema", "invalid_schema"),
        ({"tools": [{"name": "x", "input_schema": {"type": "object", "properties": {"a": {"type": "foo"}}}}]},
         "tools[0].input_schema.properties.a", "invalid_schema"),
        ({"tools": [{"name": "x", "strict": True, "input_schema": {"type": "object", "not": {}}}]},
         "tools[0].input_schema", "invalid_schema"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading", "unsupported_parameter"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "rain"}}, "tool_choice.name", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": {"type": "any", "name": "clock"}}, "tool_choice.name", "invalid_value"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens", "invalid_value"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "invalid_value"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking.budget_tokens", "invalid_value"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display", "unsupported_parameter"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "output_config.effort",
         "invalid_value"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "foo"}}}},
         "output_config.format.schema", "invalid_schema"),
        ({"container": "c"}, "container", "unsupported_parameter"),
        ({"mcp_servers": [{}]}, "mcp_servers", "unsupported_parameter"),
        ({"speed": "fast"}, "speed", "unsupported_parameter"),
        ({"inference_geo": "eu"}, "inference_geo", "unsupported_parameter"),
        ({"stop_sequences": [""]}, "stop_sequences[0]", "invalid_value"),
        ({"stop_sequences": ["x"] * (MAX_STOPS + 1)}, "stop_sequences", "invalid_value"),
        ({"metadata": {"name": "x"}}, "metadata.name", "unknown_parameter"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str, reason: str) -> None:
    error = refused(**fields)
    assert (error.param, error.reason) == (param, reason)
    assert param in error.message


def test_what_asks_for_nothing_is_taken() -> None:
    one = plan(
        container=None, mcp_servers=[], speed="standard", diagnostics=None, inference_geo=None, thinking=None,
        tools=[{**WEATHER, "type": "custom", "strict": True, "eager_input_streaming": True, "defer_loading": False}],
        cache_control={"type": "ephemeral"}, output_config={},
    )  # fmt: skip
    assert one.needs == (Need("chat", "model"), Need("tools", "tools"))


def test_max_tokens_is_required() -> None:
    fields = request()
    del fields["max_tokens"]
    with pytest.raises(InferBusError) as error:
        parse(MessageRequest, json.dumps(fields).encode())
    assert (error.value.param, error.value.reason) == ("max_tokens", "missing_required_parameter")

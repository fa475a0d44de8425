"""OpenAI's words on the bus: what a chat request comes to, and how its end is told."""

import json
from typing import Any

import pytest
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, ToolMode
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass, Usage
from inferbus_dialect.chat_plan import plan_chat
from inferbus_dialect.openai import parse_chat_request
from inferbus_dialect.plan import Plan
from inferbus_dialect.translate import add_usage, error_of, model_list
from inferbus_runtime.errors import InferBusError

FUNCTION = {"name": "f", "description": "does f", "parameters": {"type": "object", "properties": {"a": {}}}}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "g"}}]
NAMED = {"type": "function", "function": {"name": "g"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def planned(**fields: object) -> Plan:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return plan_chat(parse_chat_request(json.dumps(body).encode()))


def translated(**fields: object) -> GenerateRequest:
    (request,) = planned(**fields).requests
    return request


def needs(**fields: object) -> list[tuple[str, str]]:
    return [(need.capability, need.param) for need in planned(**fields).needs]


def test_an_answer_of_which_one_choice_is_an_estimate_is_one() -> None:
    total = Usage()
    for estimated in (False, True, False):
        add_usage(total, Usage(output_tokens=2, estimated=estimated))
    assert (total.output_tokens, total.estimated) == (6, True)


def test_what_is_not_said_stays_absent() -> None:
    request = translated()
    assert [field.name for field, _ in request.ListFields()] == ["priority_class", "chat", "sampling"]
    assert [field.name for field, _ in request.sampling.ListFields()] == []
    assert [field.name for field, _ in request.chat.ListFields()] == ["messages"]
    assert planned().reply == {"api": "chat", "n": 1, "plain": True, "include_usage": False}


def test_sampling() -> None:
    sampling = translated(
        temperature=0, top_p=0.5, top_k=-1, seed=-1, stop="x", max_completion_tokens=9, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5, min_p=0.25, logit_bias={"7": -100, "0": 0.5},
    ).sampling  # fmt: skip
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 0, 0.25)
    assert (sampling.seed, list(sampling.stop), sampling.max_tokens) == ((1 << 64) - 1, ["x"], 9)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert dict(sampling.logit_bias) == {7: -100, 0: 0.5}
    assert not sampling.HasField("logprobs")
    assert translated(max_tokens=4).sampling.max_tokens == 4
    assert list(translated(stop=["a", "b"]).sampling.stop) == ["a", "b"]
    assert translated(logprobs=True).sampling.HasField("logprobs")
    assert translated(logprobs=True, top_logprobs=3).sampling.logprobs == 3


def test_choices() -> None:
    plan = planned(n=3, seed=-1, max_tokens=10)
    assert [one.sampling.seed for one in plan.requests] == [(1 << 64) - 1, 0, 1]
    assert [one.input_counted_elsewhere for one in plan.requests] == [False, True, True]
    assert (plan.reply["n"], plan.reply["plain"], plan.output_bound) == (3, True, 30)
    assert not any(one.sampling.HasField("seed") for one in planned(n=2).requests)


def test_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = translated(
        messages=[
            {"role": "developer", "content": "s"}, {"role": "user", "content": parts, "name": "joe"},
            {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "r", "tool_call_id": "c1"},
            {"role": "assistant", "content": None}, {"role": "assistant", "refusal": "no"},
        ]
    ).chat.messages  # fmt: skip
    assert [(one.role, one.content, one.name) for one in messages] == [
        ("system", "s", ""), ("user", "ab", "joe"), ("assistant", "", ""), ("tool", "r", ""), ("assistant", "", ""),
        ("assistant", "no", ""),
    ]  # fmt: skip
    (made,) = messages[2].tool_calls
    assert (made.id, made.name, made.arguments, messages[3].tool_call_id) == ("c1", "f", "{}", "c1")


@pytest.mark.parametrize(
    ("fields", "mode", "name"),
    [
        ({}, ToolMode.TOOL_MODE_AUTO, ""), ({"tool_choice": "auto"}, ToolMode.TOOL_MODE_AUTO, ""),
        ({"tool_choice": "none"}, ToolMode.TOOL_MODE_NONE, ""),
        ({"tool_choice": "required"}, ToolMode.TOOL_MODE_REQUIRED, ""),
        ({"tool_choice": NAMED}, ToolMode.TOOL_MODE_REQUIRED, "g"),
    ],
)  # fmt: skip
def test_tools(fields: dict[str, Any], mode: int, name: str) -> None:
    chat = translated(tools=TOOLS, **fields).chat
    assert (chat.tool_mode, chat.tool_name, chat.parallel_tool_calls) == (mode, name, True)
    assert [(one.name, one.description) for one in chat.tools] == [("f", "does f"), ("g", "")]
    assert json.loads(chat.tools[0].parameters) == FUNCTION["parameters"]
    assert chat.tools[1].parameters == ""
    reply = planned(tools=TOOLS, **fields).reply
    assert reply.get("tools", False) == (mode != ToolMode.TOOL_MODE_NONE)
    assert reply.get("must_call", False) == (mode == ToolMode.TOOL_MODE_REQUIRED)
    assert not translated(tools=TOOLS, parallel_tool_calls=False, **fields).chat.parallel_tool_calls


def test_allowed_tools_are_all_there_are() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    chat = translated(tools=TOOLS, tool_choice=allowed).chat
    assert (chat.tool_mode, [one.name for one in chat.tools]) == (ToolMode.TOOL_MODE_REQUIRED, ["g"])


def test_response_format() -> None:
    assert not translated(response_format={"type": "text"}).HasField("constraint")
    assert translated(response_format={"type": "json_object"}).constraint.json_object
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    assert json.loads(translated(response_format=wanted).constraint.json_schema) == SCHEMA
    assert not translated(response_format=wanted, tools=TOOLS, tool_choice="required").HasField("constraint")
    assert translated(response_format=wanted, tools=TOOLS).HasField("constraint")
    assert translated(response_format={"type": "json_schema", "json_schema": {"name": "a"}}).constraint.json_object


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}}},
         "response_format.json_schema.schema"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": 1}}}}}]},
         "tools[0].function.parameters.properties.a"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]},
         "tools[0].function.parameters"),
    ],
)  # fmt: skip
def test_a_bad_schema_is_refused_with_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InferBusError) as caught:
        planned(**fields)
    assert (caught.value.reason, caught.value.param) == ("invalid_schema", param)


def test_what_the_model_must_be_able_to_do() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert needs() == [("chat", "model")]
    assert needs(
        tools=TOOLS, logprobs=True, logit_bias={"1": 1}, reasoning_effort="low",
        response_format={"type": "json_object"},
        messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, image]}],
    ) == [
        ("chat", "model"), ("tools", "tools"), ("structured_output", "response_format"), ("logprobs", "logprobs"),
        ("logit_bias", "logit_bias"), ("reasoning", "reasoning_effort"), ("vision", "messages[0].content[1]"),
    ]  # fmt: skip
    assert needs(response_format={"type": "text"}, reasoning_effort="none", logprobs=False) == [("chat", "model")]


@pytest.mark.parametrize(
    ("tier", "told", "priority"),
    [
        ("auto", "default", PriorityClass.PRIORITY_CLASS_INTERACTIVE),
        ("default", "default", PriorityClass.PRIORITY_CLASS_INTERACTIVE),
        ("priority", "priority", PriorityClass.PRIORITY_CLASS_INTERACTIVE),
        ("flex", "flex", PriorityClass.PRIORITY_CLASS_BACKGROUND),
    ],
)
def test_service_tiers_are_classes(tier: str, told: str, priority: int) -> None:
    plan = planned(service_tier=tier)
    assert (plan.reply["service_tier"], plan.requests[0].priority_class) == (told, priority)
    assert "plain" not in plan.reply


def test_what_is_stored() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    plan = planned(store=True, metadata={"a": "b"}, messages=messages)
    assert plan.stored is not None
    assert json.loads(plan.stored) == {"messages": messages}
    assert (plan.reply["metadata"], plan.reply.get("plain")) == ({"a": "b"}, None)
    plain = planned(metadata={"a": "b"})
    assert (plain.stored, plain.reply["plain"]) == (None, True)


def test_how_a_request_ended() -> None:
    assert error_of(Close(finish_reason=FinishReason.FINISH_REASON_STOP)) is None
    assert error_of(Close(finish_reason=FinishReason.FINISH_REASON_LENGTH)) is None
    cancelled = error_of(Close(finish_reason=FinishReason.FINISH_REASON_CANCELLED))
    assert cancelled is not None
    assert cancelled.reason == "cancelled"
    full = Error(error_class=ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, reason="queue_full", message="later")
    error = error_of(Close(finish_reason=FinishReason.FINISH_REASON_ERROR, error=full))
    assert error is not None
    assert (error.reason, error.message) == ("queue_full", "later")


@pytest.mark.parametrize("reason", [FinishReason.FINISH_REASON_ERROR, FinishReason.FINISH_REASON_UNSPECIFIED])
def test_an_end_without_a_reason_is_our_fault(reason: Any) -> None:
    error = error_of(Close(finish_reason=reason))
    assert error is not None
    assert error.error_class == ErrorClass.ERROR_CLASS_INTERNAL


def test_models_are_listed_by_name() -> None:
    listed = model_list([ModelRecord(name="b"), ModelRecord(name="a", owned_by="acme", capabilities=["inference"])])
    assert [(one["id"], one["owned_by"]) for one in listed["data"]] == [("a", "acme"), ("b", "inferbus")]
    assert [one["capabilities"] for one in listed["data"]] == [["inference"], ["chat"]]

"""Request parsing: strict, names what is wrong, never fails in any other way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_dialect.openai import ChatRequest, parse_chat_request
from inferbus_runtime.errors import InferBusError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
FIELDS = st.sampled_from(sorted(ChatRequest.model_fields))


def request(**changes: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **changes}).encode()


def refusal(body: bytes) -> InferBusError:
    with pytest.raises(InferBusError) as caught:
        parse_chat_request(body)
    assert caught.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert caught.value.message
    return caught.value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_a_named_error(body: bytes) -> None:
    refusal(body)


@given(JSON)
def test_arbitrary_json_raises_only_a_named_error(value: object) -> None:
    refusal(json.dumps(value).encode())


def outcome(body: bytes) -> InferBusError | None:
    try:
        assert parse_chat_request(body).messages
    except InferBusError as error:
        return error
    return None


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_arbitrary_values_of_known_fields_are_taken_or_refused(values: dict[str, object]) -> None:
    error = outcome(request(**values))
    if error is not None:
        assert error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        assert error.param or error.reason in ("invalid_json", "nested_too_deep")


PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | JSON}, optional={"text": JSON})
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("user") | JSON, "content": st.lists(PART, max_size=2) | st.just("x") | JSON},
    optional={"tool_calls": JSON, "name": JSON},
)


@given(JSON | st.lists(MESSAGE, max_size=3))
def test_arbitrary_messages_are_taken_or_refused(value: object) -> None:
    error = outcome(request(messages=value))
    assert error is None or error.param.startswith("messages") or error.reason == "invalid_json"


@given(st.text(min_size=1, max_size=30).filter(lambda name: name not in ChatRequest.model_fields))
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    error = refusal(request(**{name: 1}))
    assert (error.reason, error.param) == ("unknown_parameter", name[:64])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "a"}), ("modalities", ["text", "audio"]), ("functions", [{}]),
        ("function_call", {"name": "f"}), ("prediction", {"type": "content"}), ("web_search_options", {}),
        ("verbosity", "low"), ("moderation", {}),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(field: str, value: object) -> None:
    error = refusal(request(**{field: value}))
    assert (error.reason, error.param) == ("unsupported_parameter", field)
    assert field in error.message


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}


def test_everything_that_is_served_is_accepted() -> None:
    parse_chat_request(
        request(
            n=128, logprobs=True, top_logprobs=20, tools=[TOOL], tool_choice=NAMED, functions=[], function_call="auto",
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}},
            store=True, metadata={"a": "b"}, user="u", service_tier="flex", parallel_tool_calls=False,
            logit_bias={"50256": -100, "1": 0.5}, modalities=["text"], audio=None, stop=None, temperature=None,
            max_tokens=None, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True,
            "include_obfuscation": False}, seed=-1, prompt_cache_key="k", prompt_cache_retention="24h",
            prompt_cache_options={"mode": "explicit"}, safety_identifier="s", min_p=0.1, top_k=-1,
            repetition_penalty=1.1, reasoning_effort="high",
        )
    )  # fmt: skip
    for choice in (
        "none",
        "auto",
        "required",
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
    ):
        parse_chat_request(request(tools=[TOOL], tool_choice=choice))
    for kind in ("text", "json_object"):
        parse_chat_request(request(response_format={"type": kind}))


def test_neutral_values_are_accepted() -> None:
    parse_chat_request(
        request(
            n=1, logprobs=False, tools=[], tool_choice="auto", functions=None, response_format={"type": "text"},
            store=False, service_tier="auto", parallel_tool_calls=True, logit_bias={}, top_logprobs=0, n_=None,
        ).replace(b', "n_": null', b"")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 2.1, "temperature"), ("temperature", -1, "temperature"), ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"), ("top_p", 1.01, "top_p"), ("presence_penalty", 3, "presence_penalty"),
        ("frequency_penalty", -2.5, "frequency_penalty"), ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", 1.5, "max_completion_tokens"), ("stop", ["a"] * 5, "stop"), ("stop", [1], "stop[0]"),
        ("stop", "", "stop"), ("stop", 3, "stop"), ("messages", [], "messages"), ("messages", "hi", "messages"),
        ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ("messages", [{"role": "user", "content": "x", "extra": 1}], "messages[0].extra"),
        ("model", "", "model"), ("model", 5, "model"), ("stream", "yes", "stream"), ("top_k", -2, "top_k"),
        ("repetition_penalty", 0, "repetition_penalty"), ("seed", 1 << 63, "seed"), ("seed", 1.0, "seed"),
        ("metadata", {"a": 1}, "metadata.a"), ("stream_options", {"include_usage": True}, "stream_options"),
        ("metadata", {str(at): "x" for at in range(17)}, "metadata"), ("n", 0, "n"), ("n", 129, "n"), ("n", True, "n"),
        ("top_logprobs", 21, "top_logprobs"), ("top_logprobs", 1, "top_logprobs"), ("logprobs", 1, "logprobs"),
        ("logit_bias", {"a": 1}, "logit_bias.a"), ("logit_bias", {"1": 101}, "logit_bias.1"),
        ("response_format", {"type": "yaml"}, "response_format.type"),
        ("response_format", {"type": "text", "x": 1}, "response_format.x"),
        ("response_format", "json", "response_format"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a b"}},
         "response_format.json_schema.name"),
        ("tools", [{"type": "custom", "custom": {}}], "tools[0].type"), ("tools", [{}], "tools[0].type"),
        ("tools", [TOOL, TOOL], "tools[1].function.name"), ("tools", [TOOL] * 129, "tools"),
        ("tools", [{"type": "function", "function": {"name": ""}}], "tools[0].function.name"),
        ("tool_choice", "required", "tool_choice"), ("tool_choice", "sometimes", "tool_choice"),
        ("tool_choice", NAMED, "tool_choice.function.name"), ("tool_choice", {"type": "custom"}, "tool_choice.type"),
        ("tool_choice", ALLOWED, "tool_choice.allowed_tools.tools[0].function.name"),
        ("service_tier", "scale", "service_tier"), ("reasoning_effort", "some", "reasoning_effort"),
        ("min_p", 1.1, "min_p"), ("store", "yes", "store"), ("user", "u" * 513, "user"),
        ("messages", [{"role": "user", "content": "x"}] * 2049, "messages"),
        ("messages", [{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ("messages", [{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}],
         "messages[0].tool_calls[0].type"),
        ("messages", [{"role": "assistant"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "hologram"}]}], "messages[0].content[0].type"),
        ("messages", [{"role": "system", "content": [IMAGE]}], "messages[0].content[0]"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_parameter(field: str, value: object, param: str) -> None:
    assert refusal(request(**{field: value})).param == param


@pytest.mark.parametrize("kind", ["input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_name(kind: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": kind, kind: {}}]
    error = refusal(request(messages=[{"role": "user", "content": parts}]))
    assert (error.reason, error.param) == ("unsupported_parameter", "messages[0].content[1].type")
    assert kind in error.message


def test_an_answer_of_the_sdk_can_be_sent_back() -> None:
    answer = {
        "role": "assistant", "content": "yes", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    messages = [{"role": "user", "content": "q"}, answer, {"role": "tool", "content": "t", "tool_call_id": "c"}]
    assert len(parse_chat_request(request(messages=messages)).messages) == 3
    called = {**answer, "content": None, "tool_calls": [CALL | {"index": 0}], "parsed": None}
    called["tool_calls"][0]["function"]["parsed_arguments"] = {"a": 1}
    parse_chat_request(request(messages=[called, {"role": "assistant", "refusal": "no"}]))
    for field, value in (("audio", {"id": "a"}), ("function_call", {"name": "f"}), ("annotations", [{}])):
        error = refusal(request(messages=[{**answer, field: value}]))
        assert (error.reason, error.param) == ("unsupported_parameter", f"messages[0].{field}")


def test_continuous_usage_is_a_part_of_usage() -> None:
    error = refusal(request(stream=True, stream_options={"continuous_usage_stats": True}))
    assert error.param == "stream_options.continuous_usage_stats"
    error = refusal(request(stream=True, stream_options={"include_obfuscation": True}))
    assert (error.reason, error.param) == ("unsupported_parameter", "stream_options.include_obfuscation")


def test_two_bounds_of_output_contradict_each_other() -> None:
    assert refusal(request(max_tokens=1, max_completion_tokens=1)).param == "max_tokens"


def test_no_text_of_the_prompt_is_in_an_error() -> None:
    secret = "the password is swordfish"
    for body in (
        request(messages=[{"role": "user", "content": {"text": secret}}]),
        request(messages=[{"role": secret, "content": secret}]),
        request(temperature=secret),
        b'{"messages": [{"content": "' + secret.encode(),
    ):
        error = refusal(body)
        assert secret not in error.message + error.diagnostic + str(error)

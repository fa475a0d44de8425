"""Function tools by OpenAI's SDK: chosen, forced, named, in parallel and streamed. The model is far too small to choose
wisely; what is shown is that whatever it says is a valid call wherever a call was asked for."""

import asyncio
import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conformance.clients import MODEL, Caller

CREATE = "chat.completions.create"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Zürich", "東京"]},
                "unit": {"enum": ["celsius", "kelvin"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip  # noqa: E501
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def ask(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "max_completion_tokens": 80,
        "tools": [WEATHER, CLOCK],
        **more,
    }


def checked(name: str, arguments: str) -> str:
    """Asserts that the arguments are as the function's schema wants them."""
    value = json.loads(arguments)
    if name == "get_weather":
        assert value.keys() == {"city", "unit"}
        assert value["city"] in ("Paris", "Zürich", "東京")
        assert value["unit"] in ("celsius", "kelvin")
    else:
        assert (name, value) == ("get_time", {})
    return name


def calls_of(chunks: list[Any]) -> list[dict[str, Any]]:
    """The calls of a stream put together by hand, checking the form of each delta."""
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(calls):
                    assert delta.id
                    assert delta.type == "function"
                    assert delta.function.name
                    calls.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
                else:
                    assert delta.index == len(calls) - 1
                    assert delta.function.name is None
                calls[delta.index]["arguments"] += delta.function.arguments or ""
    return calls


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_time"}}],
                },
            },
            {"get_time"},
        ),
    ],
    ids=["required", "named", "allowed"],
)
async def test_a_forced_call_is_made_and_valid(sdk: Caller, choice: Any, names: set[str]) -> None:
    body = ask(tool_choice=choice, parallel_tool_calls=False)
    answer = await sdk.one(CREATE, **body)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")  # "stop" is OpenAI's for a named function
    (call,) = message.tool_calls
    assert checked(call.function.name, call.function.arguments) in names
    assert call.id
    assert not message.content
    chunks = await sdk.events(CREATE, **body)
    (streamed,) = calls_of(chunks)
    assert (streamed["name"], json.loads(streamed["arguments"])) == (
        call.function.name,
        json.loads(call.function.arguments),
    )
    finishes = [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason]
    assert finishes == [answer.choices[0].finish_reason]


async def test_auto_and_none(client: openai.AsyncOpenAI) -> None:
    free = await client.chat.completions.create(**ask(tool_choice="none", max_completion_tokens=24))
    assert free.choices[0].message.tool_calls is None
    assert free.choices[0].message.content
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                **ask(tool_choice="auto", temperature=1, seed=seed, max_completion_tokens=40)
            )
            for seed in range(4)
        )
    )
    for answer in answers:
        message = answer.choices[0].message
        for call in message.tool_calls or []:
            if answer.choices[0].finish_reason == "tool_calls":
                checked(call.function.name, call.function.arguments)
        assert message.tool_calls or message.content


async def test_calls_in_parallel_have_ids_of_their_own(client: openai.AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                **ask(tool_choice="required", temperature=1, seed=seed, parallel_tool_calls=True)
            )
            for seed in range(4)
        )
    )
    for answer in answers:
        calls = answer.choices[0].message.tool_calls
        assert calls
        assert len({call.id for call in calls}) == len(calls)
        whole = calls if answer.choices[0].finish_reason == "tool_calls" else calls[:-1]
        for call in whole:
            checked(call.function.name, call.function.arguments)


async def test_the_result_of_a_call_goes_back_to_the_model(sdk: Caller) -> None:
    first = await sdk.one(CREATE, **ask(tool_choice={"type": "function", "function": {"name": "get_weather"}}))
    said = first.choices[0].message
    messages = [
        *QUESTION,
        said.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees."} for call in said.tool_calls),
    ]
    answer = await sdk.one(CREATE, **ask(messages=messages, tool_choice="none", max_completion_tokens=16))
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > first.usage.prompt_tokens


async def test_a_forced_call_needs_no_answer_in_the_format_of_answers(client: openai.AsyncOpenAI) -> None:
    """Agents send both: the format is that of the text, and a turn of calls has none."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"name": "a", "schema": schema, "strict": True}
    answer = await client.chat.completions.create(
        **ask(tool_choice="required", parallel_tool_calls=False),
        response_format={"type": "json_schema", "json_schema": form},
    )
    (call,) = answer.choices[0].message.tool_calls
    checked(call.function.name, call.function.arguments)
    flat = [{"type": "function", **tool["function"]} for tool in (WEATHER, CLOCK)]
    response = await client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=80, tools=flat, tool_choice="required",
        parallel_tool_calls=False, text={"format": {"type": "json_schema", **form}},
    )  # fmt: skip
    checked(response.output[0].name, response.output[0].arguments)
    auto = await client.chat.completions.create(
        **ask(tool_choice="auto", parallel_tool_calls=False),
        response_format={"type": "json_schema", "json_schema": form},
    )
    message = auto.choices[0].message
    if message.tool_calls:
        checked(message.tool_calls[0].function.name, message.tool_calls[0].function.arguments)
    else:
        assert json.loads(message.content)["a"] in (1, 2)


class Booking(BaseModel):
    """Book a table."""

    guests: int
    inside: bool


async def test_the_sdks_own_parsing_of_calls(sdk: Caller) -> None:
    tool = openai.pydantic_function_tool(Booking, name="book")
    body = ask(tools=[tool], tool_choice="required", parallel_tool_calls=False)
    parsed = await sdk.one("chat.completions.parse", **body)
    (call,) = parsed.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Booking)
    events, _ = await sdk.helper("chat.completions.stream", **body)
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert done.name == "book"
    assert isinstance(done.parsed_arguments, Booking)


async def test_tools_that_cannot_be_are_refused(client: openai.AsyncOpenAI) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}}}  # fmt: skip  # noqa: E501
    for param, more in (
        ("tools[0].function.parameters", {"tools": [bad]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        ("tools[0].type", {"tools": [{"type": "telepathy"}]}),
        ("tool_choice", {"tools": None, "tool_choice": "required"}),
        ("tool_choice", {"tool_choice": {"type": "function", "function": {"name": "unknown"}}}),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            await client.chat.completions.create(**ask(**more))
        assert error.value.body["param"].startswith(param), error.value.body

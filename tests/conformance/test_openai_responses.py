"""The Responses API by OpenAI's SDK: made, streamed, stored, chained, cancelled, deleted, resumed."""

import asyncio
import json
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.conformance.clients import MODEL, Caller, chat_tokens, openai_client
from tests.harness.local import Stack

CREATE = "responses.create"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def ask(given: Any = "Count from one to ten in words.", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": given, "temperature": 0, "max_output_tokens": 12, **more}


async def refused(client: openai.AsyncOpenAI, param: str, **more: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await client.responses.create(**{**ask(), **more})
    assert error.value.body["param"].startswith(param), error.value.body


async def settled(client: openai.AsyncOpenAI, response_id: str) -> Response:
    async with asyncio.timeout(60):
        while (found := await client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
    return found


async def test_a_response_unary_and_streamed(sdk: Caller, http: httpx.AsyncClient) -> None:
    unary: Response = await sdk.one(CREATE, **ask())
    assert (unary.object, unary.status, unary.model) == ("response", "incomplete", MODEL)
    assert unary.incomplete_details.reason == "max_output_tokens"
    (message,) = unary.output
    assert (message.type, message.role, message.content[0].type) == ("message", "assistant", "output_text")
    assert unary.usage.input_tokens == await chat_tokens(http, [{"role": "user", "content": ask()["input"]}])
    assert unary.usage.output_tokens == 12
    assert unary.usage.total_tokens == unary.usage.input_tokens + 12
    assert unary.temperature == 0
    assert unary.max_output_tokens == 12
    events = await sdk.events(CREATE, **ask())
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == unary.output_text
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    final = events[-1].response
    assert final.output_text == unary.output_text
    assert final.usage.output_tokens == 12
    assert {event.item_id for event in deltas} == {final.output[0].id}


async def test_a_whole_answer_is_completed(sdk: Caller) -> None:
    class Answer(BaseModel):
        colour: Literal["red", "green"]

    body = ask("Which colour?", max_output_tokens=40)
    parsed = await sdk.one("responses.parse", **body, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)
    assert (parsed.status, parsed.incomplete_details, parsed.error) == ("completed", None, None)
    events, final = await sdk.helper("responses.stream", **body, text_format=Answer)
    assert events[-1].type == "response.completed"
    assert final.output_parsed == parsed.output_parsed
    assert final.text.format.type == "json_schema"
    for form in ({"type": "text"}, {"type": "json_object"}):
        answer = await sdk.one(CREATE, **ask("Say something as JSON.", text={"format": form}))
        assert answer.output_text.startswith("{") == (form["type"] == "json_object")


async def test_input_items_and_instructions(sdk: Caller, http: httpx.AsyncClient) -> None:
    items = [
        {"role": "developer", "content": "Be short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi!", "annotations": []}],
        },
        {"role": "user", "content": "Count."},
    ]
    answer = await sdk.one(CREATE, **ask(items, instructions="You are a counter."))
    chat = [
        {"role": "system", "content": "You are a counter."},
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Count."},
    ]
    assert answer.instructions == "You are a counter."
    assert answer.usage.input_tokens == await chat_tokens(http, chat)


async def test_input_tokens_are_counted_as_they_are_billed(sdk: Caller) -> None:
    first = await sdk.one(CREATE, **ask("My name is Ada."))
    more = {"input": "And mine?", "instructions": "Be kind.", "tools": [WEATHER], "previous_response_id": first.id}
    answer = await sdk.one(CREATE, **{**ask(), **more})
    assert (
        await sdk.one("responses.input_tokens.count", model=MODEL, **more)
    ).input_tokens == answer.usage.input_tokens


async def test_a_response_is_kept_chained_and_deleted(sdk: Caller, http: httpx.AsyncClient) -> None:
    first = await sdk.one(CREATE, **ask("My name is Ada.", metadata={"a": "b"}, instructions="Be kind."))
    found = await sdk.one("responses.retrieve", first.id)
    assert (found.id, found.output_text, found.metadata) == (first.id, first.output_text, {"a": "b"})
    assert found.usage == first.usage
    second = await sdk.one(CREATE, **ask("What is my name?", previous_response_id=first.id))
    chat = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens == await chat_tokens(http, chat)  # the instructions are not inherited
    items = await sdk.listed("responses.input_items.list", second.id, order="asc")
    texts = [part.text for item in items for part in item.content]
    assert texts == ["My name is Ada.", first.output_text, "What is my name?"]
    newest = await sdk.listed("responses.input_items.list", second.id, limit=1)
    assert [item.id for item in newest] == [item.id for item in reversed(items)]
    await sdk.one("responses.delete", first.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.one("responses.retrieve", first.id)
    with pytest.raises(openai.APIStatusError) as gone:
        await sdk.one(CREATE, **ask("And now?", previous_response_id=first.id))
    assert gone.value.status_code in (400, 404)
    assert gone.value.body["code"] == "previous_response_not_found"
    unkept = await sdk.one(CREATE, **ask(store=False))
    with pytest.raises(openai.NotFoundError):
        await sdk.one("responses.retrieve", unkept.id)


async def test_function_tools(sdk: Caller) -> None:
    body = ask("Weather in Paris?", tools=[WEATHER], tool_choice="required", max_output_tokens=80,
               parallel_tool_calls=False)  # fmt: skip
    first = await sdk.one(CREATE, **body)
    (call,) = first.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Oslo")
    events = await sdk.events(CREATE, **body)
    kinds = [event.type for event in events if not event.type.endswith("arguments.delta")]
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    joined = "".join(event.delta for event in events if event.type.endswith("arguments.delta"))
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert joined == done.arguments
    assert json.loads(joined) == json.loads(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    second = await sdk.one(CREATE, **ask([result], previous_response_id=first.id, tools=[WEATHER], tool_choice="none"))
    assert second.output_text
    stateless = await sdk.one(CREATE, **ask(
        [{"role": "user", "content": "Weather in Paris?"}, call.model_dump(exclude_none=True), result],
        tools=[WEATHER], tool_choice="none", store=False,
    ))  # fmt: skip
    assert stateless.usage.input_tokens == second.usage.input_tokens
    named = await sdk.one(CREATE, **{**body, "tool_choice": {"type": "function", "name": "get_weather"}})
    assert named.output[0].name == "get_weather"


async def test_in_the_background(sdk: Caller, client: openai.AsyncOpenAI) -> None:
    begun = await sdk.one(CREATE, **ask(background=True))
    assert begun.status in ("queued", "in_progress")
    assert begun.background
    ended = await settled(client, begun.id)
    assert (ended.id, ended.status, ended.usage.output_tokens) == (begun.id, "incomplete", 12)
    long = await sdk.one(CREATE, **ask("Tell a long story.", background=True, max_output_tokens=800))
    cancelled = await sdk.one("responses.cancel", long.id)
    assert cancelled.status == "cancelled"
    assert (await settled(client, long.id)).status == "cancelled"
    foreground = await sdk.one(CREATE, **ask())
    with pytest.raises(openai.BadRequestError):
        await sdk.one("responses.cancel", foreground.id)


async def test_a_stream_is_resumed_where_it_was_at_the_other_edge(stack: Stack, client: openai.AsyncOpenAI) -> None:
    whole = [event async for event in await client.responses.create(**ask(background=True, stream=True))]
    response_id = whole[0].response.id
    async with openai_client(stack, 1) as other:
        for after in (0, 3, len(whole) - 2):
            stream = await other.responses.retrieve(response_id, stream=True, starting_after=after)
            rest = [event async for event in stream]
            assert [event.to_dict() for event in rest] == [event.to_dict() for event in whole[after + 1 :]]
        begun = await client.responses.create(**ask(background=True, stream=True, max_output_tokens=60))
        seen = []
        async for event in begun:
            seen.append(event)
            if len(seen) == 10:
                break
        await begun.close()
        stream = await other.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        seen += [event async for event in stream]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
        assert seen[-1].response.output_text == text
        assert 10 < seen[-1].response.usage.output_tokens <= 60


async def test_logprobs_are_included_if_asked(client: openai.AsyncOpenAI) -> None:
    body = ask(include=["message.output_text.logprobs"], top_logprobs=2)
    answer = await client.responses.create(**body)
    logprobs = answer.output[0].content[0].logprobs
    assert "".join(one.token for one in logprobs) == answer.output_text
    assert all(len(one.top_logprobs) == 2 for one in logprobs)
    events = [event async for event in await client.responses.create(**body, stream=True)]
    told = [one.token for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert told == [one.token for one in logprobs]


async def test_what_cannot_be_served_is_refused_by_its_name(client: openai.AsyncOpenAI) -> None:
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,iVBO"}]}]
    for param, more in (
        ("reasoning", {"reasoning": {"effort": "high"}}),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("truncation", {"truncation": "auto"}),
        ("text.verbosity", {"text": {"verbosity": "low"}}),
        ("conversation", {"conversation": "conv_1"}),
        ("prompt", {"prompt": {"id": "pmpt_1"}}),
        ("background", {"background": True, "store": False}),
        ("input[0].content[0]", {"input": image}),
        ("temperature", {"temperature": 3}),
        ("include", {"include": ["file_search_call.results"]}),
    ):
        await refused(client, param, **more)


async def test_another_tenants_response_is_as_absent_as_one_that_never_was(
    stack: Stack, client: openai.AsyncOpenAI
) -> None:
    kept = await client.responses.create(**ask())
    never = "resp_" + "0" * 32
    stranger = await stack.new_key(tenant_id="stranger")
    async with openai_client(stack, api_key=stranger) as other:
        for method in ("retrieve", "delete", "cancel"):
            said = []
            for response_id in (kept.id, never):
                with pytest.raises(openai.NotFoundError) as error:
                    await getattr(other.responses, method)(response_id)
                said.append({name: str(value).replace(response_id, "") for name, value in error.value.body.items()})
            assert said[0] == said[1]
        with pytest.raises(openai.APIStatusError) as error:
            await other.responses.create(**ask(previous_response_id=kept.id))
        assert error.value.body["code"] == "previous_response_not_found"
    assert (await client.responses.retrieve(kept.id)).output_text == kept.output_text

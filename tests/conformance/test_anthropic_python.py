"""Anthropic's Messages API by Anthropic's SDK: made, streamed, with tools, counted, refused."""

import json
from typing import Any, Literal

import anthropic
import httpx2 as httpx
import pytest
from anthropic.types import Message
from pydantic import BaseModel

from tests.conformance.clients import MODEL, SECONDS, Caller, chat_tokens
from tests.harness.local import Stack

CREATE = "messages.create"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Zürich"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def ask(text: Any = "Count from one to ten in words.", **more: Any) -> dict[str, Any]:
    """``more``: also parameters of the API that this SDK has no arguments for any more, such as the temperature."""
    extra = {"temperature": 0} | {name: more.pop(name) for name in ("temperature", "top_p", "top_k") if name in more}
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 12,
        "extra_body": extra,
        **more,
    }


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def input_of(message: Message) -> int:
    """All tokens of the prompt: Anthropic's input_tokens are those that came from no cache."""
    usage = message.usage
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)


async def test_a_message_unary_and_streamed(claude: Caller, http: httpx.AsyncClient) -> None:
    unary: Message = await claude.one(CREATE, **ask())
    assert (unary.type, unary.role, unary.model, unary.stop_reason) == ("message", "assistant", MODEL, "max_tokens")
    assert input_of(unary) == await chat_tokens(http, ask()["messages"])
    assert unary.usage.output_tokens == 12
    events = await claude.events(CREATE, **ask())
    kinds = [event.type for event in events if event.type not in ("content_block_delta", "ping")]
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    joined = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert joined == text_of(unary)
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert delta.delta.stop_reason == "max_tokens"
    assert delta.usage.output_tokens == 12
    helped, final = await claude.helper("messages.stream", **ask())
    assert text_of(final) == text_of(unary)
    assert final.usage.output_tokens == 12
    assert "".join(event.text for event in helped if event.type == "text") == text_of(unary)


async def test_system_turns_and_parameters(claude: Caller, http: httpx.AsyncClient) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Count."},
    ]
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Count."},
    ]
    for system in ("Be kind.", [{"type": "text", "text": "Be kind."}]):
        answer = await claude.one(
            CREATE, **ask(messages=turns, system=system, metadata={"user_id": "u"}, service_tier="auto")
        )
        assert input_of(answer) == await chat_tokens(http, chat)
    greedy = text_of(await claude.one(CREATE, **ask()))
    assert text_of(await claude.one(CREATE, **ask(temperature=1.0, top_k=1))) == greedy
    assert text_of(await claude.one(CREATE, **ask(temperature=1.0, top_p=0.000001))) == greedy
    stop = greedy[len(greedy) // 2 :][:4]
    cut = await claude.one(CREATE, **ask(stop_sequences=[stop]))
    assert text_of(cut) == greedy[: greedy.index(stop)]
    assert cut.stop_reason in ("stop_sequence", "end_turn")


async def test_tools(claude: Caller) -> None:
    body = ask("Weather in Paris?", tools=[WEATHER], max_tokens=80)
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}):
        answer = await claude.one(CREATE, **body, tool_choice={"disable_parallel_tool_use": True, **choice})
        (block,) = answer.content
        assert (block.type, block.name, answer.stop_reason) == ("tool_use", "get_weather", "tool_use")
        assert block.input["city"] in ("Paris", "Zürich")
        events = await claude.events(CREATE, **body, tool_choice={"disable_parallel_tool_use": True, **choice})
        (start,) = [event for event in events if event.type == "content_block_start"]
        assert (start.content_block.type, start.content_block.name) == ("tool_use", "get_weather")
        parts = [event.delta for event in events if event.type == "content_block_delta"]
        assert {part.type for part in parts} == {"input_json_delta"}
        assert json.loads("".join(part.partial_json for part in parts)) == block.input
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "Sunny."}]}
    turns = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [result]},
    ]
    after = await claude.one(CREATE, **{**body, "messages": turns, "max_tokens": 8}, tool_choice={"type": "none"})
    assert text_of(after)
    assert input_of(after) > 20


async def test_structured_output(claude: Caller) -> None:
    class Answer(BaseModel):
        colour: Literal["red", "green"]

    parsed = await claude.one("messages.parse", **ask("Which colour?", max_tokens=40), output_format=Answer)
    assert isinstance(parsed.parsed_output, Answer)
    assert parsed.stop_reason == "end_turn"


async def test_tokens_are_counted_as_they_are_billed(claude: Caller) -> None:
    body = {**ask(), "system": "Be kind.", "tools": [WEATHER], "tool_choice": {"type": "auto"}}
    answer = await claude.one(CREATE, **body)
    asked = {name: body[name] for name in ("model", "messages", "system", "tools", "tool_choice")}
    assert (await claude.one("messages.count_tokens", **asked)).input_tokens == input_of(answer)


async def test_typed_errors(stack: Stack, claude: Caller) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
    for more in (
        {"temperature": 1.5},
        {"max_tokens": 0},
        {"messages": [{"role": "user", "content": [image]}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"messages": []},
        {"extra_body": {"no_such": 1}},
    ):
        with pytest.raises(anthropic.BadRequestError) as bad:
            await claude.one(CREATE, **ask(**more))
        body: Any = bad.value.body
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert body["error"]["message"]
        assert bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        await claude.one(CREATE, **ask(model="no-such-model"))
    with pytest.raises(anthropic.AuthenticationError):
        await Caller(claude.client.with_options(api_key="ib-wrong")).one(CREATE, **ask())
    admin = await stack.new_key(scopes=["tenant_admin"])
    with pytest.raises(anthropic.PermissionDeniedError):
        await Caller(claude.client.with_options(api_key=admin)).one(CREATE, **ask())
    limited = Caller(claude.client.with_options(api_key=await stack.new_key(limits={"requests_per_minute": 1})))
    await limited.one(CREATE, **ask(max_tokens=1))
    with pytest.raises(anthropic.RateLimitError) as limit:
        await limited.one(CREATE, **ask())
    assert limit.value.response.headers["retry-after"]
    headers = {"Idempotency-Key": f"claude-{type(claude.client).__name__}"}
    first = await claude.one(CREATE, **ask(), extra_headers=headers)
    assert await claude.one(CREATE, **ask(), extra_headers=headers) == first
    with pytest.raises(anthropic.ConflictError):
        await claude.one(CREATE, **ask(max_tokens=5), extra_headers=headers)


async def test_a_bearer_key_serves_as_well(stack: Stack) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=stack.root_url, auth_token=stack.api_key, api_key=None, max_retries=0, timeout=SECONDS
    ) as bearer:
        assert text_of(await bearer.messages.create(**ask(max_tokens=2)))

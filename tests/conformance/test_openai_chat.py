"""Chat completions by OpenAI's SDK: every parameter of the API, unary and streamed."""

import asyncio
from typing import Any, Literal

import httpx2 as httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.conformance.clients import MODEL, Caller, chat_tokens, tokens_of

CREATE = "chat.completions.create"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def ask(text: str = "Count from one to ten in words.", **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_completion_tokens": 12,
        "temperature": 0,
        **more,
    }


def text_of(answer: ChatCompletion, choice: int = 0) -> str:
    return answer.choices[choice].message.content or ""


def joined(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices if one.index == choice)


def ends(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason]


async def refused(client: openai.AsyncOpenAI, param: str, **more: Any) -> str:
    """Asserts a 400 that names ``param``; returns its code."""
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(**ask(**more))
    assert error.value.body["param"] == param
    assert error.value.body["message"]
    return error.value.body["code"]


async def test_a_streamed_answer_is_the_unary_one(sdk: Caller, http: httpx.AsyncClient) -> None:
    body = ask()
    unary: ChatCompletion = await sdk.one(CREATE, **body)
    chunks: list[ChatCompletionChunk] = await sdk.events(CREATE, **body, stream_options={"include_usage": True})
    assert joined(chunks) == text_of(unary)
    assert ends(chunks) == [unary.choices[0].finish_reason] == ["length"]
    assert {chunk.id for chunk in chunks} != {unary.id}
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (unary.object, chunks[0].object) == ("chat.completion", "chat.completion.chunk")
    assert unary.choices[0].message.role == "assistant"
    assert unary.usage is not None
    assert unary.usage.prompt_tokens == await chat_tokens(http, body["messages"])
    assert unary.usage.completion_tokens == 12
    assert unary.usage.total_tokens == unary.usage.prompt_tokens + 12
    *rest, last = chunks
    assert all(chunk.usage is None and chunk.choices for chunk in rest)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (unary.usage.prompt_tokens, 12)


async def test_continuous_usage_counts_up_in_every_chunk(client: openai.AsyncOpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.chat.completions.create(**ask(), stream=True, stream_options=options)
    usages = [chunk.usage async for chunk in stream]
    assert all(usages)
    counts = [usage.completion_tokens for usage in usages if usage]
    assert counts == sorted(counts)
    assert counts[-1] == 12


async def test_n_gives_choices_of_one_prompt(sdk: Caller) -> None:
    one = await sdk.one(CREATE, **ask())
    same = await sdk.one(CREATE, **ask(n=3))
    assert [choice.index for choice in same.choices] == [0, 1, 2]
    assert {choice.message.content for choice in same.choices} == {text_of(one)}
    assert same.usage.prompt_tokens == one.usage.prompt_tokens
    assert same.usage.completion_tokens == 36
    chunks = await sdk.events(CREATE, **ask(n=3), stream_options={"include_usage": True})
    assert [joined(chunks, choice) for choice in range(3)] == [text_of(one)] * 3
    assert ends(chunks) == ["length"] * 3
    assert chunks[-1].usage.completion_tokens == 36
    drawn = await sdk.one(CREATE, **ask(n=4, temperature=1.5, seed=1))
    assert len({choice.message.content for choice in drawn.choices}) > 1


async def test_stop_ends_the_answer_and_is_no_part_of_it(sdk: Caller) -> None:
    whole = text_of(await sdk.one(CREATE, **ask(max_completion_tokens=24)))
    stop = whole[len(whole) // 2 :][:4]
    for value in (stop, ["never said", "nor this", "or that", stop]):
        cut = await sdk.one(CREATE, **ask(max_completion_tokens=24, stop=value))
        assert text_of(cut) == whole[: whole.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        chunks = await sdk.events(CREATE, **ask(max_completion_tokens=24, stop=value))
        assert joined(chunks) == text_of(cut)
        assert ends(chunks) == ["stop"]


async def test_a_seed_draws_the_same_again_and_temperature_and_top_p_have_their_effect(
    client: openai.AsyncOpenAI,
) -> None:
    async def drawn(**more: Any) -> str:
        return text_of(await client.chat.completions.create(**ask("Tell a story.", **more)))

    first = await drawn(temperature=1, seed=7)
    assert await drawn(temperature=1, seed=7) == first
    assert len({await drawn(temperature=1.5, seed=seed) for seed in range(4)}) > 1
    greedy = await drawn()
    assert {await drawn(temperature=1.5, top_p=0.000001, seed=seed) for seed in range(3)} == {greedy}


async def test_both_names_of_the_length_are_counted_in_tokens(client: openai.AsyncOpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body = {**ask(), name: 5}
        if name == "max_tokens":
            del body["max_completion_tokens"]
        answer = await client.chat.completions.create(**body)
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"
    await refused(client, "max_tokens", max_tokens=5)
    await refused(client, "max_completion_tokens", max_completion_tokens=0)


async def test_logit_bias_forces_and_forbids_a_token(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    (banana,) = await tokens_of(http, " banana")
    forced = await client.chat.completions.create(**ask(logit_bias={str(banana): 100}, max_completion_tokens=4))
    assert text_of(forced) == " banana" * 4
    first = await client.chat.completions.create(**ask(logprobs=True, max_completion_tokens=1))
    (likely,) = await tokens_of(http, first.choices[0].logprobs.content[0].token)
    other = await client.chat.completions.create(**ask(logit_bias={str(likely): -100}, max_completion_tokens=1))
    assert text_of(other) != text_of(first)
    assert await refused(client, "logit_bias", logit_bias={"999999999": 1})
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(**ask(logit_bias={str(banana): 101}))
    assert error.value.body["param"].startswith("logit_bias")


async def test_penalties_keep_a_token_from_coming_again(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    """Two tokens lifted far above all others, a little apart: a penalty of 2 decides which of them comes next."""
    (one,), (two,) = await tokens_of(http, " banana"), await tokens_of(http, " apple")

    async def said(first: int, second: int, **penalty: float) -> str:
        bias = {str(one): first, str(two): second}
        return text_of(await client.chat.completions.create(**ask(logit_bias=bias, max_completion_tokens=8, **penalty)))

    # What the model itself thinks of the two moves with each token, so the pair is lifted until it matters little.
    for penalty in ("frequency_penalty", "presence_penalty"):
        lifts = [(100, 100 - less) for less in range(0, 12, 2)]
        plain = [await said(*lift) for lift in lifts]
        penalised = [await said(*lift, **{penalty: 2.0}) for lift in lifts]
        assert plain != penalised
        assert sum(text.count(" banana") for text in penalised) < sum(text.count(" banana") for text in plain)


async def test_logprobs_tell_of_every_token(sdk: Caller) -> None:
    answer = await sdk.one(CREATE, **ask(logprobs=True, top_logprobs=3))
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 12
    assert b"".join(bytes(one.bytes) for one in content).decode() == text_of(answer)
    for one in content:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 3
        assert [other.logprob for other in one.top_logprobs] == sorted(
            (other.logprob for other in one.top_logprobs), reverse=True
        )
        assert one.top_logprobs[0].token == one.token  # the greedy choice is the likeliest
        assert one.top_logprobs[0].logprob == pytest.approx(one.logprob, abs=1e-4)
    chunks = await sdk.events(CREATE, **ask(logprobs=True, top_logprobs=3))
    streamed = [
        one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in content], abs=1e-3)
    alone = await sdk.one(CREATE, **ask(logprobs=True))
    assert all(one.top_logprobs == [] for one in alone.choices[0].logprobs.content)
    assert (await sdk.one(CREATE, **ask())).choices[0].logprobs is None


async def test_service_tiers_are_served_and_named(client: openai.AsyncOpenAI) -> None:
    for tier, said in (("auto", "default"), ("default", "default"), ("flex", "flex"), ("priority", "priority")):
        answer = await client.chat.completions.create(**ask(service_tier=tier, max_completion_tokens=2))
        assert answer.service_tier == said
        stream = await client.chat.completions.create(**ask(service_tier=tier, max_completion_tokens=2), stream=True)
        assert {chunk.service_tier for chunk in [one async for one in stream]} == {said}
    await refused(client, "service_tier", service_tier="immediately")


async def test_labels_are_taken(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        **ask(
            max_completion_tokens=2, metadata={"ticket": "4711"}, user="u-1", safety_identifier="s-1",
            prompt_cache_key="chat", parallel_tool_calls=True,
        )
    )  # fmt: skip
    assert text_of(answer)
    await refused(client, "metadata", metadata={f"key{at}": "v" for at in range(17)})


async def test_a_stored_completion_is_found_and_deleted(sdk: Caller) -> None:
    answer = await sdk.one(CREATE, **ask(store=True, metadata={"a": "b"}))
    again = await sdk.one("chat.completions.retrieve", answer.id)
    assert (again.id, text_of(again), again.usage) == (answer.id, text_of(answer), answer.usage)
    messages = await sdk.listed("chat.completions.messages.list", answer.id)
    assert [(one.role, one.content) for one in messages] == [("user", ask()["messages"][0]["content"])]
    assert (await sdk.one("chat.completions.delete", answer.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await sdk.one("chat.completions.retrieve", answer.id)
    unstored = await sdk.one(CREATE, **ask())
    with pytest.raises(openai.NotFoundError):
        await sdk.one("chat.completions.retrieve", unstored.id)


async def test_messages_of_every_kind_reach_the_model(client: openai.AsyncOpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    answer = await client.chat.completions.create(
        model=MODEL,
        max_completion_tokens=4,
        messages=[
            {"role": "developer", "content": "Be short."},
            {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "What time is it?"}], "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Please."},
        ],
    )
    assert answer.usage.completion_tokens <= 4
    assert text_of(answer)


async def test_the_parts_of_a_message_are_one_text(client: openai.AsyncOpenAI) -> None:
    words = ["Count from one ", "to ten", " in words."]
    parts = [{"type": "text", "text": word} for word in words]
    apart, whole = await asyncio.gather(
        client.chat.completions.create(**ask(messages=[{"role": "user", "content": parts}])),
        client.chat.completions.create(**ask("".join(words))),
    )
    assert text_of(apart) == text_of(whole)


async def test_what_cannot_be_served_is_refused_by_its_name(client: openai.AsyncOpenAI) -> None:
    for param, value in {
        "reasoning_effort": "high",
        "modalities": ["text", "audio"],
        "audio": {"voice": "alloy", "format": "mp3"},
        "prediction": {"type": "content", "content": "one"},
        "web_search_options": {},
        "verbosity": "low",
        "functions": [{"name": "f", "parameters": {}}],
        "function_call": {"name": "f"},
    }.items():
        assert await refused(client, param, **{param: value}) == "unsupported_parameter"
    for param, value in {"temperature": 2.5, "top_p": -1, "n": 0, "presence_penalty": 3, "frequency_penalty": -3,
                         "top_logprobs": 21, "seed": "one", "logprobs": "yes"}.items():  # fmt: skip
        await refused(client, param, **{param: value})
    await refused(client, "top_logprobs", top_logprobs=2)  # without logprobs
    await refused(client, "stream_options", stream_options={"include_usage": True})  # without stream
    assert await refused(client, "no_such", extra_body={"no_such": 1}) == "unknown_parameter"
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(**ask(stop=["a", "b", "c", "d", "e"]))
    assert error.value.body["param"].startswith("stop")
    image = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}]
    with pytest.raises(openai.BadRequestError) as error:
        await client.chat.completions.create(**ask(messages=image))
    assert error.value.body["param"].startswith("messages[0].content[1]")


async def test_a_prompt_longer_than_the_context_is_refused(client: openai.AsyncOpenAI) -> None:
    assert await refused(client, "messages", text="word " * 20_000) == "context_length_exceeded"


class Weather(BaseModel):
    sky: Literal["clear", "cloudy"]
    windy: bool
    degrees: Literal[10, 20, 30]


async def test_response_formats(sdk: Caller) -> None:
    text = await sdk.one(CREATE, **ask(response_format={"type": "text"}))
    assert text_of(text) == text_of(await sdk.one(CREATE, **ask()))
    answer = await sdk.one(
        CREATE, **ask("How is the weather? As JSON.", response_format={"type": "json_object"}, stop=["}"])
    )
    assert text_of(answer).startswith("{")  # the model itself would begin with prose
    body = ask("How is the weather?", max_completion_tokens=60)
    parsed = await sdk.one("chat.completions.parse", **body, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    assert parsed.choices[0].finish_reason == "stop"
    events, final = await sdk.helper("chat.completions.stream", **body, response_format=Weather)
    assert final.choices[0].message.parsed == parsed.choices[0].message.parsed
    assert {event.type for event in events} >= {"chunk", "content.delta", "content.done"}
    with pytest.raises(openai.LengthFinishReasonError):
        await sdk.one("chat.completions.parse", **{**body, "max_completion_tokens": 3}, response_format=Weather)

"""All of the chat API with OpenAI's SDK, over HTTP and a real broker: choices, tools, formats, logprobs, the store."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from inferbus.bus.v1.frame_pb2 import Alternative, DeltaLogprobs, Frame, Open, TokenLogprob
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, ToolMode
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_contracts.ids import choice_of, uuid_text
from inferbus_runtime import clock
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

PATH = "/v1/chat/completions"
ALL = ["chat", "tools", "structured_output", "logprobs", "logit_bias", "reasoning"]
MESSAGES: Any = [{"role": "user", "content": "hi"}]
CALL = ["Let me see.\n", "<tool_", 'call>\n{"name": "Weather", "arg', 'uments": {"city": "Ås"', "}}\n</tool_call>"]


class Weather(BaseModel):
    """What is the weather?"""

    city: str


@pytest.fixture
def client(edge: Any, rig: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)


@pytest.fixture
async def able(worker: Any, model: str, http: aiohttp.ClientSession, rig: Any) -> str:
    """A model that can do everything."""
    await worker.models.put(model, ModelRecord(name=model, revision="rev-1", capabilities=ALL))
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    body = rig.chat(model, logprobs=True) | {"messages": [image]}
    async with asyncio.timeout(5):
        # Both are refused: the second one once the edge knows that the first one is not.
        while (await (await http.post(PATH, json=body)).json())["error"]["param"] == "logprobs":
            await asyncio.sleep(0.01)
    return model


def step(worker: Any, request: GenerateRequest, index: int, text: str) -> None:
    """A frame as a worker makes it: the first one opens the request, log-probabilities if they are wanted."""
    frame = Frame(
        edge=request.edge, time_us=clock.now_us(), contexts=[_context(request)], request_ids=request.request_id,
        first_index=[index], gap_us=[1], text_size=[len(text.encode())], token_id=[1], text=text.encode(),
    )  # fmt: skip
    if index == 0:
        frame.opens.append(Open(request_id=request.request_id, reply=request.reply))
    if request.sampling.HasField("logprobs"):
        top = [Alternative(text=b"x", logprob=-2.0)] * request.sampling.logprobs
        token = TokenLogprob(text=text.encode(), logprob=-0.5, top=top)
        frame.logprobs.append(DeltaLogprobs(delta=0, tokens=[token]))
    worker.frames.publish(frame)


def _context(request: GenerateRequest) -> RequestContext:
    context = RequestContext()
    context.CopyFrom(request.context)
    context.revision = "rev-1"
    return context


async def answer(worker: Any, model: str, texts: list[str]) -> GenerateRequest:
    request: GenerateRequest = await worker.take(model)
    for index, text in enumerate(texts):
        step(worker, request, index, text)
    worker.close(request, len(texts))
    return request


async def test_choices(client: AsyncOpenAI, worker: Any, able: str) -> None:
    for stream in (False, True):
        call = asyncio.create_task(
            client.chat.completions.create(model=able, messages=MESSAGES, n=3, seed=7, stream=stream)
        )
        requests = sorted([await worker.take(able) for _ in range(3)], key=lambda one: one.request_id)
        assert [choice_of(one.request_id) for one in requests] == [0, 1, 2]
        assert [one.sampling.seed for one in requests] == [7, 8, 9]
        for index in range(2):
            for request in requests:
                step(worker, request, index, f"{choice_of(request.request_id)}{index} ")
        for request in requests:
            worker.close(request, 2)
        texts = ["", "", ""]
        if stream:
            async for chunk in await call:
                for one in chunk.choices:
                    texts[one.index] += one.delta.content or ""
        else:
            found = await call
            texts = [one.message.content for one in found.choices]
            assert found.usage.completion_tokens == 6
        assert texts == ["00 01 ", "10 11 ", "20 21 "]


async def test_tools(client: AsyncOpenAI, worker: Any, able: str) -> None:
    tool = openai.pydantic_function_tool(Weather)
    answering = asyncio.create_task(answer(worker, able, CALL))
    parsed = await client.chat.completions.parse(model=able, messages=MESSAGES, tools=[tool])
    request = await answering
    assert request.chat.tool_mode == ToolMode.TOOL_MODE_AUTO
    assert json.loads(request.chat.tools[0].parameters)["required"] == ["city"]
    choice = parsed.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.\n")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Ås")
    # The SDK's own message goes back with the tool's answer.
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    answering = asyncio.create_task(answer(worker, able, ["It rains."]))
    messages: Any = [*MESSAGES, choice.message, result]
    await client.chat.completions.parse(model=able, messages=messages, tools=[tool])
    told = (await answering).chat.messages
    assert (told[1].tool_calls[0].id, told[1].tool_calls[0].arguments) == (call.id, '{"city": "Ås"}')
    assert told[2].tool_call_id == call.id


async def test_streamed_tools(client: AsyncOpenAI, worker: Any, able: str) -> None:
    answering = asyncio.create_task(answer(worker, able, CALL))
    async with client.chat.completions.stream(
        model=able, messages=MESSAGES, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    request = await answering
    assert (request.chat.tool_mode, request.chat.parallel_tool_calls) == (ToolMode.TOOL_MODE_REQUIRED, False)
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= set(kinds)
    message = final.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Ås")


async def test_structured_output(client: AsyncOpenAI, worker: Any, able: str, edge: Any, rig: Any) -> None:
    answering = asyncio.create_task(answer(worker, able, ['{"city"', ': "Ås"}']))
    parsed = await client.chat.completions.parse(model=able, messages=MESSAGES, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Ås")
    constraint = (await answering).constraint
    assert json.loads(constraint.json_schema)["properties"]["city"]["type"] == "string"

    answering = asyncio.create_task(answer(worker, able, ["{}"]))
    sync = OpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)
    await asyncio.to_thread(
        lambda: sync.chat.completions.create(model=able, messages=MESSAGES, response_format={"type": "json_object"})
    )
    assert (await answering).constraint.json_object

    bad: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=able, messages=MESSAGES, response_format=bad)
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format.json_schema.schema")


async def test_logprobs(client: AsyncOpenAI, worker: Any, able: str) -> None:
    answering = asyncio.create_task(answer(worker, able, ["a", "b"]))
    found = await client.chat.completions.create(model=able, messages=MESSAGES, logprobs=True, top_logprobs=2)
    await answering
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in logprobs.content or ()] == [
        ("a", -0.5, 2), ("b", -0.5, 2),
    ]  # fmt: skip
    answering = asyncio.create_task(answer(worker, able, ["a", "b"]))
    stream = await client.chat.completions.create(model=able, messages=MESSAGES, logprobs=True, stream=True)
    tokens = [
        one.token
        async for chunk in stream
        for choice in chunk.choices
        for one in (choice.logprobs.content or () if choice.logprobs else ())
    ]
    await answering
    assert tokens == ["a", "b"]


async def test_service_tier_and_usage_all_along(client: AsyncOpenAI, worker: Any, able: str) -> None:
    answering = asyncio.create_task(answer(worker, able, ["a", "b"]))
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.chat.completions.create(
        model=able, messages=MESSAGES, service_tier="flex", stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    assert (await answering).priority_class == 2
    assert {chunk.service_tier for chunk in chunks} == {"flex"}
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [0, 1, 2, 2, 2]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         "messages[0].content[0]"),
    ],
)  # fmt: skip
async def test_what_the_model_cannot_do_is_refused_by_name(
    client: AsyncOpenAI, model: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": model, "messages": MESSAGES, **fields})
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


async def test_a_stream_with_calls_is_gone_on_with(http: Any, worker: Any, able: str, rig: Any) -> None:
    """The rest after any event is what the undisturbed stream had there."""
    tool = {"type": "function", "function": {"name": "Weather"}}
    answering = asyncio.create_task(answer(worker, able, CALL))
    response = await http.post(PATH, json=rig.chat(able, stream=True, tools=[tool], logprobs=True))
    whole = await response.read()
    request = await answering
    blocks = whole.split(b"\n\n")[:-1]
    assert len(blocks) > 6
    for number in (0, 1, 4, len(blocks) - 1):
        headers = {"Last-Event-ID": f"{uuid_text(request.request_id)}:{number}"}
        rest = await http.post(PATH, json=rig.chat(able, stream=True), headers=headers)
        assert rest.status == 200
        assert (await rest.read()).split(b"\n\n")[:-1] == blocks[number:]


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_stored_completions(client: AsyncOpenAI, worker: Any, able: str, stream: bool) -> None:
    answering = asyncio.create_task(answer(worker, able, ["sto", "red"]))
    parts: Any = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages: Any = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    made: Any = await client.chat.completions.create(
        model=able, messages=messages, store=True, metadata={"k": "v"}, stream=stream
    )
    if stream:
        made = [chunk async for chunk in made][-1]
    await answering
    found = await _retrieved(client, made.id)
    assert found.choices[0].message.content == "stored"
    assert (found.id, found.metadata) == (made.id, {"k": "v"})
    asked = [one async for one in client.chat.completions.messages.list(made.id, limit=1)]
    assert [(one.id, one.role, one.content) for one in asked] == [
        (f"{made.id}-0", "system", "s"), (f"{made.id}-1", "user", "hi"),
    ]  # fmt: skip
    assert asked[1].content_parts is not None
    assert (await client.chat.completions.delete(made.id)).deleted
    for call in (
        client.chat.completions.retrieve,
        client.chat.completions.delete,
        client.chat.completions.messages.list,
    ):
        with pytest.raises(openai.NotFoundError):
            await call(made.id)


async def _retrieved(client: AsyncOpenAI, name: str) -> Any:
    """Stored when it has ended, which is a moment after the client has it."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await client.chat.completions.retrieve(name)
            except openai.NotFoundError:
                await asyncio.sleep(0.02)


async def test_what_was_not_stored_is_not_found(client: AsyncOpenAI, worker: Any, able: str) -> None:
    answering = asyncio.create_task(answer(worker, able, ["x"]))
    made = await client.chat.completions.create(model=able, messages=MESSAGES)
    await answering
    for name in (made.id, "chatcmpl-1", "resp_" + made.id, "chatcmpl-" + "g" * 32):
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.retrieve(name)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.list()
    assert caught.value.status_code == 405

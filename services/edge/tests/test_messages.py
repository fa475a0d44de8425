"""The Messages API end to end: the Anthropic SDK, a real edge on a real broker, frames from the test."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import anthropic
import pytest
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, ToolMode
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_contracts.ids import uuid_text
from pydantic import BaseModel

PATH = "/v1/messages"
HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = ["I look.", '<tool_call>\n{"name": "wea', 'ther", "arguments": {"ci', 'ty": "Köln"}}\n</tool_call>']


@pytest_asyncio.fixture
async def able(worker: Any, http: Any, model: str) -> str:
    """A model that can do what these tests ask for."""
    capabilities = ["chat", "tools", "structured_output", "reasoning"]
    await worker.models.put(model, ModelRecord(name=model, revision="rev-1", capabilities=capabilities))
    body = {"model": model, "max_tokens": 1, "messages": HI, "tools": [WEATHER], "thinking": {"type": "adaptive"}}
    async with asyncio.timeout(30):  # the edge's own watch brings it there
        while True:
            call = asyncio.create_task(http.post(PATH, json=body))
            taken = asyncio.create_task(worker.queues[model].get())
            await asyncio.wait((call, taken), return_when=asyncio.FIRST_COMPLETED)
            if taken.done():
                worker.close(taken.result(), 0)
                assert (await call).status == 200
                return model
            assert call.result().status == 400
            taken.cancel()
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def client(edge: Any, rig: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=rig.API_KEY, max_retries=0) as one:
        yield one


async def beside(worker: Any, model: str, texts: list[str], call: Callable[[], Any]) -> tuple[Any, GenerateRequest]:
    """What ``call``, in a thread of its own, comes to."""
    thread = asyncio.create_task(asyncio.to_thread(call))
    request = await worker.answer(model, texts)
    return await thread, request


async def test_a_message(client: anthropic.AsyncAnthropic, worker: Any, model: str) -> None:
    call = asyncio.create_task(
        client.messages.create(
            model=model,
            max_tokens=20,
            system="Be kind.",
            messages=HI,
            stop_sequences=["END"],
            extra_body={"temperature": 0.5, "top_k": 3},  # older SDKs have names for them
        )
    )
    request = await worker.answer(model, ["Hel", "lo"])
    message = await call
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert message.id == f"msg_{request.request_id.hex()}"
    assert (message.model, message.stop_reason, message.stop_sequence) == (model, "end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 2, 2)
    assert message._request_id == uuid_text(request.request_id)
    assert [(one.role, one.content) for one in request.chat.messages] == [("system", "Be kind."), ("user", "hi")]
    sampling = request.sampling
    assert (sampling.max_tokens, list(sampling.stop), sampling.temperature, sampling.top_k) == (20, ["END"], 0.5, 3)
    assert (request.context.tenant_id, request.context.project_id) == ("acme", "web")


async def test_a_stream_of_text(client: anthropic.AsyncAnthropic, worker: Any, model: str) -> None:
    async def stream() -> tuple[str, Any]:
        async with client.messages.stream(model=model, max_tokens=20, messages=HI) as events:
            text = "".join([part async for part in events.text_stream])
            return text, await events.get_final_message()

    call = asyncio.create_task(stream())
    await worker.answer(model, ["a", "b\u2028", "\n\nc"])
    text, message = await call
    assert text == "ab\u2028\n\nc"
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 3, 3)


async def test_raw_events_have_names_and_numbers(http: aiohttp.ClientSession, worker: Any, model: str) -> None:
    body = {"model": model, "max_tokens": 5, "messages": HI, "stream": True}
    call = asyncio.create_task(http.post(PATH, json=body))
    request = await worker.answer(model, ["a", "b"])
    response = await call
    stream = (await response.read()).decode()
    blocks = [dict(line.split(": ", 1) for line in one.split("\n")) for one in stream.split("\n\n") if one]
    names = ["message_start", "content_block_start", *["content_block_delta"] * 2, "content_block_stop"]
    assert [one["event"] for one in blocks] == [*names, "message_delta", "message_stop"]
    assert [one["id"] for one in blocks] == [f"{uuid_text(request.request_id)}:{at}" for at in range(1, 8)]
    assert all(json.loads(one["data"])["type"] == one["event"] for one in blocks)


async def test_tools_unary_and_the_way_back(client: anthropic.AsyncAnthropic, worker: Any, able: str) -> None:
    call = asyncio.create_task(
        client.messages.create(model=able, max_tokens=50, messages=HI, tools=[WEATHER], tool_choice={"type": "any"})
    )
    request = await worker.answer(able, CALL)
    assert request.chat.tool_mode == ToolMode.TOOL_MODE_REQUIRED
    message = await call
    assert message.stop_reason == "tool_use"
    text, used = message.content
    assert (text.type, used.type) == ("text", "tool_use")
    assert isinstance(used, anthropic.types.ToolUseBlock)
    assert (used.name, used.input) == ("weather", {"city": "Köln"})
    # What the SDK makes of an answer goes back as it is.
    turns: Any = [
        *HI, {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "rain"}]},
    ]  # fmt: skip
    call = asyncio.create_task(client.messages.create(model=able, max_tokens=5, messages=turns, tools=[WEATHER]))
    request = await worker.answer(able, ["It rains."])
    assert (await call).content[0].to_dict()["text"] == "It rains."
    said = request.chat.messages
    assert [(one.role, one.content) for one in said] == [("user", "hi"), ("assistant", "I look."), ("tool", "rain")]
    assert said[1].tool_calls[0].id == said[2].tool_call_id == used.id


async def test_tools_streamed(client: anthropic.AsyncAnthropic, worker: Any, able: str) -> None:
    async def stream() -> tuple[str, Any]:
        async with client.messages.stream(model=able, max_tokens=50, messages=HI, tools=[WEATHER]) as events:
            parts = [one.partial_json async for one in events if one.type == "input_json"]
            return "".join(parts), await events.get_final_message()

    call = asyncio.create_task(stream())
    await worker.answer(able, CALL)
    parts, message = await call
    assert json.loads(parts) == {"city": "Köln"}
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].to_dict()["input"] == {"city": "Köln"}
    assert message.stop_reason == "tool_use"


async def test_thinking(client: anthropic.AsyncAnthropic, worker: Any, able: str) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    call = asyncio.create_task(client.messages.create(model=able, max_tokens=2000, messages=HI, thinking=thinking))
    request = await worker.answer(able, ["<think>", "hm", "</think>\n\n", "Hi!"])
    message = await call
    assert request.chat.reasoning_effort == "medium"
    assert [block.type for block in message.content] == ["thinking", "text"]
    turns: Any = [*HI, {"role": "assistant", "content": message.content}, *HI]
    call = asyncio.create_task(client.messages.create(model=able, max_tokens=5, messages=turns))
    request = await worker.answer(able, ["ok"])
    await call
    assert "hm" in request.chat.messages[1].content


class Weather(BaseModel):
    city: str
    degrees: int


async def test_structured_output_by_the_sdks_own_parse(
    client: anthropic.AsyncAnthropic, worker: Any, able: str
) -> None:
    call = asyncio.create_task(client.messages.parse(model=able, max_tokens=50, messages=HI, output_format=Weather))
    request = await worker.answer(able, ['{"city": "Köln", ', '"degrees": 7}'])
    assert (await call).parsed_output == Weather(city="Köln", degrees=7)
    assert set(json.loads(request.constraint.json_schema)["properties"]) == {"city", "degrees"}


async def test_the_synchronous_client(edge: Any, rig: Any, worker: Any, model: str) -> None:
    with anthropic.Anthropic(base_url=edge.url, auth_token=rig.API_KEY, api_key=None, max_retries=0) as client:
        message, _ = await beside(
            worker, model, ["a", "b"], lambda: client.messages.create(model=model, max_tokens=5, messages=HI)
        )
        assert message.content[0].text == "ab"

        def stream() -> str:
            with client.messages.stream(model=model, max_tokens=5, messages=HI) as events:
                return events.get_final_text()

        text, _ = await beside(worker, model, ["c", "d"], stream)
        assert text == "cd"


async def test_the_beta_client(client: anthropic.AsyncAnthropic, worker: Any, model: str) -> None:
    """Its path has a query, and its headers ask for betas: neither changes anything."""
    call = asyncio.create_task(
        client.beta.messages.create(model=model, max_tokens=5, messages=HI, betas=["token-efficient-tools-2025-02-19"])
    )
    await worker.answer(model, ["a"])
    assert (await call).content[0].to_dict()["text"] == "a"


async def test_how_it_ended(client: anthropic.AsyncAnthropic, worker: Any, model: str) -> None:
    for tokens, reason in ((2, "max_tokens"), (9, "model_context_window_exceeded")):
        call = asyncio.create_task(client.messages.create(model=model, max_tokens=tokens, messages=HI))
        request = await worker.take(model)
        worker.say(request, ["a", "b"])
        worker.close(request, 2, reason=FinishReason.FINISH_REASON_LENGTH)
        assert (await call).stop_reason == reason


# --- errors -----------------------------------------------------------------------------------------------------------


def shown(error: anthropic.APIStatusError) -> tuple[Any, Any, Any]:
    body: Any = error.body
    assert body["type"] == "error"
    return error.type, error.error_code, body["error"]["details"].get("param")


async def test_bad_requests(client: anthropic.AsyncAnthropic, model: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as error:
        await client.messages.create(model=model, max_tokens=5, messages=HI, extra_body={"seed": 1})
    assert shown(error.value) == ("invalid_request_error", "unknown_parameter", "seed")
    # What the model cannot do is refused by the name of what asked for it.
    for fields, param in (
        ({"tools": [WEATHER]}, "tools"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
        ]}]}, "messages[0].content[0]"),
    ):  # fmt: skip
        asked: Any = {"messages": HI, **fields}
        with pytest.raises(anthropic.BadRequestError) as error:
            await client.messages.create(model=model, max_tokens=5, **asked)
        assert shown(error.value) == ("invalid_request_error", "unsupported_parameter", param)


async def test_typed_errors_before_the_answer(client: anthropic.AsyncAnthropic, edge: Any, model: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as error:
        await client.messages.create(model="no-such-model", max_tokens=5, messages=HI)
    assert shown(error.value)[:2] == ("not_found_error", "model_not_found")
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await stranger.messages.create(model=model, max_tokens=5, messages=HI)
        assert shown(refused.value)[:2] == ("authentication_error", "invalid_api_key")
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.count_tokens(model=model, messages=HI)


@pytest.mark.parametrize(
    ("error_class", "expected", "kind"),
    [
        (ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, anthropic.BadRequestError, "invalid_request_error"),
        (ErrorClass.ERROR_CLASS_PERMISSION_DENIED, anthropic.PermissionDeniedError, "permission_error"),
        (ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, anthropic.RateLimitError, "rate_limit_error"),
        (ErrorClass.ERROR_CLASS_INTERNAL, anthropic.InternalServerError, "api_error"),
        (ErrorClass.ERROR_CLASS_UNAVAILABLE, anthropic.InternalServerError, "overloaded_error"),
        (ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, anthropic.InternalServerError, "timeout_error"),
    ],
)
async def test_typed_errors_of_a_generation(
    client: anthropic.AsyncAnthropic, worker: Any, model: str, error_class: Any, expected: Any, kind: str
) -> None:
    for stream in (False, True):
        call = asyncio.create_task(client.messages.create(model=model, max_tokens=5, messages=HI, stream=stream))
        request = await worker.take(model)
        failure = Error(error_class=error_class, reason="some_reason", message="Do this.")
        worker.close(request, 0, reason=FinishReason.FINISH_REASON_ERROR, error=failure)
        with pytest.raises(expected) as error:
            await call
        assert shown(error.value)[:2] == (kind, "some_reason")


async def test_a_bad_end_in_the_middle_of_a_stream(client: anthropic.AsyncAnthropic, worker: Any, model: str) -> None:
    seen = []

    async def stream() -> None:
        async for one in await client.messages.create(model=model, max_tokens=5, messages=HI, stream=True):
            seen.append(one.type)

    call = asyncio.create_task(stream())
    request = await worker.take(model)
    worker.say(request, ["a"])
    failure = Error(error_class=ErrorClass.ERROR_CLASS_UNAVAILABLE, reason="worker_lost", message="Retry.")
    worker.close(request, 1, reason=FinishReason.FINISH_REASON_ERROR, error=failure)
    with pytest.raises(anthropic.APIStatusError) as error:
        await call
    assert shown(error.value)[:2] == ("overloaded_error", "worker_lost")
    assert seen == ["message_start", "content_block_start", "content_block_delta"]


# --- resume -----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_resumed_by_its_last_event(http: aiohttp.ClientSession, worker: Any, able: str) -> None:
    body = {"model": able, "max_tokens": 50, "messages": HI, "tools": [WEATHER], "stream": True}
    call = asyncio.create_task(http.post(PATH, json=body, headers={"x-inferbus-hold": "30"}))
    request = await worker.take(able)
    worker.say(request, CALL[:3])
    response = await call
    first = b""
    async with asyncio.timeout(30):
        while b"input_json_delta" not in first:
            first += await response.content.readany()
    response.close()
    whole = first[: first.rindex(b"\n\n") + 2]
    last = [line for line in whole.decode().split("\n") if line.startswith("id: ")][-1].removeprefix("id: ")
    again = await http.post(PATH, headers={"Last-Event-ID": last})
    worker.say(request, CALL[3:], first_index=3)
    worker.close(request, 4)
    rest = (await again.read()).decode()
    blocks = [dict(line.split(": ", 1) for line in one.split("\n")) for one in (whole.decode() + rest).split("\n\n")
              if one and not one.startswith(":")]  # fmt: skip
    assert [int(one["id"].rpartition(":")[2]) for one in blocks] == list(range(1, len(blocks) + 1))
    data = [json.loads(one["data"]) for one in blocks]
    parts = [one["delta"]["partial_json"] for one in data if one.get("delta", {}).get("type") == "input_json_delta"]
    assert json.loads("".join(parts)) == {"city": "Köln"}
    assert data[-1] == {"type": "message_stop"}

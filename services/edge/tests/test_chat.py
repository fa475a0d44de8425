"""Chat completions end to end: real HTTP, a real broker, frames from the test."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_contracts.ids import uuid_text

PATH = "/v1/chat/completions"


def events(stream: bytes) -> list[tuple[str | None, Any]]:
    """(id, parsed data) of each event; ``[DONE]`` as text."""
    found = []
    for block in stream.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("id"), data if data == "[DONE]" else json.loads(data)))
    return found


def text_of(stream: bytes) -> str:
    chunks = [data for _, data in events(stream) if data != "[DONE]" and data.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


async def read(response: aiohttp.ClientResponse) -> bytes:
    assert response.status == 200, await response.text()
    return await response.read()


async def test_unary(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, max_tokens=3)))
    request = await worker.answer(model, ["He", 'l"l\n', "ö"])
    response = await call
    body = json.loads(await read(response))
    assert body["choices"][0]["message"] == {"role": "assistant", "content": 'Hel"l\nö', "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["id"] == f"chatcmpl-{request.request_id.hex()}"
    assert body["system_fingerprint"] == "rev-1"
    assert body["usage"]["total_tokens"] == 8
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert response.headers["x-request-id"] == uuid_text(request.request_id)
    assert request.sampling.max_tokens == 3
    assert (request.context.tenant_id, request.context.project_id) == ("acme", "web")


async def test_stream(http: Any, worker: Any, model: str, rig: Any) -> None:
    options = {"include_usage": True}
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True, stream_options=options)))
    request = await worker.answer(model, ["a", "b\u2028", "\n\nc"])
    response = await call
    stream = await read(response)
    found = events(stream)
    assert text_of(stream) == "ab\u2028\n\nc"
    assert found[-1][1] == "[DONE]"
    identity = uuid_text(request.request_id)
    assert [one for one, _ in found] == [f"{identity}:{number}" for number in range(1, 8)]
    assert found[0][1]["choices"][0]["delta"]["role"] == "assistant"
    assert found[-3][1]["choices"][0]["finish_reason"] == "stop"
    assert found[-2][1]["usage"]["completion_tokens"] == 3
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == identity


async def test_the_openai_sdk(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)
    texts = ["Hello", " world", "!"]
    messages: Any = [{"role": "user", "content": "hi"}]

    call = asyncio.create_task(client.chat.completions.create(model=model, messages=messages))
    await worker.answer(model, texts)
    answer = await call
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3

    answering = asyncio.create_task(worker.answer(model, texts))
    stream = await client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    await answering
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello world!"
    assert chunks[-1].usage is not None
    assert model in [one.id async for one in client.models.list()]
    assert (await client.models.retrieve(model)).owned_by == "acme"

    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nothing", messages=messages)
    assert caught.value.code == "model_not_found"
    await client.close()


async def test_a_stream_that_fails_half_way_raises_in_the_sdk(edge: Any, worker: Any, model: str, rig: Any) -> None:
    client = openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)
    call = asyncio.create_task(
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], stream=True)
    )
    request = await worker.take(model)
    worker.say(request, ["a"])
    error = Error(error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="engine_died", message="Try again.")
    worker.close(request, 1, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    with pytest.raises(openai.APIError, match="Try again"):
        async for _ in await call:
            pass
    await client.close()


async def test_an_error_before_the_first_token_has_its_own_status(http: Any, worker: Any, model: str, rig: Any) -> None:
    for stream in (False, True):
        call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=stream)))
        request = await worker.take(model)
        error = Error(error_class=ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, reason="queue_full", message="Later.")
        error.retry_after.FromSeconds(7)
        worker.close(request, 0, attempt=0, reason=FinishReason.FINISH_REASON_ERROR, error=error)
        response = await call
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
        assert (await response.json())["error"] == {
            "message": "Later.", "type": "rate_limit_error", "param": None, "code": "queue_full",
        }  # fmt: skip


async def test_an_error_after_the_first_token_is_an_event_and_the_end(
    http: Any, worker: Any, model: str, rig: Any
) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.say(request, ["a", "b"])
    error = Error(error_class=ErrorClass.ERROR_CLASS_UNAVAILABLE, reason="worker_lost", message="Gone.")
    worker.close(request, 2, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    found = events(await read(await call))
    assert found[-1] == (
        None,
        {"error": {"message": "Gone.", "type": "server_error", "param": None, "code": "worker_lost"}},
    )


async def test_no_output_at_all_is_a_good_answer(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model)))
    await worker.answer(model, [])
    assert json.loads(await read(await call))["choices"][0]["message"]["content"] == ""
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    await worker.answer(model, [])
    found = events(await read(await call))
    assert [data["choices"][0]["finish_reason"] for _, data in found[:-1]] == [None, "stop"]


async def test_repeated_and_void_deltas_are_dropped(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.say(request, ["a", "b"])
    worker.step((request, 0, "a"))  # a duplicate
    worker.step((request, 1, "X"), attempt=2)  # attempt 2 has not seen that b was delivered
    worker.step((request, 2, "c"), attempt=2, revision="rev-2")
    worker.step((request, 3, "Z"), attempt=1)  # a zombie
    worker.close(request, 9, attempt=1)  # the zombie's end is void as well
    worker.step((request, 3, "d"), attempt=2)
    worker.close(request, 4, attempt=2)
    stream = await read(await call)
    assert text_of(stream) == "abcd"
    assert events(stream)[-1][1] == "[DONE]"


@pytest.mark.parametrize("lost", ["a delta", "the last delta"])
async def test_a_gap_ends_the_stream_with_an_error(http: Any, worker: Any, model: str, rig: Any, lost: str) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.say(request, ["a"])
    if lost == "a delta":
        worker.step((request, 2, "c"))
        assert (await worker.cancel_of(request))[1] == "token_gap"
    else:
        worker.close(request, 2)
    assert events(await read(await call))[-1][1]["error"]["code"] == "token_gap"


async def test_several_tokens_in_one_delta(http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    request = await worker.take(model)
    worker.step((request, 0, "abc"), counts=[3])
    worker.step((request, 3, ""), counts=[1])
    worker.step((request, 4, "\N{SNOWMAN}"), counts=[0])
    worker.close(request, 4)
    stream = await read(await call)
    assert text_of(stream) == "abc\N{SNOWMAN}"
    assert [int(one.rpartition(":")[2]) for one, _ in events(stream) if one] == [1, 2, 3, 4, 5, 6]


async def test_many_streams_share_frames(http: Any, worker: Any, model: str, rig: Any) -> None:
    total, tokens = 50, 20
    calls = [asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True))) for _ in range(total)]
    requests = [await worker.take(model) for _ in range(total)]
    for index in range(tokens):
        worker.step(*((request, index, f'{at}"{index} ') for at, request in enumerate(requests)))
    for request in requests:
        worker.close(request, tokens)
    by_id = {}
    for call in calls:
        response = await call
        by_id[response.headers["x-request-id"]] = text_of(await read(response))
    for at, request in enumerate(requests):
        assert by_id[uuid_text(request.request_id)] == "".join(f'{at}"{index} ' for index in range(tokens))


async def test_the_trace_goes_on_over_the_bus(http: Any, worker: Any, model: str, rig: Any) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers={"traceparent": parent}))
    request = await worker.answer(model, ["x"])
    await read(await call)
    assert worker.headers[request.request_id]["traceparent"].split("-")[1] == parent.split("-")[1]
    # A client's own id names nothing here.
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers={"X-Client-Request-Id": "mine"}))
    await worker.answer(model, ["x"])
    assert (await call).headers["x-request-id"] != "mine"

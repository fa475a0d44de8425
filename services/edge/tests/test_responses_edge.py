"""The Responses API of a running edge, by the SDK that customers use; the test is scheduler and worker."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import agents
import aiohttp
import openai
import pytest
import pytest_asyncio
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, ToolMode
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint, prefix_of
from inferbus_runtime import clock
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

ALL = ["chat", "tools", "structured_output", "logprobs", "reasoning"]
STRANGERS = {"other tenant": ("rival", "web"), "other project": ("acme", "shop")}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
_names = itertools.count(1)


class City(BaseModel):
    name: str
    people: int


@pytest_asyncio.fixture
async def model(worker: Any, http: aiohttp.ClientSession, rig: ModuleType) -> str:
    """One that can do everything."""
    name = f"able-{next(_names)}"
    await worker.models.put(name, ModelRecord(name=name, revision="rev-1", owned_by="acme", capabilities=ALL))
    async with asyncio.timeout(30):
        while (await http.get(f"/v1/models/{name}")).status != 200:
            await asyncio.sleep(0.01)
    return name


@pytest_asyncio.fixture
async def client(edge: Any, rig: ModuleType) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0, timeout=20) as one:
        yield one


@pytest.fixture
def blocking(edge: Any, rig: ModuleType) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0, timeout=20) as one:
        yield one


@pytest_asyncio.fixture(scope="session")
async def strangers(worker: Any, edge: Any) -> dict[str, str]:
    """Keys of another tenant, and of another project of the same tenant."""
    keys = Registry(worker.bus, "keys", KeyRecord)
    await keys.start()
    secrets = {}
    for at, (name, (tenant, project)) in enumerate(STRANGERS.items()):
        secret = secrets[name] = mint(bytes([at + 1]) * 32)
        record = KeyRecord(
            key_id=f"key_{tenant}_{project}", tenant_id=tenant, project_id=project, prefix=prefix_of(secret),
            scopes=["inference"], create_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        await keys.put(key_hash(secret), record)
        async with aiohttp.ClientSession(edge.url, headers={"Authorization": f"Bearer {secret}"}) as http:
            async with asyncio.timeout(30):
                while (await http.get("/v1/models")).status != 200:
                    await asyncio.sleep(0.01)
    await keys.stop()
    return secrets


async def begun(worker: Any, model: str, texts: list[str], call: Any) -> Any:
    """(a stream, what the worker was asked, the index of its next token): the head comes with the first delta."""

    async def begin() -> tuple[GenerateRequest, int]:
        request = await worker.take(model)
        return request, worker.say(request, texts)

    stream, (request, count) = await asyncio.gather(call, begin())
    return stream, request, count


async def answered(worker: Any, model: str, texts: list[str], call: Any) -> Any:
    """(what the worker was asked, what the client got)."""
    request, response = await asyncio.gather(worker.answer(model, texts), call)
    return request, response


def failed(worker: Any, request: GenerateRequest, error: Error) -> None:
    worker.close(request, 0, reason=FinishReason.FINISH_REASON_ERROR, error=error)


# --- making one -------------------------------------------------------------------------------------------------------


async def test_a_response(worker: Any, client: AsyncOpenAI, model: str) -> None:
    request, response = await answered(
        worker, model, ["Hel", "lo"],
        client.responses.create(
            model=model, input="hi", instructions="Be brief.", temperature=0.5, max_output_tokens=9,
            metadata={"a": "b"}, user="u",
        ),
    )  # fmt: skip
    assert [(one.role, one.content) for one in request.chat.messages] == [("system", "Be brief."), ("user", "hi")]
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.5, 9)
    assert (response.output_text, response.status) == ("Hello", "completed")
    assert response.id == f"resp_{request.request_id.hex()}"
    assert (response.instructions, response.metadata, response.user) == ("Be brief.", {"a": "b"}, "u")
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 2, 7)
    assert response.usage.input_tokens_details.cached_tokens == 2


async def test_the_sync_client_makes_streams_and_finds_one(worker: Any, blocking: OpenAI, model: str) -> None:
    def use() -> None:
        made = blocking.responses.create(model=model, input="a")
        assert made.output_text == "one"
        assert blocking.responses.retrieve(made.id).output_text == "one"
        with blocking.responses.stream(model=model, input="b") as stream:
            types = [event.type for event in stream]
            assert stream.get_final_response().output_text == "two"
        assert types[0] == "response.created"
        assert types[-1] == "response.completed"
        assert [item.type for item in blocking.responses.input_items.list(made.id)] == ["message"]
        blocking.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            blocking.responses.retrieve(made.id)

    async def serve() -> None:
        await worker.answer(model, ["one"])
        await worker.answer(model, ["t", "wo"])

    await asyncio.gather(asyncio.to_thread(use), serve())


async def test_every_event_of_a_stream(worker: Any, client: AsyncOpenAI, model: str) -> None:
    answering = asyncio.create_task(worker.answer(model, ["Let me see. ", CALL[:30], CALL[30:]]))
    stream = await client.responses.create(model=model, input="weather?", tools=[WEATHER], stream=True)
    events = [event async for event in stream]
    request = await answering
    assert request.chat.tool_mode == ToolMode.TOOL_MODE_AUTO
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert {event.type for event in events} == {
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.completed",
    }  # fmt: skip
    assert all(type(event).__name__.startswith("Response") for event in events)
    last: Any = events[-1]
    assert [item.type for item in last.response.output] == ["message", "function_call"]
    assert last.response.output[1].arguments == '{"city": "Paris"}'


async def test_the_numbers_of_events_on_the_wire(worker: Any, http: aiohttp.ClientSession, model: str) -> None:
    answering = asyncio.create_task(worker.answer(model, ["a", "b"]))
    async with http.post("/v1/responses", json={"model": model, "input": "x", "stream": True}) as response:
        text = (await response.read()).decode()
        handle = response.headers["x-inferbus-stream"]
    await answering
    blocks = [block.split("\n") for block in text.removesuffix("\n\n").split("\n\n")]
    for number, (name, _, data) in enumerate(blocks):
        assert name == f"id: {handle}:{number + 1}"
        assert f'"sequence_number":{number},' in data
    assert "[DONE]" not in text


async def test_parsed_into_the_callers_type(worker: Any, client: AsyncOpenAI, model: str) -> None:
    request, response = await answered(
        worker, model, ['{"name": "Paris", ', '"people": 2}'],
        client.responses.parse(model=model, input="city", text_format=City),
    )  # fmt: skip
    assert '"people"' in request.constraint.json_schema
    assert response.output_parsed == City(name="Paris", people=2)
    assert response.text.format.type == "json_schema"


async def test_log_probabilities_are_asked_for(worker: Any, client: AsyncOpenAI, model: str) -> None:
    request, response = await answered(
        worker, model, ["x"],
        client.responses.create(
            model=model, input="x", top_logprobs=3, include=["message.output_text.logprobs"],
        ),
    )  # fmt: skip
    assert request.sampling.logprobs == 3
    assert response.top_logprobs == 3


async def test_a_tool_answered_over_two_turns(worker: Any, client: AsyncOpenAI, model: str) -> None:
    _, first = await answered(
        worker, model, [CALL], client.responses.create(model=model, input="weather?", tools=[WEATHER])
    )
    call = first.output[0]
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    request, second = await answered(
        worker, model, ["It is sunny."],
        client.responses.create(model=model, input=[output], previous_response_id=first.id, tools=[WEATHER]),
    )  # fmt: skip
    said = [(one.role, one.content) for one in request.chat.messages]
    assert said == [("user", "weather?"), ("assistant", ""), ("tool", "sun")]
    assert request.chat.messages[1].tool_calls[0].arguments == '{"city": "Paris"}'
    # The same without the store: the caller sends all of it back.
    for returned in (first.output, [one.model_dump() for one in first.output]):
        request, _ = await answered(
            worker, model, ["Sunny."],
            client.responses.create(
                model=model, tools=[WEATHER], store=False,
                input=[{"role": "user", "content": "weather?"}, *returned, output],
            ),
        )  # fmt: skip
        assert [(one.role, one.content) for one in request.chat.messages] == said
    listed = [item async for item in client.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]


async def test_a_conversation_by_previous_response_id(worker: Any, client: AsyncOpenAI, model: str) -> None:
    previous = None
    for turn in range(3):
        request, response = await answered(
            worker, model, [f"answer {turn}"],
            client.responses.create(
                model=model, input=f"question {turn}", instructions=f"rule {turn}", previous_response_id=previous
            ),
        )  # fmt: skip
        previous = response.id
    # Instructions are of one response only.
    assert [one.content for one in request.chat.messages] == [
        "rule 2", "question 0", "answer 0", "question 1", "answer 1", "question 2",
    ]  # fmt: skip
    listed = [item async for item in client.responses.input_items.list(previous or "", limit=2)]
    texts = [item.content[0].text for item in listed]  # type: ignore[union-attr]
    assert texts == ["question 2", "answer 1", "question 1", "answer 0", "question 0"]
    assert len({item.id for item in listed}) == 5


async def test_items_of_stored_responses_are_referred_to(worker: Any, client: AsyncOpenAI, model: str) -> None:
    _, first = await answered(worker, model, ["Hello"], client.responses.create(model=model, input="hi"))
    given = [item async for item in client.responses.input_items.list(first.id)]
    references: Any = [{"type": "item_reference", "id": one.id} for one in (*given, *first.output)]
    request, _ = await answered(
        worker, model, ["x"],
        client.responses.create(model=model, input=[*references, {"role": "user", "content": "and?"}]),
    )  # fmt: skip
    assert [one.content for one in request.chat.messages] == ["hi", "Hello", "and?"]
    missing: Any = [{"type": "item_reference", "id": f"msg_{'0' * 32}_0"}]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model=model, input=missing)
    assert caught.value.param == "input[0].id"


# --- stored ones ------------------------------------------------------------------------------------------------------


async def test_what_is_not_stored_is_not_found(worker: Any, client: AsyncOpenAI, model: str) -> None:
    _, response = await answered(worker, model, ["x"], client.responses.create(model=model, input="x", store=False))
    assert response.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=model, input="y", previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_response_of_others_is_the_same_as_none(
    worker: Any, client: AsyncOpenAI, edge: Any, model: str, strangers: dict[str, str], who: str
) -> None:
    _, response = await answered(worker, model, ["secret"], client.responses.create(model=model, input="x"))
    missing = f"resp_{'0' * 32}"
    async with AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=strangers[who], max_retries=0) as stranger:

        async def tries(name: str) -> list[Any]:
            calls = [
                lambda: stranger.responses.retrieve(name),
                lambda: stranger.responses.retrieve(name, stream=True, starting_after=0),
                lambda: stranger.responses.delete(name),
                lambda: stranger.responses.cancel(name),
                lambda: stranger.responses.input_items.list(name),
                lambda: stranger.responses.create(model=model, input="y", previous_response_id=name),
            ]
            said = []
            for call in calls:
                with pytest.raises(openai.APIStatusError) as caught:
                    await call()  # type: ignore[no-untyped-call]
                said.append((caught.value.status_code, str(caught.value).replace(name, "ID")))
            return said

        theirs, nobodys = await tries(response.id), await tries(missing)
    assert theirs == nobodys
    assert [status for status, _ in theirs] == [404, 404, 404, 404, 404, 400]
    assert (await client.responses.retrieve(response.id)).output_text == "secret"


async def test_a_deleted_response_is_gone_everywhere(worker: Any, client: AsyncOpenAI, model: str) -> None:
    _, response = await answered(worker, model, ["x"], client.responses.create(model=model, input="x"))
    await client.responses.delete(response.id)
    for call in (
        client.responses.retrieve(response.id),
        client.responses.retrieve(response.id, stream=True, starting_after=0),
        client.responses.delete(response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?bogus=1", "bogus"),
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=-1", "starting_after"),
        ("?stream=maybe", "stream"),
        ("?include[]=reasoning.encrypted_content", "include"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_x", "after"),
    ],
)
async def test_a_bad_question_about_a_response(
    worker: Any, client: AsyncOpenAI, http: aiohttp.ClientSession, model: str, path: str, param: str
) -> None:
    _, response = await answered(worker, model, ["x"], client.responses.create(model=model, input="x"))
    async with http.get(f"/v1/responses/{response.id}{path}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param


# --- in the background ------------------------------------------------------------------------------------------------


async def test_a_background_response_from_queued_to_completed(worker: Any, client: AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(model=model, input="x", background=True)
    assert (response.status, response.background, response.output) == ("queued", True, [])
    request = await worker.take(model)
    assert request.priority_class == PriorityClass.PRIORITY_CLASS_BACKGROUND
    assert (await client.responses.retrieve(response.id)).status == "queued"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=model, input="y", previous_response_id=response.id)
    assert caught.value.code == "previous_response_in_progress"
    worker.say(request, ["Hel"])
    async with asyncio.timeout(30):
        while (running := await client.responses.retrieve(response.id)).status != "in_progress":
            await asyncio.sleep(0.01)
    assert running.output_text == "Hel"
    worker.close(request, worker.say(request, ["lo"], 1))
    async with asyncio.timeout(30):
        while (done := await client.responses.retrieve(response.id)).status != "completed":
            await asyncio.sleep(0.01)
    assert done.output_text == "Hello"


async def test_a_background_stream_goes_on_where_it_broke(worker: Any, client: AsyncOpenAI, model: str) -> None:
    stream, request, _ = await begun(
        worker, model, ["a", "b"], client.responses.create(model=model, input="x", background=True, stream=True)
    )
    seen: list[Any] = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta" and event.delta == "b":
            break
    await stream.close()
    worker.say(request, ["c"], 2)
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    name = seen[0].response.id
    rest = await client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number)
    worker.close(request, worker.say(request, ["d"], 3))
    seen += [event async for event in rest]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "abcd"
    assert seen[-1].response.output_text == "abcd"
    assert request.request_id not in worker.cancelled
    # And once more from the beginning, when it is over; the same events.
    again = [event async for event in await client.responses.retrieve(name, stream=True)]
    assert again == seen
    async with client.responses.stream(response_id=name, starting_after=5) as helped:
        assert [event.sequence_number async for event in helped] == list(range(6, len(seen)))


async def test_another_edge_goes_on_after_the_first_was_killed(
    worker: Any, nats_server: Any, model: str, rig: ModuleType, tmp_path: Any
) -> None:
    async with rig.run_edge(nats_server, tmp_path) as one, rig.run_edge(nats_server, tmp_path) as other:
        clients = [
            AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0, timeout=20)
            for edge in (one, other)
        ]
        seen: list[Any] = []
        asking = clients[0].responses.create(model=model, input="x", tools=[WEATHER], background=True, stream=True)
        stream, request, count = await begun(worker, model, ["Let me ", "see."], asking)
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta" and event.delta == "see.":
                break
        one.process.kill()
        await one.process.wait()
        count = worker.say(request, [CALL[:40]], count)
        after = seen[-1].sequence_number
        rest = await clients[1].responses.retrieve(seen[0].response.id, stream=True, starting_after=after)
        worker.close(request, worker.say(request, [CALL[40:]], count))
        seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert seen[-1].response.output[1].arguments == '{"city": "Paris"}'
        found = await clients[1].responses.retrieve(seen[0].response.id)
        assert found.model_dump() == seen[-1].response.model_dump()
        for client in clients:
            await client.close()


async def test_a_foreground_stream_is_taken_up_by_its_last_event(
    worker: Any, http: aiohttp.ClientSession, model: str
) -> None:
    asked = {"model": model, "input": "x", "stream": True}
    posted = http.post("/v1/responses", json=asked, headers={"x-inferbus-hold": "20"})
    response, request, _ = await begun(worker, model, ["a", "b"], posted)
    async with response:
        head = b""
        while b'"delta":"b"' not in head:
            head += await response.content.readany()
    last = [line for line in head.decode().split("\n") if line.startswith("id: ")][-1].removeprefix("id: ")
    worker.close(request, worker.say(request, ["c"], 2))
    async with http.post("/v1/responses", json=asked, headers={"Last-Event-ID": last}) as response:
        rest = (await response.read()).decode()
    numbers = [int(line.rpartition(":")[2]) for line in (head.decode() + rest).split("\n") if line.startswith("id: ")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert '"text":"abc"' in rest


@pytest.mark.parametrize("said", ["", "Hel"])
async def test_a_cancelled_background_response(worker: Any, client: AsyncOpenAI, model: str, said: str) -> None:
    response = await client.responses.create(model=model, input="x", background=True)
    request = await worker.take(model)
    count = worker.say(request, [said] if said else [])
    cancelling = asyncio.create_task(client.responses.cancel(response.id))
    _, reason = await worker.cancel_of(request)
    assert reason == "client_cancelled"
    worker.close(request, count, reason=FinishReason.FINISH_REASON_CANCELLED)
    cancelled = await cancelling
    assert (cancelled.status, cancelled.output_text) == ("cancelled", said)
    assert (await client.responses.retrieve(response.id)).status == "cancelled"
    # Once more changes nothing.
    assert (await client.responses.cancel(response.id)).status == "cancelled"


async def test_only_background_responses_are_cancelled(worker: Any, client: AsyncOpenAI, model: str) -> None:
    _, response = await answered(worker, model, ["x"], client.responses.create(model=model, input="x"))
    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(response.id)


async def test_deleting_what_still_runs_ends_it(worker: Any, client: AsyncOpenAI, model: str) -> None:
    response = await client.responses.create(model=model, input="x", background=True)
    request = await worker.take(model)
    await client.responses.delete(response.id)
    await worker.cancel_of(request)
    worker.close(request, 0, reason=FinishReason.FINISH_REASON_CANCELLED)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


# --- bad ends ---------------------------------------------------------------------------------------------------------


async def test_typed_errors_name_the_parameter(worker: Any, client: AsyncOpenAI, model: str) -> None:
    tools: Any = [{"type": "web_search"}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model=model, input="x", tools=tools)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools[0].type")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.responses.create(model="nobody", input="x")
    assert unknown.value.code == "model_not_found"
    error = Error(
        error_class=ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, reason="context_length_exceeded",
        message="'messages' are too long.", param="messages",
    )  # fmt: skip
    asking = asyncio.create_task(client.responses.create(model=model, input="x"))
    failed(worker, await worker.take(model), error)
    with pytest.raises(openai.BadRequestError) as long:
        await asking
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")


async def test_a_model_that_cannot_is_named(worker: Any, client: AsyncOpenAI, http: Any, rig: ModuleType) -> None:
    name = f"plain-{next(_names)}"
    await worker.serve(name, http)  # chat and nothing else
    fields: list[tuple[str, dict[str, Any]]] = [
        ("tools", {"tools": [WEATHER]}),
        ("text.format", {"text": {"format": {"type": "json_object"}}}),
        ("reasoning.effort", {"reasoning": {"effort": "low"}}),
        ("top_logprobs", {"top_logprobs": 1}),
        (
            "input[0].content[0]",
            {"input": [{"role": "user", "content": [{"type": "input_image", "detail": "auto", "image_url": "data:"}]}]},
        ),
    ]
    for param, asked in fields:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": name, "input": "x", **asked})
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)


async def test_a_stream_that_fails_says_so_and_so_does_the_store(worker: Any, client: AsyncOpenAI, model: str) -> None:
    stream, request, _ = await begun(
        worker, model, ["Hel"], client.responses.create(model=model, input="x", background=True, stream=True)
    )
    error = Error(error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="engine_failed", message="It failed; retry.")
    worker.step(
        closes=[
            Close(request_id=request.request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_ERROR, error=error)
        ],
        ended=request,
    )
    events: list[Any] = [event async for event in stream]
    last = events[-1]
    assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", "server_error")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    found = await client.responses.retrieve(last.response.id)
    assert found.model_dump() == last.response.model_dump()
    assert found.error is not None
    assert found.error.message == "It failed; retry."


async def test_an_answer_that_was_cut_off(worker: Any, client: AsyncOpenAI, model: str) -> None:
    asking = asyncio.create_task(client.responses.create(model=model, input="x", max_output_tokens=1))
    request = await worker.take(model)
    worker.close(request, worker.say(request, ["Hel"]), reason=FinishReason.FINISH_REASON_LENGTH)
    response = await asking
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == "Hel"


async def test_a_retry_under_the_same_key_is_the_same_response(worker: Any, client: AsyncOpenAI, model: str) -> None:
    headers = {"Idempotency-Key": f"key-{model}"}
    _, first = await answered(
        worker, model, ["x"], client.responses.create(model=model, input="x", extra_headers=headers)
    )
    again = await client.responses.create(model=model, input="x", extra_headers=headers)
    assert again.model_dump() == first.model_dump()
    with pytest.raises(openai.ConflictError):
        await client.responses.create(model=model, input="other", extra_headers=headers)


# --- what applications really use -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_agent_uses_a_tool(worker: Any, client: AsyncOpenAI, model: str, streamed: bool) -> None:
    asked = []

    @agents.function_tool
    def weather(city: str) -> str:
        """Tells the weather."""
        asked.append(city)
        return "sunny"

    agent = agents.Agent(
        name="Forecaster",
        instructions="Use your tools.",
        tools=[weather],
        model=agents.OpenAIResponsesModel(model=model, openai_client=client),
    )
    config = agents.RunConfig(tracing_disabled=True)

    async def run() -> Any:
        if not streamed:
            return await agents.Runner.run(agent, "Weather in Paris?", run_config=config)
        running = agents.Runner.run_streamed(agent, "Weather in Paris?", run_config=config)
        assert [event async for event in running.stream_events()]
        return running

    async def serve() -> GenerateRequest:
        await worker.answer(model, ["Let me see.", CALL])
        request: GenerateRequest = await worker.answer(model, ["It is ", "sunny."])
        return request

    result, request = await asyncio.gather(run(), serve())
    assert result.final_output == "It is sunny."
    assert asked == ["Paris"]
    assert [(one.role, one.content) for one in request.chat.messages] == [
        ("system", "Use your tools."), ("user", "Weather in Paris?"), ("assistant", "Let me see."), ("tool", "sunny"),
    ]  # fmt: skip


async def test_langchain_by_responses(worker: Any, edge: Any, rig: ModuleType, model: str) -> None:
    chat = ChatOpenAI(
        model=model, base_url=f"{edge.url}/v1", api_key=rig.API_KEY, use_responses_api=True, max_retries=0
    ).bind_tools([WEATHER])
    _, first = await answered(worker, model, [CALL], chat.ainvoke("weather?"))
    assert [(call["name"], call["args"]) for call in first.tool_calls] == [("weather", {"city": "Paris"})]
    turns: list[Any] = [
        HumanMessage("weather?"), first, ToolMessage("sunny", tool_call_id=first.tool_calls[0]["id"])
    ]  # fmt: skip
    answering = asyncio.create_task(worker.answer(model, ["It is ", "sunny."]))
    text = "".join([str(chunk.text) async for chunk in chat.astream(turns)])
    request = await answering
    assert text == "It is sunny."
    assert [one.role for one in request.chat.messages] == ["user", "assistant", "tool"]


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module")
async def counted(
    nats_server: Any, http: aiohttp.ClientSession, rig: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """A model of a worker process with the synthetic engine, which takes each word for a token."""
    folder = tmp_path_factory.mktemp("counting")
    variables = {
        "NAME": "counting", "NATS_URL": nats_server.url, "ENGINE": "synthetic", "MODEL": "counted",
        "READY_FILE": str(folder / "ready.json"), "DIE_WITH_PARENT": "true", "DRAIN_TIMEOUT": "1s", "LEASE_TTL": "30s",
    }  # fmt: skip
    environ = {**os.environ, **{f"INFERBUS_WORKER_{key}": value for key, value in variables.items()}}
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_worker", env=environ, stdout=output, stderr=output
        )
    try:
        await rig.until(lambda: (folder / "ready.json").exists() or process.returncode is not None, 60)
        assert process.returncode is None, log.read_text()
        async with asyncio.timeout(30):
            while (await http.post("/tokenize", json={"model": "counted", "prompt": "x"})).status != 200:
                await asyncio.sleep(0.02)
        yield "counted"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.wait()


async def test_input_tokens(worker: Any, client: AsyncOpenAI, counted: str) -> None:
    counts = client.responses.input_tokens
    found = await counts.count(model=counted, input="one two three")
    assert (found.object, found.input_tokens) == ("response.input_tokens", 3)
    assert (await counts.count(model=counted, input="one two three", instructions="four five")).input_tokens == 5
    _, response = await answered(worker, counted, ["four"], client.responses.create(model=counted, input="one two"))
    follow = await counts.count(model=counted, input="three", previous_response_id=response.id)
    assert follow.input_tokens == 4
    with pytest.raises(openai.BadRequestError) as caught:
        await counts.count(model=counted, input="x", extra_body={"stream": True})
    assert caught.value.param == "stream"
    with pytest.raises(openai.NotFoundError):
        await counts.count(model="nobody", input="x")

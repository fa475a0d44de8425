"""Generations that go from one worker to another: a fence voids what the first one still says; and answers that a
fallback gives, which say so."""

import asyncio
import dataclasses
import json
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close, DeltaLogprobs, Embedding, Frame, TokenLogprob
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_bus.connection import BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_contracts import recovery
from inferbus_contracts.ids import request_id
from inferbus_edge.measure import Timing
from inferbus_edge.sinks import Nowhere
from inferbus_edge.streaming import Answer, Streams
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

PATH = "/v1/chat/completions"
REQUEST = request_id(1_795_000_000_000, b"0123456789", "e")
FALLBACK = "smaller"


# --- the law ---


class Nobody:
    """Listens to the streams."""

    def stray(self, request_id: bytes, now: float) -> None: ...

    def left(self, answer: Answer, reason: str) -> bool:
        return False

    def broken(self, answer: Answer, reason: str) -> None: ...

    def ended(self, answer: Answer) -> None: ...


class Client(Nowhere):
    """What a client is sent: which attempt's deltas, as their texts say it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.opened = 0

    def open(self, choice: int, revision: str, model: str = "") -> None:
        self.opened = int(revision)

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        attempt, *indices = text.decode().split()
        assert int(attempt) == self.opened, "an attempt is opened before its first delta is written"
        assert len(indices) == count
        self.texts.append(text.decode())
        return None

    @property
    def indices(self) -> list[int]:
        return [int(one) for text in self.texts for one in text.split()[1:]]


def frame_of(attempt: int, first: int, count: int) -> Frame:
    """``count`` -1: a fence."""
    if count < 0:
        fenced = Frame(stead="w")
        fenced.fences.add(request_id=REQUEST, attempt=attempt)
        return fenced
    text = " ".join(str(one) for one in (attempt, *range(first, first + count))).encode()
    return Frame(
        contexts=[RequestContext(revision=str(attempt))], request_ids=REQUEST, attempt=[attempt], first_index=[first],
        token_count=[count], text_size=[len(text)], text=text, token_id=range(first, first + count),
    )  # fmt: skip


def close_of(attempt: int, total: int) -> Frame:
    close = Close(request_id=REQUEST, attempt=attempt, finish_reason=FinishReason.FINISH_REASON_STOP)
    close.usage.output_tokens = total
    return Frame(contexts=[RequestContext(revision=str(attempt))], closes=[close])


def followed(frames: list[Frame]) -> tuple[Answer, Client]:
    client = Client()
    answer = Answer(REQUEST, 1, client, Timing("m", 0))
    streams = Streams(Nobody())
    streams.add(answer)
    for frame in frames:
        streams.on_frame(frame, 0)
    return answer, client


# (attempt, first index, tokens; -1: a fence), as they may stand on the log
LOG = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(-1, 3)), max_size=40)


@given(LOG)
async def test_whatever_is_fenced_each_index_is_delivered_once_and_in_order(log: list[tuple[int, int, int]]) -> None:
    answer, client = followed([frame_of(*one) for one in log])
    assert client.indices == list(range(len(client.indices)))
    assert answer.output_tokens == len(client.indices)


@given(LOG)
async def test_nothing_below_a_fence_is_delivered_after_it(log: list[tuple[int, int, int]]) -> None:
    client = Client()
    streams = Streams(Nobody())
    streams.add(Answer(REQUEST, 1, client, Timing("m", 0)))
    least = 0
    for attempt, first, count in log:
        before = len(client.texts)
        streams.on_frame(frame_of(attempt, first, count), 0)
        if count < 0:
            least = max(least, attempt)
        elif len(client.texts) > before:
            assert attempt >= least


# (tokens that an attempt makes, tokens that it makes after it was fenced off, whether it thinks that it has ended)
MOVES = st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=3), st.integers(0, 3), st.booleans()), min_size=1)


@given(MOVES)
async def test_the_client_gets_what_whoever_moves_the_request_finds(moves: list[tuple[list[int], int, bool]]) -> None:
    """Each attempt goes on where the log says that the one before it was when it was fenced off."""
    frames: list[Frame] = []
    known = recovery.Recovered()

    def say(frame: Frame) -> None:
        frames.append(frame)
        recovery.fold(frame, {REQUEST: known})

    for attempt, (counts, late, ends) in enumerate(moves, 1):
        for count in counts:
            say(frame_of(attempt, len(known.ids), count))
        if attempt == len(moves):
            say(close_of(attempt, len(known.ids)))
            break
        at = len(known.ids)
        say(frame_of(attempt + 1, 0, -1))
        say(frame_of(attempt, at, late))
        if ends:
            say(close_of(attempt, at + late))
    answer, client = followed(frames)
    assert answer.on_log, "its end was taken"
    assert (answer.error, known.closed) == (None, True)
    assert client.indices == list(range(len(known.ids)))


async def test_what_was_measured_is_of_the_model_that_answered() -> None:
    end = close_of(1, 0)
    end.contexts[0].model = FALLBACK
    answer, _ = followed([end])
    assert (answer.on_log, answer.timing.model) == (True, FALLBACK)


# --- over HTTP ---


@pytest_asyncio.fixture
async def able(worker: Any, model: str, http: Any) -> str:
    """A model that can all that is asked here, and the edge knows it."""
    abilities = ["chat", "completions", "logprobs", "embeddings"]
    await worker.models.put(model, ModelRecord(name=model, revision="rev-1", capabilities=abilities))
    async with asyncio.timeout(30):
        while (await (await http.get(f"/v1/models/{model}")).json())["capabilities"] != abilities:
            await asyncio.sleep(0.01)
    return model


@pytest_asyncio.fixture
async def other(nats_server: NatsServer, worker: Any) -> AsyncIterator[Any]:
    """Another worker."""
    config = BusConfig(nats_server.url, "test-other-frames")
    frames = FramePublisher(config, worker="w-other", boot=clock.now_us())
    await frames.start()
    yield dataclasses.replace(worker, frames=frames)
    await frames.stop()


async def until_stored(one: Any) -> None:
    """Two workers' frames are in the order in which they were stored."""
    async with asyncio.timeout(30):
        while one.frames.unacked:
            await asyncio.sleep(0.002)


def events(stream: str) -> list[Any]:
    """The data of each event."""
    lines = [line for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(stream: str) -> str:
    return "".join(
        choice["delta"].get("content") or "" for event in events(stream) for choice in event.get("choices", ())
    )


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"stream_options": {"include_usage": True}}])
async def test_a_stream_goes_on_at_another_worker_without_what_the_first_one_still_says(
    http: Any, worker: Any, other: Any, able: str, rig: Any, more: dict[str, Any]
) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(able, stream=True, **more)))
    request = await worker.take(able)
    at = worker.say(request, ["a", "b"])
    worker.fence(request, 2)
    worker.step((request, at, "void"))
    worker.close(request, at + 1)
    await until_stored(worker)
    said = [DeltaLogprobs(delta=0, tokens=[TokenLogprob(text=b"c")])] if "logprobs" in more else []
    other.step((request, at, "c"), attempt=2, revision="rev-2", logprobs=said)
    await until_stored(other)
    worker.step((request, at + 1, "void"))
    worker.fence(request, 2)  # whoever moved it was not sure that he had said it
    await until_stored(worker)
    other.step((request, at + 1, "d"), attempt=2, revision="rev-2")
    other.close(request, at + 2, attempt=2)
    whole = await (await call).text()
    assert text_of(whole) == "abcd"
    again = await http.get(f"/v1/streams/{_name(request)}")
    assert await again.text() == whole


async def test_one_that_was_moved_before_its_first_token(
    http: Any, worker: Any, other: Any, model: str, rig: Any
) -> None:
    for stream in (True, False):
        call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=stream)))
        request = await worker.take(model)
        worker.fence(request, 2)
        worker.step((request, 0, "void"))
        await until_stored(worker)
        other.step((request, 0, "a"), attempt=2)
        other.close(request, 1, attempt=2)
        body = await (await call).text()
        assert (text_of(body) if stream else json.loads(body)["choices"][0]["message"]["content"]) == "a"
        # Read from the log once more it is the same, though what is void opens there first.
        again = await http.get(f"/v1/streams/{_name(request)}")
        assert text_of(await again.text()) == "a"


async def test_one_that_is_ended_while_it_waits_for_its_next_attempt(
    http: Any, worker: Any, other: Any, model: str, rig: Any
) -> None:
    """The scheduler ends it, as the attempt that was to come."""
    for stream in (True, False):
        call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=stream)))
        request = await worker.take(model)
        worker.say(request, ["a"])
        worker.fence(request, 2)
        worker.close(request, 1)
        await until_stored(worker)
        error = Error(
            error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="worker_lost", message="Try a changed request."
        )
        other.close(request, 1, attempt=2, reason=FinishReason.FINISH_REASON_ERROR, error=error)
        response = await call
        said = events(await response.text())[-1] if stream else await response.json()
        assert said["error"] == {
            "message": "Try a changed request.", "type": "server_error", "param": None, "code": "worker_lost",
        }  # fmt: skip
        assert response.status == (200 if stream else 500)
        if not stream:
            assert response.headers["x-should-retry"] == "false", "sent again it may take more workers down"


async def test_a_retry_under_its_key_does_not_take_more_workers_down(
    http: Any, worker: Any, other: Any, model: str, rig: Any
) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model), headers={"Idempotency-Key": "poison"}))
    request = await worker.take(model)
    worker.fence(request, 2)
    await until_stored(worker)
    error = Error(error_class=ErrorClass.ERROR_CLASS_INTERNAL, reason="worker_lost", message="No.")
    other.close(request, 0, attempt=2, reason=FinishReason.FINISH_REASON_ERROR, error=error)
    assert (await call).status == 500
    again = await http.post(PATH, json=rig.chat(model), headers={"Idempotency-Key": "poison"})
    assert (again.status, (await again.json())["error"]["code"]) == (500, "worker_lost")
    assert worker.queues[model].empty()


# --- fallbacks ---


async def answered_by_a_fallback(worker: Any, model: str, *texts: str) -> Any:
    request = await worker.take(model)
    for index, text in enumerate(texts):
        worker.step((request, index, text), model=FALLBACK)
    worker.close(request, len(texts), model=FALLBACK)
    return request


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"stream_options": {"include_usage": True}}])
async def test_a_chat_says_which_model_answered(
    http: Any, worker: Any, able: str, rig: Any, more: dict[str, Any]
) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(able, stream=True, **more)))
    request = await answered_by_a_fallback(worker, able, "a", "b")
    whole = await (await call).text()
    assert {one["model"] for one in events(whole)} == {FALLBACK}
    assert await (await http.get(f"/v1/streams/{_name(request)}")).text() == whole
    call = asyncio.create_task(http.post(PATH, json=rig.chat(able, **more) | {"stream_options": None}))
    await answered_by_a_fallback(worker, able, "a", "b")
    assert (await (await call).json())["model"] == FALLBACK


async def test_choices_of_one_chat_may_have_been_answered_by_two_models(
    http: Any, worker: Any, model: str, rig: Any
) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True, n=2)))
    first, second = await worker.take(model), await worker.take(model)
    worker.step((second, 0, "b"), model=FALLBACK)
    worker.step((first, 0, "a"))
    worker.close(first, 1)
    worker.close(second, 1, model=FALLBACK)
    found = [(one["choices"][0]["index"], one["model"]) for one in events(await (await call).text())]
    assert set(found) == {(0, model), (1, FALLBACK)}


async def test_every_other_form_says_which_model_answered(http: Any, worker: Any, able: str) -> None:
    asked = {
        "/v1/completions": {"prompt": "hi"},
        "/v1/responses": {"input": "hi"},
        "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    }
    for path, fields in asked.items():
        call = asyncio.create_task(http.post(path, json={"model": able, **fields}))
        await answered_by_a_fallback(worker, able, "a")
        assert (await (await call).json())["model"] == FALLBACK, path
        call = asyncio.create_task(http.post(path, json={"model": able, "stream": True, **fields}))
        await answered_by_a_fallback(worker, able, "a")
        found = [_model_in(one) for one in events(await (await call).text())]
        assert {one for one in found if one} == ({able, FALLBACK} if "responses" in path else {FALLBACK}), path
        assert [one for one in found if one][-1] == FALLBACK, path


async def test_a_stored_response_says_which_model_answered(http: Any, worker: Any, model: str) -> None:
    call = asyncio.create_task(http.post("/v1/responses", json={"model": model, "input": "hi", "store": True}))
    await answered_by_a_fallback(worker, model, "a")
    response = await (await call).json()
    again = await (await http.get(f"/v1/responses/{response['id']}")).json()
    assert (response["model"], again["model"]) == (FALLBACK, FALLBACK)


async def test_vectors_say_which_model_made_them(http: Any, worker: Any, able: str) -> None:
    call = asyncio.create_task(http.post("/v1/embeddings", json={"model": able, "input": "a"}))
    request = await worker.take(able)
    vector = Embedding(request_id=request.request_id, index=0, values=array("f", [1.0]).tobytes())
    worker.step(embeddings=[vector], ended=request, model=FALLBACK)
    close = Close(request_id=request.request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_STOP)
    close.usage.CopyFrom(Usage(input_tokens=1))
    worker.step(closes=[close], ended=request, model=FALLBACK)
    assert (await (await call).json())["model"] == FALLBACK


def _name(request: Any) -> str:
    digits = request.request_id.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _model_in(event: dict[str, Any]) -> str:
    for holder in (event, event.get("response", {}), event.get("message", {})):
        if "model" in holder:
            return str(holder["model"])
    return ""

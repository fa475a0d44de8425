"""Embeddings: parsing, vectors in both formats, and over HTTP with the SDK."""

import asyncio
import base64
import json
import math
from array import array
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close, Embedding, Frame
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_dialect import embeddings
from inferbus_dialect.embeddings import (
    EmbeddingsForm,
    check_dimensions,
    parse_embedding_request,
    plan_embeddings,
    shortened,
)
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from openai.types import CreateEmbeddingResponse

PATH = "/v1/embeddings"
VECTORS = st.lists(st.floats(-1, 1, width=32).filter(lambda one: abs(one) > 1e-3), min_size=1, max_size=12)


def floats(values: list[float]) -> bytes:
    return array("f", values).tobytes()


def request(**fields: object) -> bytes:
    return json.dumps({"model": "m", "input": "x", **fields}).encode()


def form_for(**fields: object) -> EmbeddingsForm:
    reply = plan_embeddings(parse_embedding_request(request(**fields))).reply
    return EmbeddingsForm(b"r" * 16, {**reply, "model": "m", "created": 7}, False)


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_inputs(given_input: object, inputs: list[Any]) -> None:
    plan = plan_embeddings(parse_embedding_request(request(input=given_input)))
    (message,) = plan.requests
    assert [list(one.tokens.ids) or one.text for one in message.embedding.inputs] == inputs
    assert [need.capability for need in plan.needs] == ["embeddings"]
    assert not message.HasField("sampling")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"), ({"input": ["a", ""]}, "input[1]"), ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"), ({"input": [1, "a"]}, "input[1]"), ({"input": [[1]] * 2049}, "input"),
        ({"input": [1, -1]}, "input[1]"), ({"input": [1 << 32]}, "input[0]"), ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], [2, True]]}, "input[1][1]"), ({"input": [1.0]}, "input[0]"), ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"), ({"stream": True}, "stream"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InferBusError) as caught:
        parse_embedding_request(request(**fields))
    assert caught.value.param == param


def test_more_dimensions_than_the_model_has() -> None:
    asked = parse_embedding_request(request(dimensions=385))
    with pytest.raises(InferBusError, match="384"):
        check_dimensions(asked, ModelRecord(embedding_dimensions=384))
    check_dimensions(asked, ModelRecord(embedding_dimensions=385))


@given(VECTORS, st.integers(1, 14))
def test_a_shortened_vector_has_its_direction_and_length_1(values: list[float], dimensions: int) -> None:
    out = array("f", shortened(floats(values), dimensions))
    if dimensions >= len(values):
        assert out.tobytes() == floats(values)
        return
    assert len(out) == dimensions
    assert math.isclose(math.hypot(*out), 1, rel_tol=1e-5)
    length = math.hypot(*values[:dimensions])
    assert all(math.isclose(one * length, value, rel_tol=1e-4) for one, value in zip(out, values, strict=False))


def test_a_vector_of_zeros_stays_one() -> None:
    assert shortened(floats([0, 0, 1]), 2) == floats([0, 0])


@given(st.lists(VECTORS, min_size=1, max_size=4))
def test_both_formats_say_the_same(vectors: list[list[float]]) -> None:
    bodies = []
    for encoding in ("float", "base64"):
        form = form_for(input=["x"] * len(vectors), encoding_format=encoding)
        for index in reversed(range(len(vectors))):
            form.binary(index, floats(vectors[index]))
        usage = Usage(input_tokens=9)
        form.close(0, "rev", Close(finish_reason=FinishReason.FINISH_REASON_STOP, usage=usage))
        form.finish()
        bodies.append(json.loads(form.body()))
    plain, encoded = bodies
    CreateEmbeddingResponse.model_validate(plain, strict=True)
    assert plain["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert [floats(one["embedding"]) for one in plain["data"]] == [floats(one) for one in vectors]
    assert [base64.b64decode(one["embedding"]) for one in encoded["data"]] == [floats(one) for one in vectors]
    assert [one["index"] for one in plain["data"]] == list(range(len(vectors)))


def test_numbers_have_as_many_digits_as_a_float32() -> None:
    form = form_for()
    form.binary(0, floats([0.1, -1 / 3, 1e-9, 0.0]))
    assert b"[0.1,-0.33333334,1e-9,0.0]" in form.body()


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("dimensions", [None, 300])
def test_vectors_are_written_as_they_come(
    encoding: str, dimensions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame by frame, so that the largest answer stops nobody for long: `bench/embeddings.py` has the times."""
    form = form_for(input=["x"] * 2048, encoding_format=encoding, dimensions=dimensions)
    values = floats([math.sin(at) / 14 for at in range(384)])
    for index in range(2048):
        form.binary(index, values)
    for at_the_end in ("np", "base64"):  # what numbers are shortened and written with
        monkeypatch.delattr(embeddings, at_the_end)
    assert len(json.loads(form.body())["data"]) == 2048


def test_an_answer_with_a_gap_is_none() -> None:
    form = form_for(input=["a", "b"])
    form.binary(0, floats([1]))
    with pytest.raises(InferBusError) as caught:
        form.body()
    assert caught.value.reason == "internal_error"


# --- over HTTP --------------------------------------------------------------------------------------------------------


def answer(worker: Any, message: Any, vectors: list[list[float]]) -> None:
    context = RequestContext(model=message.context.model, revision="rev-1")
    embeddings = [
        Embedding(request_id=message.request_id, index=at, values=floats(one)) for at, one in enumerate(vectors)
    ]
    close = Close(
        request_id=message.request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_STOP,
        usage=Usage(input_tokens=7),
    )  # fmt: skip
    frame = Frame(edge=message.edge, time_us=clock.now_us(), contexts=[context])
    frame.embeddings.extend(embeddings)
    frame.closes.append(close)
    worker.frames.publish(frame)


async def serve_vectors(worker: Any, model: str, http: aiohttp.ClientSession, dimensions: int) -> None:
    record = ModelRecord(name=model, revision="rev-1", capabilities=["embeddings"], embedding_dimensions=dimensions)
    await worker.models.put(model, record)
    body = {"model": model, "input": "x", "dimensions": dimensions + 1}
    async with asyncio.timeout(5):
        # Refused in any case, for the parameter once the edge knows the record.
        while (await (await http.post(PATH, json=body)).json())["error"]["param"] != "dimensions":
            await asyncio.sleep(0.01)


async def test_the_openai_sdk(edge: Any, worker: Any, model: str, http: aiohttp.ClientSession, rig: Any) -> None:
    await serve_vectors(worker, model, http, 3)
    client = openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)
    vectors = [[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]

    # The SDK asks for base64 by itself.
    call = asyncio.create_task(client.embeddings.create(model=model, input=["a", "b"]))
    message = await worker.take(model)
    assert [one.text for one in message.embedding.inputs] == ["a", "b"]
    answer(worker, message, vectors)
    found = await call
    assert [one.embedding for one in found.data] == [list(array("f", one)) for one in vectors]
    assert found.usage.total_tokens == 7

    call = asyncio.create_task(
        client.embeddings.create(model=model, input=[1, 2], dimensions=2, encoding_format="float")
    )
    answer(worker, await worker.take(model), vectors[:1])
    assert (await call).data[0].embedding == [1.0, 0.0]

    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=model, input="a", dimensions=4)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError) as chat:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
    assert chat.value.code == "model_not_supported"


async def test_late_vectors_of_an_older_attempt_are_void(worker: Any, model: str, http: aiohttp.ClientSession) -> None:
    await serve_vectors(worker, model, http, 1)
    call = asyncio.create_task(http.post(PATH, json={"model": model, "input": ["a", "b", "c"]}))
    message = await worker.take(model)

    def say(attempt: int, vectors: dict[int, list[float]], said: int | None = None) -> None:
        embeddings = [
            Embedding(
                request_id=message.request_id, index=at, values=floats(one), attempt=attempt if said is None else said
            )
            for at, one in vectors.items()
        ]
        worker.step(embeddings=embeddings, attempt=attempt, ended=message)

    say(1, {0: [1.0], 1: [1.5]}, said=0)  # of a worker that does not say it yet: 1
    worker.step((message, 0, ""), attempt=2, counts=[0])  # as a second attempt opens
    say(1, {0: [-1.0], 1: [-1.0]})
    say(2, {1: [2.5]})
    say(1, {1: [-1.0], 2: [-1.0]}, said=0)
    say(3, {2: [3.5]})  # this one opens with a vector; it makes all of them, like every attempt
    say(2, {0: [-1.0], 1: [-1.0], 2: [-1.0]})
    worker.close(message, 0, attempt=2)
    worker.fence(message, 4)
    say(3, {0: [-1.0], 1: [-1.0], 2: [-1.0]})
    worker.close(message, 0, attempt=3)
    say(4, {0: [4.0], 1: [4.25], 2: [4.5]})
    worker.close(message, 0, attempt=4)
    body = await (await call).json()
    assert [one["embedding"] for one in body["data"]] == [[4.0], [4.25], [4.5]]


def test_vectors_of_two_attempts_are_not_one_answer() -> None:
    form = form_for(input=["a", "b"])
    form.open(0, "rev-1", "m")
    form.binary(0, floats([1.0]))
    form.open(0, "rev-2", "m")
    form.binary(1, floats([2.0]))
    form.close(0, "rev-2", Close(), "m")
    with pytest.raises(InferBusError) as caught:
        form.body()
    assert caught.value.reason == "internal_error"


async def test_a_chat_model_makes_no_vectors(http: Any, model: str) -> None:
    response = await http.post(PATH, json={"model": model, "input": "x"})
    assert (response.status, (await response.json())["error"]["code"]) == (400, "model_not_supported")

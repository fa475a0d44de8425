"""The Open Inference Protocol over HTTP: a real edge on a real bus, and the test is the worker.

Bodies are as tritonclient.http makes them; its own client for HTTP needs packages that are not installed here.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from inferbus.bus.v1.frame_pb2 import Close, Output
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits, ModelRecord, WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus.inference.v1.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint

LENGTH = "Inference-Header-Content-Length"
STOP = FinishReason.FINISH_REASON_STOP
NUMBERS = np.array([[1, 2], [3.5, -4]], "<f4")


async def serve(worker: Any, model: str, http: aiohttp.ClientSession, revision: str = "rev-1") -> None:
    """The model takes x and gives twice x, under a name of its own on its server."""
    metadata = ModelMetadataResponse(versions=["1"], platform="python")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
    record = ModelRecord(
        name=model, revision=revision, capabilities=["inference"], inference_metadata=metadata.SerializeToString()
    )
    await worker.models.put(model, record)
    async with asyncio.timeout(5):
        while (await http.get(f"/v2/models/{model}")).status != 200:
            await asyncio.sleep(0.01)


def doubled(request: GenerateRequest) -> bytes:
    """What the model's server answers."""
    asked = ModelInferRequest.FromString(request.inference.request)
    x = np.frombuffer(asked.raw_input_contents[0], "<f4")
    answer = ModelInferResponse(model_name="inside", model_version="1", id=asked.id)
    answer.outputs.add(name="y", datatype="FP32", shape=asked.inputs[0].shape)
    answer.raw_output_contents.append((2 * x).tobytes())
    return answer.SerializeToString()


def outputs(request: GenerateRequest, data: bytes, size: int, attempt: int = 1) -> list[Output]:
    return [
        Output(request_id=request.request_id, index=index, data=data[at : at + size], attempt=attempt)
        for index, at in enumerate(range(0, len(data), size))
    ]


def close(request: GenerateRequest, attempt: int = 1) -> Close:
    return Close(request_id=request.request_id, attempt=attempt, finish_reason=STOP)


async def answer(worker: Any, model: str) -> GenerateRequest:
    """As a worker does: parts of the answer in frames, then the end without tokens."""
    request: GenerateRequest = await worker.take(model)
    for one in outputs(request, doubled(request), 20):
        worker.step(outputs=[one], ended=request)
    worker.step(closes=[close(request)], ended=request)
    return request


def asking(x: np.ndarray[Any, Any] = NUMBERS, **fields: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.flatten().tolist()}
    return {"inputs": [tensor], **fields}


def binary(x: np.ndarray[Any, Any] = NUMBERS, **fields: Any) -> tuple[bytes, dict[str, str]]:
    """(body, headers) as tritonclient sends them."""
    raw = x.astype("<f4").tobytes()
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], **fields}).encode()
    return head + raw, {LENGTH: str(len(head))}


@pytest.fixture
def path(model: str) -> str:
    return f"/v2/models/{model}/infer"


async def error_of(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """(status, message) of an answer in the protocol's own form."""
    assert response.headers["Content-Type"].startswith("application/json")
    assert len(response.headers["x-request-id"]) == 36
    body = await response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    return response.status, body["error"]


# --- without a key ----------------------------------------------------------------------------------------------------


async def test_server_and_health_need_no_key_and_models_do(edge: Any, model: str) -> None:
    async with aiohttp.ClientSession(edge.url) as bare:
        server = await (await bare.get("/v2")).json()
        assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("inferbus", True)
        assert await (await bare.get("/v2/health/live")).json() == {"live": True}
        assert await (await bare.get("/v2/health/ready")).json() == {"ready": True}
        for path in (f"/v2/models/{model}", f"/v2/models/{model}/ready", "/v2/models/none/versions/1"):
            assert (await error_of(await bare.get(path)))[0] == 401
        assert (await error_of(await bare.post(f"/v2/models/{model}/infer", data=b"x" * 90_000)))[0] == 401


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/models", "/v2/models/m/config"])
async def test_what_is_not_served_is_said_in_the_protocols_form(http: Any, path: str) -> None:
    assert (await error_of(await http.get(path)))[0] == 404


async def test_methods(http: Any, model: str, path: str) -> None:
    response = await http.get(path)
    assert ((await error_of(response))[0], response.headers["Allow"]) == (405, "POST")
    assert (await error_of(await http.post(f"/v2/models/{model}")))[0] == 405


# --- what a model says ------------------------------------------------------------------------------------------------


async def test_metadata_has_the_public_name_and_the_revision(worker: Any, model: str, http: Any) -> None:
    await serve(worker, model, http)
    for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/rev-1"):
        assert await (await http.get(path)).json() == {
            "name": model, "versions": ["rev-1"], "platform": "python",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
        }  # fmt: skip
    status, said = await error_of(await http.get(f"/v2/models/{model}/versions/1"))
    assert (status, "'rev-1' only" in said) == (404, True)


async def test_a_model_is_ready_while_a_worker_serves_it(worker: Any, model: str, http: Any) -> None:
    await serve(worker, model, http)
    path = f"/v2/models/{model}/ready"
    response = await http.get(path)
    assert ((await error_of(response))[0], response.headers["Retry-After"]) == (503, "1")
    fleet = Registry(worker.bus, "fleet", WorkerRecord)
    await fleet.start()
    active = WorkerState.WORKER_STATE_ACTIVE
    await fleet.put(f"w-{model}", WorkerRecord(worker=f"w-{model}", model=model, state=active))
    async with asyncio.timeout(5):
        while (response := await http.get(path)).status != 200:
            await asyncio.sleep(0.01)
    assert await response.json() == {"name": model, "ready": True}
    await fleet.delete(f"w-{model}")
    await fleet.stop()


async def test_names_may_have_slashes(worker: Any, model: str, http: Any) -> None:
    name = f"acme/{model}"
    await serve(worker, name, http)
    call = asyncio.create_task(http.post(f"/v2/models/{name}/versions/rev-1/infer", json=asking()))
    await answer(worker, name)
    assert (await (await call).json())["model_name"] == name


# --- calls ------------------------------------------------------------------------------------------------------------


async def test_json(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    call = asyncio.create_task(http.post(path, json=asking(id="7")))
    request = await answer(worker, model)
    asked = ModelInferRequest.FromString(request.inference.request)
    assert (asked.model_name, asked.model_version, asked.raw_input_contents) == ("", "", [NUMBERS.tobytes()])
    response = await call
    assert response.headers["Content-Type"].startswith("application/json")
    assert await response.json() == {
        "model_name": model, "model_version": "rev-1", "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 4.0, 7.0, -8.0]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [{"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}],
)
async def test_binary(worker: Any, model: str, http: Any, path: str, fields: dict[str, Any]) -> None:
    await serve(worker, model, http)
    x = np.random.default_rng(1).normal(size=(9_000, 2)).astype("<f4")  # near the bound of this edge's bodies
    data, headers = binary(x, **fields)
    call = asyncio.create_task(http.post(path, data=data, headers=headers))
    request = await worker.take(model)
    for one in outputs(request, doubled(request), 30_000):
        worker.step(outputs=[one], ended=request)
    worker.step(closes=[close(request)], ended=request)
    response = await call
    whole, length = await response.read(), int(response.headers[LENGTH])
    assert json.loads(whole[:length])["outputs"][0]["parameters"] == {"binary_data_size": x.nbytes}
    assert np.array_equal(np.frombuffer(whole[length:], "<f4").reshape(x.shape), 2 * x)


async def test_an_attempt_that_died_is_void(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    call = asyncio.create_task(http.post(path, json=asking()))
    request = await worker.take(model)
    whole = doubled(request)
    worker.step(outputs=outputs(request, b"\xff" * len(whole), 10), ended=request)
    for one in outputs(request, whole, 25, attempt=2):
        worker.step(outputs=[one], attempt=2, ended=request)
        worker.step(outputs=outputs(request, b"\xfe" * 99, 3), ended=request)  # late
    worker.step(closes=[close(request, 2)], attempt=2, ended=request)
    assert (await (await call).json())["outputs"][0]["data"] == [2.0, 4.0, 7.0, -8.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["inputs"][0].update(name="w"), "no 'w' among its inputs: 'x'"),
        (lambda one: one["inputs"][0].update(datatype="FP64"), "the model takes FP32"),
        (lambda one: one["inputs"][0].update(shape=[4, 1]), "the model takes [-1,2]"),
        (lambda one: one["inputs"][0].update(shape=[3, 2]), "24 bytes, and holds 16"),
        (lambda one: one.update(outputs=[{"name": "w"}]), "no 'w' among its outputs: 'y'"),
        (lambda one: one["inputs"][0].update(parameters={"shared_memory_region": "r"}), "not supported"),
        (lambda one: one.pop("inputs"), "inputs"),
    ],
)
async def test_what_the_model_does_not_take(
    worker: Any, model: str, http: Any, path: str, change: Callable[[Any], Any], said: str
) -> None:
    await serve(worker, model, http)
    body = asking()
    change(body)
    status, message = await error_of(await http.post(path, json=body))
    assert (status, said in message) == (400, True), message


async def test_bodies_that_are_none(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    assert (await error_of(await http.post(path, data=b"{")))[0] == 400
    assert (await error_of(await http.post(path, data=b"x" * 200_000)))[0] == 413
    for length in ("-1", "x", "999999999", ""):
        assert (await error_of(await http.post(path, data=b"{}", headers={LENGTH: length})))[0] == 400
    packed = await http.post(path, data=b"{}", headers={"Content-Encoding": "gzip"})
    assert (await error_of(packed))[0] == 400


async def test_what_the_worker_says_is_told_in_the_protocols_form(
    worker: Any, model: str, http: Any, path: str
) -> None:
    await serve(worker, model, http)
    call = asyncio.create_task(http.post(path, json=asking()))
    request = await worker.take(model)
    error = Error(
        error_class=ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, reason="invalid_value", message="Input 'w' is missing."
    )
    failed = Close(
        request_id=request.request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_ERROR, error=error
    )
    worker.step(closes=[failed], ended=request)
    assert await error_of(await call) == (400, "Input 'w' is missing.")


async def test_which_api_a_model_has(worker: Any, model: str, http: Any, edge: Any, rig: Any) -> None:
    path = f"/v2/models/{model}"
    status, said = await error_of(await http.post(f"{path}/infer", json=asking()))
    assert (status, "serves chat (/v1/chat/completions" in said) == (400, True)
    assert (await error_of(await http.get(path)))[0] == 400
    await serve(worker, model, http, "rev-2")
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
        assert (caught.value.code, "/v2/models" in caught.value.message) == ("model_not_supported", True)
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model=model, input="x")
        assert model in [one.id async for one in client.models.list()]


async def test_limits_count_calls_and_a_key_sees_its_models_only(
    worker: Any, model: str, http: Any, path: str, edge: Any, rig: Any
) -> None:
    await serve(worker, model, http)
    secret = mint(model.encode().rjust(32))
    keys = Registry(worker.bus, "keys", KeyRecord)
    await keys.start()
    record = KeyRecord(
        key_id=f"key_{model}", tenant_id="acme", project_id="web", scopes=["inference"], models=[model],
        limits=Limits(requests_per_minute=1, tokens_per_minute=1),
    )  # fmt: skip
    await keys.put(key_hash(secret), record)
    await keys.stop()
    async with rig.session(edge, secret) as mine, asyncio.timeout(10):
        while (await mine.get(f"/v2/models/{model}")).status != 200:
            await asyncio.sleep(0.01)
        for name in ("no-such-model", "another"):
            assert (await error_of(await mine.get(f"/v2/models/{name}")))[0] == 404
        call = asyncio.create_task(mine.post(path, json=asking()))
        await answer(worker, model)
        first = await call
        assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "1")
        assert first.headers["x-ratelimit-remaining-tokens"] == "1"
        second = await mine.post(path, json=asking())
        assert ((await error_of(second))[0], int(second.headers["Retry-After"]) > 30) == (429, True)


async def test_bytes_of_tensors_count_as_tokens_once_they_are_known(
    worker: Any, model: str, http: Any, path: str, edge: Any, rig: Any
) -> None:
    await serve(worker, model, http)
    secret = mint(model.encode().rjust(32, b"t"))
    keys = Registry(worker.bus, "keys", KeyRecord)
    await keys.start()
    record = KeyRecord(
        key_id=f"tokens_{model}", tenant_id="acme", project_id="web", scopes=["inference"],
        limits=Limits(tokens_per_minute=10),
    )  # fmt: skip
    await keys.put(key_hash(secret), record)
    await keys.stop()
    async with rig.session(edge, secret) as mine, asyncio.timeout(10):
        while (await mine.get(f"/v2/models/{model}")).status != 200:
            await asyncio.sleep(0.01)
        call = asyncio.create_task(mine.post(path, json=asking()))
        await answer(worker, model)
        assert (await call).status == 200
        second = await mine.post(path, json=asking())
        status, said = await error_of(second)
        assert (status, "tokens" in said, int(second.headers["Retry-After"]) > 30) == (429, True, True)


async def test_a_client_that_leaves_cancels_its_call(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    call = asyncio.create_task(http.post(path, json=asking()))
    request = await worker.take(model)
    call.cancel()
    assert (await worker.cancel_of(request))[1] == "client_gone"


async def test_a_retry_under_an_idempotency_key_is_the_same_call(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    data, headers = binary(parameters={"binary_data_output": True})
    headers["Idempotency-Key"] = f"k-{model}"
    call = asyncio.create_task(http.post(path, data=data, headers=headers))
    request = await answer(worker, model)
    first = await call
    again = await http.post(path, data=data, headers=headers)
    assert await again.read() == await first.read()
    assert (again.headers[LENGTH], again.headers["Content-Type"]) == (first.headers[LENGTH], "application/octet-stream")
    other = await http.post(path, json=asking(2 * NUMBERS), headers={"Idempotency-Key": f"k-{model}"})
    assert (await error_of(other))[0] == 409
    assert worker.queues[model].empty()
    # By its name it is found as any answer.
    name = first.headers["x-inferbus-stream"]
    assert name.replace("-", "") == request.request_id.hex()
    for query in ("?stream=false", ""):  # it has no events
        found = await http.get(f"/v1/streams/{name}{query}")
        assert await found.read() == await first.read()
        assert found.headers[LENGTH] == first.headers[LENGTH]


async def test_who_joins_a_running_call_gets_all_of_its_answer(worker: Any, model: str, http: Any, path: str) -> None:
    await serve(worker, model, http)
    headers = {"Idempotency-Key": f"j-{model}"}
    first = asyncio.create_task(http.post(path, json=asking(), headers=headers))
    request = await worker.take(model)
    parts = outputs(request, doubled(request), 20)
    worker.step(outputs=parts[:1], ended=request)
    second = asyncio.create_task(http.post(path, json=asking(), headers=headers))
    await asyncio.sleep(0.5)  # it reads the log
    for one in parts[1:]:
        worker.step(outputs=[one], ended=request)
    worker.step(closes=[close(request)], ended=request)
    assert await (await first).json() == await (await second).json()

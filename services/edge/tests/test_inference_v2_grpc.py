"""The Open Inference Protocol over gRPC: tritonclient, unmodified, against a real edge; the test is the worker."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from inferbus.bus.v1.frame_pb2 import Close, Output
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits, ModelRecord
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus.inference.v1.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint
from inferbus_stack.certificates import Authority, Wanted
from inferbus_stack.nats import NatsServer

triton = pytest.importorskip("tritonclient.grpc.aio")
utils = pytest.importorskip("tritonclient.utils")
INFER = "/inference.GRPCInferenceService/ModelInfer"
WORDS = np.array([["a", "ä"]], np.object_)


@pytest.fixture(scope="module")
def key(rig: ModuleType) -> dict[str, str]:
    return {"authorization": f"Bearer {rig.API_KEY}"}


@pytest_asyncio.fixture(scope="module")
async def client(edge: Any) -> AsyncIterator[Any]:
    async with triton.InferenceServerClient(edge.inference_grpc) as one:
        yield one


@pytest_asyncio.fixture
async def words(worker: Any, model: str, client: Any, key: dict[str, str]) -> str:
    """A model that takes two texts and a number, and gives the texts so often."""
    metadata = ModelMetadataResponse(versions=["1"], platform="python")
    metadata.inputs.add(name="texts", datatype="BYTES", shape=[-1, 2])
    metadata.inputs.add(name="times", datatype="INT32", shape=[1])
    metadata.outputs.add(name="texts", datatype="BYTES", shape=[-1, 2])
    record = ModelRecord(
        name=model, revision="rev-1", capabilities=["inference"], inference_metadata=metadata.SerializeToString()
    )
    await worker.models.put(model, record)
    async with asyncio.timeout(5):
        while True:
            try:
                await client.get_model_metadata(model, headers=key)
            except utils.InferenceServerException:
                await asyncio.sleep(0.01)
            else:
                return model


def asked(texts: np.ndarray[Any, Any] = WORDS, times: int = 2) -> list[Any]:
    one, two = triton.InferInput("texts", list(texts.shape), "BYTES"), triton.InferInput("times", [1], "INT32")
    one.set_data_from_numpy(texts)
    two.set_data_from_numpy(np.array([times], np.int32))
    return [one, two]


async def answer(worker: Any, model: str) -> ModelInferRequest:
    """As a worker does, with the real codec of the protocol's strings."""
    request = await worker.take(model)
    call = ModelInferRequest.FromString(request.inference.request)
    texts = utils.deserialize_bytes_tensor(call.raw_input_contents[0]).reshape(call.inputs[0].shape)
    (times,) = np.frombuffer(call.raw_input_contents[1], "<i4")
    made = ModelInferResponse(model_name="inside", model_version="1", id="inside")
    made.outputs.add(name="texts", datatype="BYTES", shape=call.inputs[0].shape)
    made.raw_output_contents.append(utils.serialize_byte_tensor(texts * times).item())
    data = made.SerializeToString()
    parts = [Output(request_id=request.request_id, index=at, data=data[at : at + 1]) for at in range(len(data))]
    stop = Close(request_id=request.request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_STOP)
    worker.step(outputs=parts, ended=request)
    worker.step(closes=[stop], ended=request)
    return call


async def refusal(call: Any) -> tuple[str, str]:
    """(status code, message) of a call by tritonclient that is refused."""
    with pytest.raises(utils.InferenceServerException) as caught:
        await call
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


async def test_server_and_health_need_no_key(client: Any, edge: Any) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert (await client.get_server_metadata()).name == "inferbus"


async def test_a_stranger_holds_no_stream_open(edge: Any) -> None:
    """It would take the place of a caller with a key. Whether the edge serves, it still says."""
    async with grpc.aio.insecure_channel(edge.inference_grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        found = await health.Check(health_pb2.HealthCheckRequest())
        assert found.status == health_pb2.HealthCheckResponse.SERVING
        listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(()))
        for stream in (health.Watch(health_pb2.HealthCheckRequest()), listed):
            assert await asyncio.wait_for(stream.code(), 5) == grpc.StatusCode.UNIMPLEMENTED


async def test_models_need_one(client: Any, words: str) -> None:
    bad = {"authorization": "Bearer ib-" + "a" * 43}
    for headers in (None, bad):
        assert (await refusal(client.is_model_ready(words, headers=headers)))[0] == "UNAUTHENTICATED"
        assert (await refusal(client.get_model_metadata(words, headers=headers)))[0] == "UNAUTHENTICATED"
        assert (await refusal(client.infer(words, asked(), headers=headers)))[0] == "UNAUTHENTICATED"


async def test_metadata_and_readiness(client: Any, words: str, key: dict[str, str]) -> None:
    metadata = await client.get_model_metadata(words, "rev-1", headers=key)
    assert (metadata.name, list(metadata.versions), metadata.platform) == (words, ["rev-1"], "python")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("texts", "BYTES", [-1, 2]), ("times", "INT32", [1]),
    ]  # fmt: skip
    assert not await client.is_model_ready(words, headers=key)  # nobody serves it now
    assert (await refusal(client.get_model_metadata(words, "1", headers=key)))[0] == "NOT_FOUND"
    assert (await refusal(client.get_model_metadata("none", headers=key)))[0] == "NOT_FOUND"


async def test_a_call(client: Any, worker: Any, words: str, key: dict[str, str]) -> None:
    wanted = [triton.InferRequestedOutput("texts")]
    call = asyncio.create_task(
        client.infer(words, asked(), model_version="rev-1", request_id="7", outputs=wanted, headers=key)
    )
    sent = await answer(worker, words)
    assert (sent.model_name, sent.model_version, sent.id) == ("", "", "7")
    found = await call
    response = found.get_response()
    assert (response.model_name, response.model_version, response.id) == (words, "rev-1", "7")
    assert found.as_numpy("texts").tolist() == [[b"aa", "ää".encode()]]


async def test_typed_contents_are_taken_as_well(edge: Any, worker: Any, words: str, key: dict[str, str]) -> None:
    message = ModelInferRequest(model_name=words)
    message.inputs.add(name="texts", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"b"])
    message.inputs.add(name="times", datatype="INT32", shape=[1]).contents.int_contents.append(3)
    async with grpc.aio.insecure_channel(edge.inference_grpc) as channel:
        infer = channel.unary_unary(INFER)
        call = infer(message.SerializeToString(), metadata=tuple(key.items()))
        await answer(worker, words)
        response = ModelInferResponse.FromString(await call)
        names = dict(await call.initial_metadata()) | dict(await call.trailing_metadata())
    assert utils.deserialize_bytes_tensor(response.raw_output_contents[0]).tolist() == [b"aaa", b"bbb"]
    assert names["x-request-id"] == names["x-inferbus-stream"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.pop(0), ""),  # left to the model's server, which knows what may be left out
        (lambda one: one.append(one[0]), "second time"),
        (lambda one: one[1].set_shape([1, 1]), "the model takes [1]"),
        (lambda one: one[0].set_shape([2, 2]), "4 elements, and holds 2"),
        (lambda one: one[0].set_shared_memory("r", 8), "not supported"),
    ],
)
async def test_what_the_model_does_not_take(
    client: Any, worker: Any, words: str, key: dict[str, str], change: Any, said: str
) -> None:
    inputs = asked()
    change(inputs)
    call = asyncio.create_task(client.infer(words, inputs, headers=key))
    if not said:
        await worker.take(words)
        call.cancel()
        return
    code, message = await refusal(call)
    assert (code, said in message) == ("INVALID_ARGUMENT", True), message


async def test_what_is_no_message_and_what_is_not_served(edge: Any, model: str, key: dict[str, str]) -> None:
    async with grpc.aio.insecure_channel(edge.inference_grpc) as channel:

        async def code(method: str, data: bytes) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(data, metadata=tuple(key.items()))
            return str(caught.value.code().name)

        for junk in (b"\xff", b"", b"\x0a", ModelInferRequest(model_name=model).SerializeToString()):
            assert await code(INFER, junk) == "INVALID_ARGUMENT"
        assert await code(INFER, bytes(200_000)) == "RESOURCE_EXHAUSTED"  # above MAX_BODY_BYTES
        assert await code(INFER.replace("ModelInfer", "ModelStreamInfer"), b"") == "UNIMPLEMENTED"
        # What administers is on another port.
        assert await code("/inferbus.edge.v1.EdgeService/ListKeys", b"") == "UNIMPLEMENTED"


async def test_a_message_that_is_compressed_or_does_not_come(
    nats_server: NatsServer, rig: ModuleType, tmp_path: Path, key: dict[str, str]
) -> None:
    """A small one could be made of a large one, and a call without one would be a place taken for ever."""
    async with (
        rig.run_edge(nats_server, tmp_path, INFERENCE_GRPC_ADDRESS="127.0.0.1:0", BODY_TIMEOUT="300ms") as edge,
        grpc.aio.insecure_channel(edge.inference_grpc) as channel,
        asyncio.timeout(20),
    ):
        message = ModelInferRequest(model_name="none", id="a" * 400).SerializeToString()
        infer = channel.unary_unary(INFER)
        plain = infer(message, metadata=tuple(key.items()))
        assert "1 to 256 inputs" in await plain.details()
        small = infer(message, metadata=tuple(key.items()), compression=grpc.Compression.Gzip)
        assert await small.code() == grpc.StatusCode.UNIMPLEMENTED
        silent = channel.stream_unary(INFER)(metadata=tuple(key.items()))
        assert await silent.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "in time" in await silent.details()
        empty = channel.stream_unary(INFER)(metadata=tuple(key.items()))
        await empty.done_writing()
        assert await empty.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_language_model_says_which_api_it_has(client: Any, model: str, key: dict[str, str]) -> None:
    code, said = await refusal(client.infer(model, asked(), headers=key))
    assert (code, "/v1/chat/completions" in said) == ("INVALID_ARGUMENT", True)


async def test_a_limit_is_told_with_the_time_to_wait(client: Any, worker: Any, words: str, edge: Any) -> None:
    secret = mint(words.encode().rjust(32, b"g"))
    keys = Registry(worker.bus, "keys", KeyRecord)
    await keys.start()
    record = KeyRecord(
        key_id=f"key_{words}", tenant_id="acme", project_id="web", scopes=["inference"],
        limits=Limits(requests_per_minute=1),
    )  # fmt: skip
    await keys.put(key_hash(secret), record)
    await keys.stop()
    mine = {"authorization": f"Bearer {secret}"}
    async with asyncio.timeout(10):
        while True:
            try:
                await client.get_model_metadata(words, headers=mine)
            except utils.InferenceServerException:
                await asyncio.sleep(0.01)
            else:
                break
    call = asyncio.create_task(client.infer(words, asked(), headers=mine))
    await answer(worker, words)
    await call
    message = ModelInferRequest(model_name=words)
    message.inputs.add(name="times", datatype="INT32", shape=[1]).contents.int_contents.append(3)
    async with grpc.aio.insecure_channel(edge.inference_grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(INFER)(message.SerializeToString(), metadata=tuple(mine.items()))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for one in status_pb2.Status.FromString(details).details:
        assert one.Unpack(info) or one.Unpack(retry)
    assert info.reason == "RATE_LIMIT_EXCEEDED"
    assert retry.retry_delay.seconds > 30


async def test_a_client_that_leaves_cancels_its_call(client: Any, worker: Any, words: str, key: dict[str, str]) -> None:
    call = asyncio.create_task(client.infer(words, asked(), headers=key))
    request = await worker.take(words)
    call.cancel()
    assert (await worker.cancel_of(request))[1] == "client_gone"


async def test_a_retry_under_an_idempotency_key_is_the_same_call(
    client: Any, worker: Any, words: str, key: dict[str, str]
) -> None:
    headers = {**key, "idempotency-key": f"g-{words}"}
    call = asyncio.create_task(client.infer(words, asked(), headers=headers))
    await answer(worker, words)
    first = await call
    again = await client.infer(words, asked(), headers=headers)
    assert again.as_numpy("texts").tolist() == first.as_numpy("texts").tolist()
    assert (await refusal(client.infer(words, asked(times=3), headers=headers)))[0] == "FAILED_PRECONDITION"
    assert worker.queues[words].empty()


async def test_under_tls_it_shows_the_public_certificate_and_asks_for_none(
    nats_server: NatsServer, rig: ModuleType, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "tls", datetime.now(UTC))
    files = authority.certificates([Wanted("edge-http", ("localhost", "127.0.0.1"), client=False)])["edge-http"]
    settings = {
        "INFERENCE_GRPC_ADDRESS": "127.0.0.1:0", "HTTP_TLS_CERT": str(files.cert), "HTTP_TLS_KEY": str(files.key),
        "IDLE_TIMEOUT": "300ms",
    }  # fmt: skip
    async with rig.run_edge(nats_server, tmp_path, **settings) as edge:
        ca = str(authority.ca)
        async with triton.InferenceServerClient(edge.inference_grpc, ssl=True, root_certificates=ca) as client:
            assert await client.is_server_live()
        async with triton.InferenceServerClient(edge.inference_grpc) as plain:
            assert (await refusal(plain.is_server_live()))[0] == "UNAVAILABLE"
        credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
        async with grpc.aio.secure_channel(edge.inference_grpc, credentials) as channel, asyncio.timeout(10):
            await channel.unary_unary(INFER.replace("ModelInfer", "ServerLive"))(b"")
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # idle: closed by the edge

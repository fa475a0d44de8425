"""A model that writes no text, end to end: tritonclient, the edge, a worker, a real tritonserver, the bill."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import pytest_asyncio

from services.worker.tests.triton_repository import server
from tests.harness.local import Stack, running

pytest.importorskip("tritonclient", reason="the extra triton is not installed")
pytestmark = pytest.mark.skipif(bool(server.missing()), reason=server.missing() or "installed")

import tritonclient.grpc.aio as triton  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

MODEL = "acme/iris"
PATH = f"/v2/models/{MODEL}"
# The first flower of each kind in Fisher's data.
FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]], "<f4")
KINDS = [[0], [1], [2]]


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("inference")
    async with server.triton(folder, "127.0.0.1:1", ["tabular"]) as served:
        variables = {"MODEL": MODEL, "TRITON__URL": served.grpc, "TRITON__SERVER_MODEL": "tabular"}
        environ = {f"INFERBUS_WORKER_{name}": value for name, value in variables.items()}
        async with running(folder / "home", "triton", variables=environ) as started:
            yield started


@pytest.fixture(scope="module")
def key(stack: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.api_key}"}


@pytest_asyncio.fixture(scope="module")
async def http(stack: Stack, key: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.root_url, headers=key, timeout=30) as one:
        async with asyncio.timeout(30):
            while (await one.get(f"{PATH}/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        yield one


@pytest_asyncio.fixture(scope="module")
async def client(stack: Stack, http: httpx.AsyncClient) -> AsyncIterator[Any]:
    async with triton.InferenceServerClient(stack.content["services"]["edge"]["inference_grpc"]) as one:
        yield one


def flowers(values: np.ndarray[Any, Any] = FLOWERS) -> Any:
    made = triton.InferInput("FLOWERS", list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


async def test_over_grpc(client: Any, key: dict[str, str]) -> None:
    metadata = await client.get_model_metadata(MODEL, headers=key)
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("FLOWERS", "FP32", [-1, 4])]
    found = await client.infer(MODEL, [flowers()], headers=key, request_id="7")
    assert found.as_numpy("SPECIES").tolist() == KINDS
    assert found.as_numpy("PROBABILITIES").sum(axis=1) == pytest.approx(1)
    response = found.get_response()
    assert (response.model_name, [response.model_version], response.id) == (MODEL, list(metadata.versions), "7")


async def test_over_http(http: httpx.AsyncClient) -> None:
    metadata = (await http.get(PATH)).json()
    tensor: dict[str, Any] = {"name": "FLOWERS", "shape": [3, 4], "datatype": "FP32"}
    species = {"name": "SPECIES"}
    plain = {"inputs": [{**tensor, "data": FLOWERS.tolist()}], "outputs": [species]}
    answer = await http.post(f"{PATH}/versions/{metadata['versions'][0]}/infer", json=plain)
    assert answer.json()["outputs"] == [{**species, "datatype": "INT64", "shape": [3, 1], "data": [0, 1, 2]}]
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": FLOWERS.nbytes}}],
            "outputs": [{**species, "parameters": {"binary_data": True}}],
        }
    ).encode()
    length = "Inference-Header-Content-Length"
    answer = await http.post(f"{PATH}/infer", content=head + FLOWERS.tobytes(), headers={length: str(len(head))})
    assert np.frombuffer(answer.content[int(answer.headers[length]) :], "<i8").tolist() == [0, 1, 2]


async def test_what_the_model_does_not_take(http: httpx.AsyncClient, client: Any, key: dict[str, str]) -> None:
    """By the edge what is in the metadata, by the model's server what is not: here the largest batch."""
    for inputs, said in (([flowers(FLOWERS[:, :3])], "[-1,4]"), ([flowers(np.tile(FLOWERS, (40, 1)))], "64")):
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(MODEL, inputs, headers=key)
        assert (caught.value.status(), said in caught.value.message()) == ("StatusCode.INVALID_ARGUMENT", True)
        assert "tabular" not in caught.value.message()
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    refused = await http.post("/v1/chat/completions", json=chat)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "model_not_supported")
    (listed,) = (await http.get("/v1/models")).json()["data"]
    assert (listed["id"], listed["capabilities"]) == (MODEL, ["inference"])


async def test_calls_are_metered_and_the_audit_is_clean(stack: Stack, client: Any, key: dict[str, str]) -> None:
    since = time.time_ns() // 1000
    await asyncio.gather(*(client.infer(MODEL, [flowers()], headers=key) for _ in range(20)))
    with pytest.raises(InferenceServerException):  # by the model's server; what the edge refuses has no row
        await client.infer(MODEL, [flowers(np.tile(FLOWERS, (40, 1)))], headers=key)
    code, out = await stack.cli("audit", "--json")
    assert code == 0, out
    columns = "operation, finish_reason, sum(input_tokens + output_tokens) AS tokens, count() AS calls"
    rows = f"FROM requests WHERE model = '{MODEL}' AND accepted_time >= fromUnixTimestamp64Micro({since})"
    query = f"SELECT {columns} {rows} GROUP BY operation, finish_reason ORDER BY calls"
    code, out = await stack.cli("sql", "--format", "JSONEachRow", query)
    assert code == 0, out
    found = [json.loads(line) for line in out.splitlines() if line]
    shown = [(one["operation"], one["finish_reason"], int(one["tokens"]), int(one["calls"])) for one in found]
    assert shown == [("inference", "error", 0, 1), ("inference", "stop", 0, 20)]

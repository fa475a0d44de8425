"""Tokens by way of a worker: a real edge asks real worker processes, found in the fleet."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import grpc
import pytest
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import ChatInput
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.worker.v1.worker_pb2 import TokenizeRequest, TokenizeResponse
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from inferbus_bus.connection import BusConfig
from inferbus_bus.connection import connect as connect_bus
from inferbus_bus.registry import Registry
from inferbus_bus.workers import Workers
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_stack.nats import NatsServer

MODEL = "words"
HI: Any = [{"role": "user", "content": "one two three"}]


@asynccontextmanager
async def running(nats: NatsServer, folder: Path, rig: Any, name: str, model: str) -> AsyncIterator[Any]:
    """A worker process with the synthetic engine, which takes each word for a token."""
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    variables = {
        "NAME": name, "NATS_URL": nats.url, "ENGINE": "synthetic", "MODEL": model, "READY_FILE": str(ready),
        "DIE_WITH_PARENT": "true", "DRAIN_TIMEOUT": "1s", "LEASE_TTL": "30s",
    }  # fmt: skip
    environ = {**os.environ, **{f"INFERBUS_WORKER_{key}": value for key, value in variables.items()}}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_worker", env=environ, stdout=output, stderr=output
        )
    try:
        await rig.until(lambda: ready.exists() or process.returncode is not None, 60)
        assert process.returncode is None, log.read_text()
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.wait()


async def known(http: aiohttp.ClientSession, model: str) -> None:
    """Until the edge answers for ``model``."""
    async with asyncio.timeout(30):
        while (await http.post("/tokenize", json={"model": model, "prompt": "x"})).status != 200:
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module")
async def served(
    nats_server: NatsServer, http: aiohttp.ClientSession, rig: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    async with running(nats_server, tmp_path_factory.mktemp("worker"), rig, "words-1", MODEL):
        await known(http, MODEL)
        yield MODEL


async def post(http: aiohttp.ClientSession, path: str, **fields: Any) -> tuple[int, Any]:
    response = await http.post(path, json=fields)
    return response.status, json.loads(await response.read())


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_prompt_and_back(http: aiohttp.ClientSession, served: str, prefix: str) -> None:
    status, body = await post(http, f"{prefix}/tokenize", model=served, prompt="the quick fox")
    assert (status, body["count"], len(body["tokens"]), body["token_strs"]) == (200, 3, 3, None)
    assert body["max_model_len"] > 0
    status, body = await post(http, f"{prefix}/tokenize", model=served, prompt="a b", return_token_strs=True)
    assert (status, body["token_strs"]) == (200, ["a ", "b "])
    status, text = await post(http, f"{prefix}/detokenize", model=served, tokens=body["tokens"])
    assert status == 200
    assert isinstance(text["prompt"], str)


async def test_messages(http: aiohttp.ClientSession, served: str) -> None:
    status, body = await post(http, "/tokenize", model=served, messages=HI)
    assert (status, body["count"]) == (200, 3)
    status, body = await post(http, "/tokenize", model=served, messages=HI, chat_template="x")
    assert (status, body["error"]["param"]) == (400, "chat_template")


async def test_count_tokens_by_the_anthropic_sdk(edge: Any, rig: Any, served: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=rig.API_KEY, max_retries=0) as client:
        assert (await client.messages.count_tokens(model=served, messages=HI)).input_tokens == 3
        counted = await client.messages.count_tokens(model=served, messages=HI, system="four five")
        assert counted.input_tokens == 5
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.count_tokens(model=served, messages=HI, extra_body={"max_tokens": 5})


async def test_a_model_that_does_not_exist_and_a_model_without_a_worker(
    http: aiohttp.ClientSession, edge: Any, rig: Any, model: str
) -> None:
    status, body = await post(http, "/tokenize", model="no-such-model", prompt="x")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    response = await http.post("/detokenize", json={"model": model, "tokens": [1]})
    assert (response.status, (await response.json())["error"]["code"]) == (503, "no_worker")
    assert int(response.headers["Retry-After"]) >= 1
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=rig.API_KEY, max_retries=0) as client:
        with pytest.raises(anthropic.InternalServerError) as error:
            await client.messages.count_tokens(model=model, messages=HI)
    assert (error.value.status_code, error.value.type) == (503, "overloaded_error")


async def test_without_a_key(edge: Any) -> None:
    async with aiohttp.ClientSession(edge.url) as http:
        for path in ("/tokenize", "/v1/detokenize"):
            assert (await http.post(path, json={})).status == 401


async def test_a_worker_that_was_killed_is_passed_over(
    nats_server: NatsServer, http: aiohttp.ClientSession, rig: Any, tmp_path: Path
) -> None:
    """Its lease still runs, so the fleet has it for a while; then its channel is closed with it."""
    model = "words-twice"
    async with (
        running(nats_server, tmp_path, rig, "words-2", model) as doomed,
        running(nats_server, tmp_path, rig, "words-3", model),
    ):
        await known(http, model)
        doomed.send_signal(signal.SIGKILL)
        await doomed.wait()
        for _ in range(6):  # whoever is asked first
            status, body = await post(http, "/tokenize", model=model, prompt="a b")
            assert (status, body["count"]) == (200, 2)


async def test_the_channel_to_a_worker_that_left_is_closed(nats_server: NatsServer) -> None:
    opened: dict[str, grpc.aio.Channel] = {}

    def connect(address: str) -> grpc.aio.Channel:
        opened[address] = channel(address, None)
        return opened[address]

    async with connect_bus(BusConfig(nats_server.url, "test-fleet")) as bus:
        fleet = Registry(bus, "fleet", WorkerRecord)
        workers = Workers(fleet, connect)
        await workers.start()
        for name, port in (("left", 1), ("stays", 2)):  # nobody listens there
            await fleet.put(
                name,
                WorkerRecord(
                    worker=name, model="away", address=f"127.0.0.1:{port}", state=WorkerState.WORKER_STATE_ACTIVE
                ),
                timedelta(seconds=30),
            )
        async with asyncio.timeout(30):
            while not {"left", "stays"} <= fleet.items().keys():  # others' workers may be there, too
                await asyncio.sleep(0.01)
        with pytest.raises(InferBusError) as error:
            await workers.count("away", ChatInput())
        assert (error.value.error_class, len(opened)) == (ErrorClass.ERROR_CLASS_UNAVAILABLE, 2)
        await fleet.delete("left")
        left, stays = opened["127.0.0.1:1"], opened["127.0.0.1:2"]
        async with asyncio.timeout(30):
            while left.get_state() != grpc.ChannelConnectivity.SHUTDOWN:
                await asyncio.sleep(0.01)
        assert stays.get_state() != grpc.ChannelConnectivity.SHUTDOWN
        await fleet.delete("stays")
        await workers.stop()
        assert stays.get_state() == grpc.ChannelConnectivity.SHUTDOWN


class Slow(WorkerServiceServicer):
    """Answers when it may."""

    def __init__(self) -> None:
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def Tokenize(self, request: TokenizeRequest, context: Any) -> TokenizeResponse:  # noqa: N802
        self.asked.set()
        await self.may.wait()
        return TokenizeResponse(token_id=[1, 2, 3])


@dataclass
class Fleet:
    """Workers of the model "slow" on ports of their own, as an edge has them."""

    registry: Registry[WorkerRecord]
    workers: Workers
    slow: dict[str, Slow]
    channels: dict[str, grpc.aio.Channel]

    async def add(
        self, name: str, address: str, state: WorkerState.ValueType = WorkerState.WORKER_STATE_ACTIVE
    ) -> None:
        record = WorkerRecord(worker=name, model="slow", address=address, state=state)
        await self.registry.put(name, record, timedelta(seconds=30))
        async with asyncio.timeout(30):
            while self.registry.items().get(name) != record:
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def fleet(nats_server: NatsServer) -> AsyncIterator[Fleet]:
    """Of two."""
    channels: dict[str, grpc.aio.Channel] = {}

    def connect(address: str) -> grpc.aio.Channel:
        channels[address] = channel(address, None)
        return channels[address]

    async with connect_bus(BusConfig(nats_server.url, "test-slow")) as bus:
        registry = Registry(bus, "fleet", WorkerRecord)
        workers = Workers(registry, connect)
        await workers.start()
        made = Fleet(registry, workers, {}, channels)
        servers = []
        for name in ("slow-1", "slow-2"):
            server, servicer = grpc.aio.server(), Slow()
            add_WorkerServiceServicer_to_server(servicer, server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            servers.append(server)
            made.slow[address] = servicer
            await made.add(name, address)
        yield made
        for servicer in made.slow.values():
            servicer.may.set()
        for name in ("slow-1", "slow-2"):
            await registry.delete(name)
        await workers.stop()
        for server in servers:
            await server.stop(None)


async def first_asked(fleet: Fleet) -> str:
    async with asyncio.timeout(30):
        while not any(one.asked.is_set() for one in fleet.slow.values()):
            await asyncio.sleep(0.01)
    return next(address for address, one in fleet.slow.items() if one.asked.is_set())


async def test_who_leaves_the_fleet_still_answers_what_it_was_asked(fleet: Fleet) -> None:
    call = asyncio.create_task(fleet.workers.count("slow", ChatInput()))
    address = await first_asked(fleet)
    name = next(name for name, one in fleet.registry.items().items() if one.address == address)
    await fleet.registry.delete(name)
    await asyncio.sleep(0.3)
    assert not call.done()
    fleet.slow[address].may.set()
    assert await asyncio.wait_for(call, 30) == 3
    other = next(one for one in fleet.slow if one != address)
    assert not fleet.slow[other].asked.is_set()
    await fleet.add(name, address)


async def test_workers_that_take_no_work_still_count_tokens(fleet: Fleet) -> None:
    mine = {name: record for name, record in fleet.registry.items().items() if record.address in fleet.slow}
    assert mine
    for name, record in mine.items():  # other tests' workers may still be in it
        await fleet.add(name, record.address, WorkerState.WORKER_STATE_DRAINING)
        fleet.slow[record.address].may.set()
    assert await fleet.workers.count("slow", ChatInput()) == 3
    assert not fleet.workers.active("slow")


async def test_a_channel_that_is_closed_under_a_call_is_no_client_that_left(fleet: Fleet) -> None:
    call = asyncio.create_task(fleet.workers.count("slow", ChatInput()))
    address = await first_asked(fleet)
    for one in fleet.slow.values():
        one.asked.clear()
    await fleet.channels[address].close()
    other = await first_asked(fleet)
    assert other != address, "the next one is asked"
    await fleet.channels[other].close()
    with pytest.raises(InferBusError) as error:
        await asyncio.wait_for(call, 30)
    assert error.value.reason == "no_worker"


async def test_a_client_that_left_is_not_asked_for_elsewhere(fleet: Fleet) -> None:
    call = asyncio.create_task(fleet.workers.count("slow", ChatInput()))
    address = await first_asked(fleet)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not any(one.asked.is_set() for other, one in fleet.slow.items() if other != address)

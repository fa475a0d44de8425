"""An edge as a process of its own on a real broker; the test itself is scheduler and worker, by the real bus."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.frame_pb2 import Close, DeltaLogprobs, Embedding, Fence, Frame, Open, Output
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint, prefix_of
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

from services.edge.tests.budget_desk import Desk, desk_at

API_KEY, ADMIN_KEY = mint(b"a" * 32), mint(b"b" * 32)
_names = itertools.count(1)


@dataclass
class Worker:
    """Takes requests off REQUESTS and answers them with frames, as scheduler and worker do."""

    bus: Bus
    models: Registry[ModelRecord]
    frames: FramePublisher
    queues: dict[str, asyncio.Queue[GenerateRequest]] = field(default_factory=lambda: defaultdict(asyncio.Queue))
    headers: dict[bytes, Any] = field(default_factory=dict)
    cancelled: dict[bytes, tuple[float, str]] = field(default_factory=dict)
    cancels: int = 0
    opened: set[tuple[bytes, int]] = field(default_factory=set)

    def received(self, delivery: Delivery) -> None:
        request = GenerateRequest.FromString(delivery.data)
        self.headers[request.request_id] = delivery.headers
        self.queues[request.context.model].put_nowait(request)
        delivery.ack()

    def cancel_received(self, cancel: Cancel) -> None:
        self.cancels += 1
        self.cancelled.setdefault(cancel.request_id, (clock.monotonic(), cancel.reason))

    async def serve(self, model: str, http: aiohttp.ClientSession) -> None:
        """Register the model and wait until the edge knows it."""
        await self.models.put(model, ModelRecord(name=model, revision="rev-1", owned_by="acme"))
        async with asyncio.timeout(30):
            while (await http.get(f"/v1/models/{model}")).status != 200:
                await asyncio.sleep(0.01)

    async def take(self, model: str) -> GenerateRequest:
        async with asyncio.timeout(30):
            return await self.queues[model].get()

    async def cancel_of(self, request: GenerateRequest) -> tuple[float, str]:
        await until(lambda: request.request_id in self.cancelled)
        return self.cancelled[request.request_id]

    def step(
        self,
        *deltas: tuple[GenerateRequest, int, str],
        attempt: int = 1,
        counts: list[int] | None = None,
        closes: list[Close] | None = None,
        revision: str = "rev-1",
        model: str = "",
        logprobs: list[DeltaLogprobs] | None = None,
        embeddings: list[Embedding] | None = None,
        outputs: list[Output] | None = None,
        ended: GenerateRequest | None = None,
    ) -> None:
        """One frame of (request, first index, text). ``ended``: the request of the closes, if there are no deltas.
        ``model``: a fallback that answers."""
        requests = [request for request, _, _ in deltas]
        texts = [text.encode() for _, _, text in deltas]
        concerned = requests or ([ended] if ended is not None else [])
        edge = concerned[0].edge
        context = RequestContext()
        context.CopyFrom(concerned[0].context)
        context.revision = revision
        context.model = model or context.model
        opens = []
        for request in concerned:
            if (request.request_id, attempt) not in self.opened:
                self.opened.add((request.request_id, attempt))
                opens.append(Open(request_id=request.request_id, reply=request.reply))
        self.frames.publish(
            Frame(
                edge=edge,
                time_us=clock.now_us(),
                contexts=[context],
                request_ids=b"".join(request.request_id for request in requests),
                attempt=[attempt] * len(requests),
                first_index=[index for _, index, _ in deltas],
                token_count=counts or [],
                gap_us=[1000] * len(requests),
                text_size=[len(text) for text in texts],
                token_id=[1] * sum(counts or [1] * len(requests)),
                text=b"".join(texts),
                closes=closes or [],
                opens=opens,
                logprobs=logprobs or [],
                embeddings=embeddings or [],
                outputs=outputs or [],
            )
        )

    def close(
        self,
        request: GenerateRequest,
        tokens: int,
        *,
        attempt: int = 1,
        reason: Any = FinishReason.FINISH_REASON_STOP,
        error: Any = None,
        model: str = "",
    ) -> None:
        """A frame that ends the request."""
        usage = Usage(input_tokens=5, cached_input_tokens=2, output_tokens=tokens)
        close = Close(request_id=request.request_id, attempt=attempt, finish_reason=reason, usage=usage, error=error)
        self.step(closes=[close], attempt=attempt, ended=request, model=model)

    def fence(self, request: GenerateRequest, attempt: int) -> None:
        """What is below that attempt is void from here on, as a scheduler says it."""
        self.frames.publish(Frame(edge=request.edge, fences=[Fence(request_id=request.request_id, attempt=attempt)]))

    def say(self, request: GenerateRequest, texts: list[str], first_index: int = 0) -> int:
        """A frame for each text; returns the next index."""
        for index, text in enumerate(texts, first_index):
            self.step((request, index, text))
        return first_index + len(texts)

    async def answer(self, model: str, texts: list[str]) -> GenerateRequest:
        """Take one request and answer it whole."""
        request = await self.take(model)
        self.close(request, self.say(request, texts))
        return request


@dataclass
class Edge:
    """A running edge process."""

    process: asyncio.subprocess.Process
    url: str
    grpc: str
    log: Path
    inference_grpc: str = ""

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.process.wait()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def run_edge(nats: NatsServer, folder: Path, **settings: str) -> AsyncIterator[Edge]:
    """An edge with these variables besides the needed ones."""
    name = f"edge-{next(_names)}"
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    variables = {
        "NAME": name, "NATS_URL": nats.url, "HTTP_PORT": "0", "READY_FILE": str(ready), "DIE_WITH_PARENT": "true",
        "DRAIN_TIMEOUT": "1s", "MAX_CHANGES_PER_MINUTE": "100000", **settings,
    }  # fmt: skip
    environ = {**os.environ, **{f"INFERBUS_EDGE_{key}": value for key, value in variables.items()}}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_edge", env=environ, stdout=output, stderr=output
        )
    edge = Edge(process, "", "", log)
    try:
        await until(lambda: ready.exists() or process.returncode is not None, 60)
        assert process.returncode is None, log.read_text()
        addresses = json.loads(ready.read_text())
        edge.url, edge.grpc = f"http://{addresses['http']}", addresses["grpc"]
        edge.inference_grpc = addresses.get("inference_grpc", "")
        yield edge
    finally:
        await edge.stop()


@pytest.fixture(scope="session")
def rig() -> ModuleType:
    """This module: what test modules need besides fixtures (they cannot import each other)."""
    return sys.modules[__name__]


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[NatsServer]:
    """A nats-server with streams and the two keys."""
    async with NatsServer(folder / "nats") as server:
        async with connect(BusConfig(server.url, "admin")) as admin:
            await ensure_streams(admin)
            keys = Registry(admin, "keys", KeyRecord)
            await keys.start()
            for secret, scopes in ((API_KEY, ["inference"]), (ADMIN_KEY, ["inference", "admin"])):
                record = KeyRecord(
                    key_id=f"key_{scopes[-1]}", tenant_id="acme", project_id="web", prefix=prefix_of(secret),
                    scopes=scopes, create_time=clock.timestamp(clock.now_us()),
                )  # fmt: skip
                await keys.put(key_hash(secret), record)
            await keys.stop()
        yield server


@asynccontextmanager
async def run_worker(nats: NatsServer) -> AsyncIterator[Worker]:
    async with connect(BusConfig(nats.url, "test-worker")) as bus:
        models = Registry(bus, "models", ModelRecord)
        await models.start()
        frames = FramePublisher(BusConfig(nats.url, "test-worker-frames"), worker="w", boot=clock.now_us())
        await frames.start()
        worker = Worker(bus, models, frames)
        queue = WorkQueue(
            bus, stream="REQUESTS", durable="scheduler", subject="req.>", on_delivery=worker.received, in_flight=1000
        )
        await queue.start()
        await bus.subscribe(Cancel, worker.cancel_received)
        yield worker
        await queue.stop()
        await frames.stop()
        await models.stop()


@pytest_asyncio.fixture(scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """A broker of this room's own: its tests take from REQUESTS, which other rooms' tests do as well."""
    async with broker(tmp_path_factory.mktemp("edge-nats")) as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def worker(nats_server: NatsServer) -> AsyncIterator[Worker]:
    async with run_worker(nats_server) as one:
        yield one


@pytest_asyncio.fixture(scope="session")
async def edge(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge that most tests share: short keep-alive interval, small bounds."""
    settings = {
        "KEEPALIVE_INTERVAL": "400ms", "MAX_BODY_BYTES": "100000", "MAX_UNSENT_BYTES": "200000", "ORPHAN_HOLD": "4s",
        "INFERENCE_GRPC_ADDRESS": "127.0.0.1:0",
    }  # fmt: skip
    async with run_edge(nats_server, tmp_path_factory.mktemp("edge"), **settings) as running:
        yield running


@pytest.fixture
async def desk(nats_server: NatsServer) -> AsyncIterator[Desk]:
    async with desk_at(nats_server) as made:
        yield made


@pytest_asyncio.fixture(scope="session")
async def http(edge: Edge) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(edge) as one:
        yield one


def session(edge: Edge, key: str = API_KEY) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        edge.url, headers={"Authorization": f"Bearer {key}"}, timeout=aiohttp.ClientTimeout(total=20)
    )


@pytest_asyncio.fixture
async def model(worker: Worker, http: aiohttp.ClientSession) -> str:
    """A model of the test's own, which the edge serves."""
    name = f"model-{next(_names)}"
    await worker.serve(name, http)
    return name


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}

"""Real parts: a nats-server of this room's own, the scheduler as a process, and tests that play worker and edge on the
bus as those would."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from inferbus.bus.v1.control_pb2 import Heartbeat, Recall, RunningRequests, Served
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.scheduler.v1.scheduler_pb2 import ExplainRequest, ExplainResponse
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.consumers import delete_consumer
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.ids import uuid7
from inferbus_contracts.subjects import work_subject
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_stack.nats import NatsServer
from nats.errors import BadSubscriptionError

_names = itertools.count(1)
# Longer than anything stands still here. A test that needs one to end says how long it is.
LEASE = timedelta(seconds=60)


async def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


class SchedulerProcess:
    """``python -m inferbus_scheduler`` on ``url``. Its own leases last for long, if a test does not say otherwise."""

    def __init__(self, folder: Path, url: str, name: str = "scheduler-under-test") -> None:
        self._folder = folder
        self._url = url
        self.name = name
        self._process: asyncio.subprocess.Process | None = None
        self._starts = 0
        self._token: str | None = None
        self.ready: dict[str, str] = {}

    async def start(self, **settings: str) -> None:
        self._starts += 1
        self._token = settings.get("RPC_TOKEN")
        ready = self._folder / f"ready-{self.name}-{self._starts}.json"
        variables = {
            "NAME": self.name, "NATS_URL": self._url, "READY_FILE": str(ready), "ACK_WAIT": "1s",
            "LEASE_TTL": "60s", "METRICS_ADDRESS": "127.0.0.1:0", "DIE_WITH_PARENT": "true", **settings,
        }  # fmt: skip
        environ = {**os.environ, **{f"INFERBUS_SCHEDULER_{name}": value for name, value in variables.items()}}
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inferbus_scheduler", env=environ, stdout=log, stderr=log
            )
        await until(lambda: ready.exists() or self._process.returncode is not None, 60.0)
        assert ready.exists(), self.log_file.read_text()
        self.ready = json.loads(ready.read_text())

    @property
    def log_file(self) -> Path:
        return self._folder / f"{self.name}.log"

    async def says(self, asked: ExplainRequest, holds: Callable[[ExplainResponse], object]) -> None:
        """Returns when its answer is one that ``holds``, or at once if the process has ended."""
        if self._process is None:
            return
        async with asyncio.timeout(30), channel(self.ready["grpc"], self._token) as grpc_channel:
            stub = SchedulerServiceStub(grpc_channel)
            while True:
                try:
                    if holds(await stub.Explain(asked)):
                        return
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                await asyncio.sleep(0.01)

    def send(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    async def end(self, how: signal.Signals) -> int | None:
        """Returns the exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.send_signal(how)
        return await process.wait()


class Worker:
    """Plays a worker: a lease, heartbeats, WORK. It 'generates' until told to finish, and publishes no frames. What it
    is told to give back it drops."""

    def __init__(self, bus: Bus, name: str, model: str, capacity: int, revision: str = "r1") -> None:
        self.bus, self.name, self.capacity = bus, name, capacity
        self.record = WorkerRecord(
            worker=name, boot=clock.now_us(), model=model, revision=revision, engine="synthetic", capacity=capacity,
            state=WorkerState.WORKER_STATE_ACTIVE,
        )  # fmt: skip
        self.running: dict[bytes, Delivery] = {}
        self.attempts: dict[bytes, int] = {}
        self.recalled: list[tuple[bytes, int]] = []
        self._ended: list[bytes] = []
        self._served: list[Served] = []
        self._told_at = 0.0
        self.headers: dict[bytes, dict[str, str]] = {}
        self.taken: list[bytes] = []
        self.placed: list[Work] = []
        self._sequences: set[int] = set()
        self.most = 0
        # What it says that each of its generations has made.
        self.made = 0
        self.work_sequence = 0
        self.silent = False
        self.lease = LEASE
        self.failed: dict[bytes, int] = {}
        self._fleet = Registry(bus, "fleet", WorkerRecord)
        self._models = Registry(bus, "models", ModelRecord)
        self._queue: WorkQueue | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, **model: object) -> None:
        await self._fleet.start()
        await self._models.start()
        self._unsubscribe = await self.bus.subscribe(Recall, self._recall, Recall(worker=self.name))
        await self._open()
        await self._models.put(self.record.model, ModelRecord(name=self.record.model, **model))
        await self.register()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._renew())]

    async def _open(self) -> None:
        """The consumer of this incarnation."""
        if self._queue is not None:
            await self._queue.stop()
            await self._queue.close()
        with suppress(StreamApiError):
            await delete_consumer(self.bus, "WORK", self.name)
        self._queue = WorkQueue(
            self.bus, stream="WORK", durable=self.name, subject=work_subject(self.name, self.record.boot),
            on_delivery=self._take, in_flight=self.capacity + 100, ack_wait=timedelta(seconds=2),
        )  # fmt: skip
        await self._queue.start()

    async def restart(self) -> None:
        """As after a kill: another incarnation, which knows of nothing."""
        self.running.clear()
        self.work_sequence = 0
        self._told_at = 0.0
        self.record.boot += 1
        await self._open()
        await self.register()

    async def register(self, **fields: object) -> None:
        for name, value in fields.items():
            setattr(self.record, name, value)
        await self._fleet.put(self.name, self.record, ttl=self.lease)

    async def leave(self) -> None:
        """As if killed: no heartbeat, no renewal; the lease is taken away at once."""
        await self.stop()
        await self._fleet.delete(self.name)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._queue.stop()
        await self._queue.close()
        with suppress(BadSubscriptionError):  # it had left before
            await self._unsubscribe()
        await self._fleet.stop()
        await self._models.stop()

    def finish(self, request_id: bytes, output_tokens: int = 0) -> None:
        self.running.pop(request_id).ack()
        self._ended.append(request_id)
        if output_tokens:
            work = next(each for each in reversed(self.placed) if each.request.request_id == request_id)
            context = work.request.context
            self._served.append(
                Served(
                    tenant_id=context.tenant_id, project_id=context.project_id, output_tokens=output_tokens,
                    priority_class=work.request.priority_class,
                )
            )  # fmt: skip
        self.beat()

    def fail(self, request_id: bytes) -> None:
        """It cannot do it, and tells nobody but schedulers."""
        self.failed[request_id] = self.attempts[request_id]
        self.beat()

    def beat(self) -> None:
        if self.silent:
            return
        beat = Heartbeat(
            worker=self.name, boot=self.record.boot, active=len(self.running), work_sequence=self.work_sequence,
            ended_ids=b"".join(self._ended), served=self._served,
            failed_ids=b"".join(self.failed), failed_attempts=self.failed.values(),
        )  # fmt: skip
        self._ended, self._served = [], []
        if clock.monotonic() >= self._told_at + 1.0:
            self._told_at = clock.monotonic()
            ids = list(self.running)
            beat.running.CopyFrom(
                RunningRequests(
                    request_ids=b"".join(ids), attempts=[self.attempts[each] for each in ids],
                    output_tokens=[self.made] * len(ids),
                )
            )  # fmt: skip
        self.bus.send(beat)

    def _recall(self, recall: Recall) -> None:
        if recall.boot != self.record.boot:
            return
        for at, attempt in enumerate(recall.attempts):
            request_id = recall.request_ids[16 * at : 16 * at + 16]
            self.recalled.append((request_id, attempt))
            if self.attempts.get(request_id) == attempt and request_id in self.running:
                self.failed.pop(request_id, None)
                self.finish(request_id)

    def _take(self, delivery: Delivery) -> None:
        work = Work.FromString(delivery.data)
        request_id = work.request.request_id
        if delivery.sequence in self._sequences:
            # The same placement again: a killed broker forgets deliveries (they count from 1 anew) and acks.
            if request_id in self.running:
                self.running[request_id] = delivery
            else:
                delivery.ack()
            return
        self.running[request_id] = delivery
        self.attempts[request_id] = work.attempt or 1
        self.headers[request_id] = dict(delivery.headers)
        self.taken.append(request_id)
        self._sequences.add(delivery.sequence)
        self.placed.append(work)
        self.most = max(self.most, len(self.running))
        self.work_sequence = max(self.work_sequence, delivery.sequence)
        self.beat()

    async def _beat(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(0.1)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            with suppress(InferBusError):
                await self.register()


class Edge:
    """Plays an edge: publishes requests, reads the frames that are for it."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus, self.name = bus, name
        self.closes: dict[bytes, Close] = {}
        self.closed: list[bytes] = []
        self.frames: list[Frame] = []
        self._publisher = Publisher(bus)
        self._reader = FrameReader(bus, edge=name, on_frame=self._received)

    async def start(self) -> None:
        await self._publisher.start()
        await self._reader.start()

    async def stop(self) -> None:
        await self._reader.stop()

    def request(
        self, model: str, *, tenant: str = "t", expires_in: float = 600.0, priority: int = 1
    ) -> GenerateRequest:
        now_us = clock.now_us()
        return GenerateRequest(
            request_id=uuid7(now_us // 1000, os.urandom(10)),
            context=RequestContext(tenant_id=tenant, project_id="p", key_id="k", model=model),
            edge=self.name,
            priority_class=PriorityClass.ValueType(priority),
            accepted_time=clock.timestamp(now_us),
            expire_time=clock.timestamp(now_us + int(expires_in * 1e6)),
        )

    async def submit(self, model: str, headers: dict[str, str] | None = None, **fields: object) -> bytes:
        message = self.request(model, **fields)  # type: ignore[arg-type]
        await self.publish(message, headers)
        return message.request_id

    async def publish(self, message: GenerateRequest, headers: dict[str, str] | None = None) -> None:
        await self._publisher.publish(message, headers, timeout=20.0)

    def _received(self, frame: Frame, sequence: int) -> None:
        self.frames.append(frame)
        for close in frame.closes:
            self.closes[close.request_id] = close
            self.closed.append(close.request_id)


class Stage:
    """One nats-server, one scheduler, and players that are stopped at the end."""

    def __init__(
        self, server: NatsServer, bus: Bus, scheduler: SchedulerProcess, stack: AsyncExitStack, folder: Path
    ) -> None:
        self.server, self.bus, self.scheduler = server, bus, scheduler
        self._schedulers = [scheduler]
        self._stack = stack
        self._folder = folder

    async def another(self, name: str, **settings: str) -> SchedulerProcess:
        """One more scheduler beside the first."""
        scheduler = SchedulerProcess(self._folder, self.server.url, name)
        self._stack.push_async_callback(scheduler.end, signal.SIGKILL)
        await scheduler.start(**settings)
        self._schedulers.append(scheduler)
        return scheduler

    def model(self) -> str:
        return f"model-{next(_names)}"

    async def worker(
        self, model: str, capacity: int = 4, name: str = "", revision: str = "r1", address: str = "", **of_model: object
    ) -> Worker:
        """All schedulers have heard it when this returns."""
        worker = Worker(self.bus, name or f"worker-{next(_names)}", model, capacity, revision)
        worker.record.address = address
        await worker.start(**of_model)
        self._stack.push_async_callback(worker.stop)

        def heard(answer: ExplainResponse) -> bool:
            return any(each.worker == worker.name and each.reason != "lease_expired" for each in answer.verdicts)

        for scheduler in self._schedulers:
            await scheduler.says(ExplainRequest(model=model), heard)
        return worker

    async def edge(self) -> Edge:
        edge = Edge(self.bus, f"edge-{next(_names)}")
        await edge.start()
        self._stack.push_async_callback(edge.stop)
        return edge

    async def known(self, model: str) -> None:
        """A model in the registry that nobody serves; all schedulers have seen it when this returns."""
        models = Registry(self.bus, "models", ModelRecord)
        await models.start()
        await models.put(model, ModelRecord(name=model))
        await models.stop()
        for scheduler in self._schedulers:
            await scheduler.says(ExplainRequest(model=model), lambda answer: answer.reason != "model_not_found")

    async def queued(self, *request_ids: bytes) -> None:
        """Returns when the first scheduler has read these, and they wait there. What is submitted comes by REQUESTS and
        what workers and clients do by other ways, so neither is before the other by itself."""
        for request_id in request_ids:
            await self.scheduler.says(ExplainRequest(request_id=request_id), lambda answer: answer.outcome == "queued")

    async def requests_left(self) -> int:
        """What is on REQUESTS, acknowledged by nobody."""
        info = await self.bus.api("STREAM.INFO.REQUESTS")
        return int(info["state"]["messages"])

    async def nothing_left(self, timeout: float = 30.0, but: int = 0) -> None:
        async with asyncio.timeout(timeout):
            while await self.requests_left() > but:
                await asyncio.sleep(0.05)


NewStage = Callable[..., Awaitable[Stage]]


@pytest_asyncio.fixture
async def new_stage(tmp_path: Path) -> AsyncIterator[NewStage]:
    """Builds a stage; settings are the scheduler's variables without their prefix."""
    async with AsyncExitStack() as stack:

        async def build(**settings: str) -> Stage:
            server = await stack.enter_async_context(NatsServer(tmp_path / "nats"))
            bus = await stack.enter_async_context(connect(BusConfig(server.url, "players")))
            await ensure_streams(bus)
            scheduler = SchedulerProcess(tmp_path, server.url)
            stack.push_async_callback(scheduler.end, signal.SIGKILL)
            await scheduler.start(**settings)
            return Stage(server, bus, scheduler, stack, tmp_path)

        yield build


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[None]]:
    return until

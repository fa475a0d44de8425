"""(m) The scheduler's memory over a million requests: a real scheduler process on a real nats-server.

Nobody generates anything: two players in this process take the work over and end it at once, with the heartbeats and
cache events of a worker. What is kept per request, tenant, prefix or cancel would show, since no two requests share an
id or a prefix, and tenants come and go.
"""

import asyncio
import os
import random
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil
from inferbus.bus.v1.control_pb2 import CacheEvents, Cancel, Heartbeat, Served
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Outcome, PubAck, Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.ids import uuid7
from inferbus_contracts.prefixes import HASH_BYTES
from inferbus_contracts.subjects import work_subject
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

from bench.measure import cpu_seconds, table

MODEL, EDGE = "m", "edge-0"
WORKERS, CAPACITY = 2, 512
# Published, and not taken over by a worker yet.
AT_ONCE = 400
# Chunks of a request's prefix; so many a worker holds; requests until the next tenant; one in so many is cancelled.
CHUNKS, HELD_CHUNKS, OF_A_TENANT, CANCELLED = 8, 4096, 1000, 20
_BEAT_SECONDS, _LEASE_SECONDS = 0.02, 2.0


class Ends:
    """Requests that the scheduler ends itself, as it may where the machine is short of CPU."""

    def __init__(self, taken: asyncio.Semaphore) -> None:
        self._taken = taken
        self.count = 0

    def frame(self, frame: Frame, _: int) -> None:
        self.count += len(frame.closes)
        for _close in frame.closes:
            self._taken.release()


class Player:
    """A worker that ends all that it gets at once, and counts it on ``taken``."""

    def __init__(self, bus: Bus, name: str, taken: asyncio.Semaphore) -> None:
        self._bus = bus
        self._taken = taken
        self._record = WorkerRecord(
            worker=name, boot=clock.now_us(), model=MODEL, revision="r", engine="synthetic", capacity=CAPACITY,
            state=WorkerState.WORKER_STATE_ACTIVE,
        )  # fmt: skip
        self._sequence = 0
        self._ended: list[bytes] = []
        self._served: dict[str, int] = {}
        self._stored: list[bytes] = []
        self._chunks: deque[bytes] = deque()
        self._events = 0
        self.count = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        name, boot = self._record.worker, self._record.boot
        fleet = Registry(self._bus, "fleet", WorkerRecord)
        queue = WorkQueue(
            self._bus, stream="WORK", durable=name, subject=work_subject(name, boot), on_delivery=self._take,
            in_flight=CAPACITY + 100,
        )  # fmt: skip
        await fleet.start()
        await queue.start()
        renew_at = 0.0
        while True:
            if clock.monotonic() >= renew_at:
                renew_at = clock.monotonic() + _LEASE_SECONDS / 4
                await fleet.put(name, self._record, ttl=timedelta(seconds=_LEASE_SECONDS))
                self._tell_cache()
            self._beat()
            await asyncio.sleep(_BEAT_SECONDS)

    def _take(self, delivery: Delivery) -> None:
        delivery.ack()
        if delivery.sequence <= self._sequence:
            return
        self._sequence = delivery.sequence
        request = Work.FromString(delivery.data).request
        self._ended.append(request.request_id)
        self._served[request.context.tenant_id] = self._served.get(request.context.tenant_id, 0) + 1
        self._stored.append(request.prefix)
        self.count += 1
        if self.count % CANCELLED == 0:
            self._bus.send(Cancel(request_id=request.request_id, reason="client_gone"))
        self._taken.release()

    def _beat(self) -> None:
        served = [
            Served(
                tenant_id=tenant, project_id="p", priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
                input_tokens=100 * count, output_tokens=100 * count,
            )
            for tenant, count in self._served.items()
        ]  # fmt: skip
        beat = Heartbeat(
            worker=self._record.worker, boot=self._record.boot, work_sequence=self._sequence,
            ended_ids=b"".join(self._ended), served=served,
        )  # fmt: skip
        self._ended, self._served = [], {}
        self._bus.send(beat)

    def _tell_cache(self) -> None:
        stored, self._stored = b"".join(self._stored), []
        self._chunks += [stored[at : at + HASH_BYTES] for at in range(0, len(stored), HASH_BYTES)]
        removed = [self._chunks.popleft() for _ in range(len(self._chunks) - HELD_CHUNKS)]
        self._events += 1
        self._bus.send(
            CacheEvents(
                worker=self._record.worker, boot=self._record.boot, sequence=self._events, stored=stored,
                removed=b"".join(removed), all=self._events == 1,
            )
        )  # fmt: skip


def request(number: int, source: random.Random) -> GenerateRequest:
    now_us = clock.now_us()
    tenant = f"tenant-{number // OF_A_TENANT}-{number % 4}"
    return GenerateRequest(
        request_id=uuid7(now_us // 1000, source.randbytes(10)),
        context=RequestContext(tenant_id=tenant, project_id="p", key_id="k", model=MODEL),
        edge=EDGE, priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        accepted_time=clock.timestamp(now_us), expire_time=clock.timestamp(now_us + 600_000_000),
        prefix=source.randbytes(CHUNKS * HASH_BYTES),
        chat=ChatInput(messages=[ChatMessage(role="user", content="word " * 100)]),
    )  # fmt: skip


async def publish(publisher: Publisher, count: int, taken: asyncio.Semaphore) -> None:
    """As fast as they are taken over. RuntimeError if the broker does not take one."""
    source = random.Random(1)
    failed: list[Outcome] = []

    def stored(outcome: Outcome) -> None:
        if not isinstance(outcome, PubAck):
            failed.append(outcome)

    for number in range(count):
        await taken.acquire()
        if failed:
            raise RuntimeError(f"a request was not stored: {failed[0]}")
        publisher.publish_then(request(number, source), stored)


@asynccontextmanager
async def scheduler(url: str, folder: Path) -> AsyncIterator[int]:
    """``python -m inferbus_scheduler``: its process id, once it is ready."""
    ready = folder / "ready.json"
    settings = {
        "NAME": "scheduler", "NATS_URL": url, "READY_FILE": str(ready), "METRICS_ADDRESS": "127.0.0.1:0",
        "DIE_WITH_PARENT": "true",
    }  # fmt: skip
    environ = {**os.environ, **{f"INFERBUS_SCHEDULER_{name}": value for name, value in settings.items()}}
    with (folder / "scheduler.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_scheduler", env=environ, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(60):
            while not ready.exists():
                if process.returncode is not None:
                    raise RuntimeError((folder / "scheduler.log").read_text())
                await asyncio.sleep(0.05)
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measured(bus: Bus, pid: int, requests: int, every: int) -> list[tuple[int, float, float, float]]:
    """At each sample: requests so far, seconds, MiB, CPU seconds of the scheduler."""
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    await models.put(MODEL, ModelRecord(name=MODEL))
    publisher = Publisher(bus)
    await publisher.start()
    taken = asyncio.Semaphore(AT_ONCE)
    ends = Ends(taken)
    await FrameReader(bus, edge=EDGE, on_frame=ends.frame).start()
    players = [Player(bus, f"worker-{number}", taken) for number in range(WORKERS)]
    samples: list[tuple[int, float, float, float]] = []
    process, began, spent = psutil.Process(pid), perf_counter(), cpu_seconds(pid)

    def sample(done: int) -> None:
        memory = process.memory_info().rss / 2**20
        samples.append((done, perf_counter() - began, memory, cpu_seconds(pid) - spent))
        print(f"{done:,} requests, {memory:.1f} MiB", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(player.run()) for player in players]
        publishing = group.create_task(publish(publisher, requests, taken))
        sample(0)
        while samples[-1][0] < requests:
            done = ends.count + sum(player.count for player in players)
            if done >= min(requests, samples[-1][0] + every):
                sample(done)
            await asyncio.sleep(0.05)
        await publishing
        for task in tasks:
            task.cancel()
    return samples


def growth(samples: list[tuple[int, float, float, float]]) -> float:
    """MiB per 100,000 requests, from the sample at a fifth of the way on (least squares): until then what is bounded
    fills up."""
    late = [(done, memory) for done, _, memory, _ in samples if done >= samples[-1][0] / 5]
    mean_done, mean_memory = (sum(column) / len(late) for column in zip(*late, strict=True))
    spread = sum((done - mean_done) ** 2 for done, _ in late)
    return 1e5 * sum((done - mean_done) * (memory - mean_memory) for done, memory in late) / spread if spread else 0.0


async def run(requests: int = 1_000_000, every: int = 50_000) -> str:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        server = await stack.enter_async_context(NatsServer(folder / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "bench")))
        await ensure_streams(bus)
        pid = await stack.enter_async_context(scheduler(server.url, folder))
        samples = await measured(bus, pid, requests, every)
    rows = []
    for before, after in pairwise(samples):
        count, seconds, cpu = (after[at] - before[at] for at in (0, 1, 3))
        rows.append(
            (
                f"{after[0]:,}",
                f"{after[1]:.0f}",
                f"{count / seconds:,.0f}",
                f"{cpu / count * 1e6:.0f}",
                f"{after[2]:.1f}",
            )
        )
    columns = ("requests", "seconds", "requests a second", "CPU us each", "RSS MiB")
    title = f"The scheduler's memory over {samples[-1][0]:,} requests, {WORKERS} workers that end each at once (played)"
    late = growth(samples)
    return f"{table(title, columns, rows)}\nFrom the first fifth on: {late:+.2f} MiB per 100,000 requests.\n"

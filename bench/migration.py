"""(h) The scheduler's part of the gap when a worker dies: its generations moved, against how far they had come."""

import random
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_contracts.recovery import Recovered
from inferbus_runtime import clock
from inferbus_scheduler.core.migration import Fate, Orphan, Reason, fate
from inferbus_scheduler.moving import Mover
from inferbus_stack.nats import NatsServer

from bench.measure import table

STEPS = ("keep", "fence", "follow")
EDGES = 2


async def run(lengths: tuple[int, ...] = (0, 100, 500, 1000, 2000, 5000), wide: int = 64) -> str:
    """``wide`` requests on one worker, over two edges, each with so many tokens: one frame an edge and step."""
    rows = [await _one(length, wide) for length in lengths]
    columns = (
        "tokens each", "frames", "read ms", "copies ms", "fence ms", "log ms", "back to the queue ms", "all ms",
        "us a frame",
    )  # fmt: skip
    return table(f"{wide} generations of one worker moved by one scheduler", columns, rows)


async def _one(length: int, wide: int) -> list[object]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        server = await stack.enter_async_context(NatsServer(Path(folder) / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "scheduler")))
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        ids = await _place(publisher, wide)
        worker = FramePublisher(BusConfig(server.url, "worker"), worker="worker", boot=1)
        await worker.start()
        await _generate(worker, ids, length)
        await worker.stop()
        frames = FramePublisher(BusConfig(server.url, "fences"), worker="scheduler", boot=1)
        await frames.start()
        stack.push_async_callback(frames.stop)
        mover = Mover(bus=bus, publisher=publisher, frames=frames, owns=lambda model: True)
        times = [perf_counter()]
        move = await mover.read(("worker", 1), Reason.WORKER_LOST)
        times.append(perf_counter())
        for step in STEPS:
            await getattr(mover, step)(move)
            times.append(perf_counter())
        now_us = clock.now_us()

        def decide(orphan: Orphan, found: Recovered) -> Fate:
            return fate(orphan, found, Reason.WORKER_LOST, cancelled=False, patience=2, now_us=now_us)

        await mover.settle(move, decide, lambda moved: None)
        times.append(perf_counter())
        if any(len(found.ids) != length for found in move.found.values()):
            raise RuntimeError("the log was not read right")
        parts = [f"{(after - before) * 1e3:.1f}" for before, after in pairwise(times)]
        count = length * EDGES
        each = f"{(times[4] - times[3]) * 1e6 / count:.0f}" if count else "-"
        return [length, count, *parts, f"{(times[-1] - times[0]) * 1e3:.1f}", each]


async def _place(publisher: Publisher, wide: int) -> list[bytes]:
    source = random.Random(1)
    ids = []
    for number in range(wide):
        now = clock.timestamp(clock.now_us())
        request = GenerateRequest(
            request_id=uuid7(clock.now_us() // 1000, source.randbytes(10)),
            context=RequestContext(tenant_id="bench", project_id="p", key_id="k", model="synthetic"),
            edge=f"edge-{number % EDGES}", priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE, accepted_time=now,
            chat=ChatInput(messages=[ChatMessage(role="user", content="word " * 400)]),
        )  # fmt: skip
        await publisher.publish(Work(request=request, worker="worker", boot=1, attempt=1, placed_time=now))
        ids.append(request.request_id)
    return ids


async def _generate(worker: FramePublisher, ids: list[bytes], length: int) -> None:
    context = RequestContext(tenant_id="bench", project_id="p", key_id="k", model="synthetic", revision="r")
    for index in range(length):
        for edge in range(EDGES):
            ours = ids[edge::EDGES]
            wide = len(ours)
            worker.publish(
                Frame(
                    edge=f"edge-{edge}", time_us=clock.now_us(), contexts=[context], request_ids=b"".join(ours),
                    first_index=[index] * wide, gap_us=[20_000] * wide, text_size=[5] * wide,
                    token_id=range(1000, 1000 + wide), text=b"word " * wide,
                )
            )  # fmt: skip
        await worker.room()

"""A worker as its own process, and an edge's view of what it says."""

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.frame_pb2 import Close, Frame, Output, TokenLogprob
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import Bus
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import uuid7
from inferbus_contracts.recovery import begun, fold
from inferbus_contracts.subjects import subject_token
from inferbus_runtime import clock


class WorkerProcess:
    """``python -m inferbus_worker`` with a name of its own, or another ``program`` that runs one. Its lease is so long
    that no machine which stands still for a moment takes it: tests of the lease set one of their own."""

    program: tuple[str, ...] = ("-m", "inferbus_worker")

    def __init__(self, name: str, nats_url: str, folder: Path, **variables: str) -> None:
        self.name = name
        self.ready_file = folder / f"{name}.json"
        self._variables = {
            "NAME": name, "NATS_URL": nats_url, "READY_FILE": str(self.ready_file), "ENGINE": "synthetic",
            "SYNTHETIC__ITL": "5ms", "LEASE_TTL": "60s", **variables,
        }  # fmt: skip
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environ = {f"INFERBUS_WORKER_{name}": value for name, value in self._variables.items()}
        self.ready_file.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self.program, env={**os.environ, **environ}
        )
        async with asyncio.timeout(90):
            while not self.ready_file.exists():
                assert self.process.returncode is None, "the worker did not start"
                await asyncio.sleep(0.02)

    @property
    def address(self) -> str:
        return str(json.loads(self.ready_file.read_text())["grpc"])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, timeout: float = 60.0) -> int:
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), timeout)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@dataclass
class Received:
    """What an edge has of one request, by the laws of a frame. ``attempts``: in order of their opening. ``replies``: of
    each Open."""

    ids: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    vectors: dict[int, bytes] = field(default_factory=dict)
    parts: dict[int, bytes] = field(default_factory=dict)
    close: Close | None = None

    @property
    def text(self) -> bytes:
        return b"".join(self.texts)

    @property
    def output(self) -> bytes:
        assert sorted(self.parts) == list(range(len(self.parts)))
        return b"".join(self.parts[index] for index in range(len(self.parts)))


class Edge:
    """Reads its frames from the log, checks the laws, and hands out work."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.name = name
        self.bus = bus
        self.received: dict[bytes, Received] = {}
        self.frames: list[Frame] = []
        self._publisher = Publisher(bus)
        self._reader = FrameReader(bus, edge=name, on_frame=self._take)
        self._moved = asyncio.Event()
        self._sequences: dict[tuple[str, int], int] = {}

    async def start(self) -> None:
        await self._publisher.start()
        await self._reader.start()

    async def stop(self) -> None:
        await self._reader.stop()

    def request(self, content: str, max_tokens: int = 10, **fields: Any) -> GenerateRequest:
        request = GenerateRequest(
            request_id=uuid7(clock.now_us() // 1000, os.urandom(10)),
            edge=self.name,
            accepted_time=clock.timestamp(clock.now_us()),
            **fields,
        )
        request.context.tenant_id, request.context.model = "acme", "synthetic"
        request.chat.messages.add(role="user", content=content)
        request.sampling.max_tokens = max_tokens
        return request

    async def place(self, worker: str, request: GenerateRequest, boot: int | None = None) -> Received:
        """What the scheduler does, on the worker's present incarnation if no other is given; returns what will be
        received."""
        received = self.received.setdefault(request.request_id, Received())
        boot = await self.incarnation(worker) if boot is None else boot
        now = clock.timestamp(clock.now_us())
        await self._publisher.publish(
            Work(request=request, worker=worker, boot=boot, attempt=request.resume.attempt, placed_time=now),
            timeout=30.0,
        )
        return received

    async def incarnation(self, worker: str) -> int:
        return (await self.record(worker)).boot

    async def record(self, worker: str) -> WorkerRecord:
        """What the fleet is told of it now. Raises LookupError once its entry has run out."""
        subject = f"$KV.fleet.{subject_token(worker)}"
        answer = await self.bus.api("STREAM.MSG.GET.KV_fleet", {"last_by_subj": subject}, timeout=30.0)
        if "data" not in answer["message"]:  # the broker's own mark of that
            raise LookupError(f"the fleet has no entry of {worker}")
        return WorkerRecord.FromString(base64.b64decode(answer["message"]["data"]))

    def moved(self, request: GenerateRequest) -> GenerateRequest:
        """What the scheduler makes of a request whose worker is gone, by what this edge has of it: its next attempt."""
        so_far = begun(request.resume)
        for frame in self.frames:
            fold(frame, {request.request_id: so_far})
        made = GenerateRequest()
        made.CopyFrom(request)
        made.resume.Clear()
        made.resume.attempt = max(1, request.resume.attempt, so_far.attempt) + 1
        made.resume.token_ids.extend(so_far.ids)
        made.resume.text = b"".join(text for _, text in so_far.texts)
        if so_far.ids:
            made.resume.first_token_time.CopyFrom(clock.timestamp(so_far.first_us))
            made.resume.last_token_time.CopyFrom(clock.timestamp(so_far.last_us))
        if so_far.first_started_us:
            made.resume.first_started_time.CopyFrom(clock.timestamp(so_far.first_started_us))
        return made

    async def until(self, condition: Callable[[], Any], timeout: float = 60.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def closed(self, *received: Received) -> None:
        await self.until(lambda: all(one.close is not None for one in received))

    def _take(self, frame: Frame, sequence: int) -> None:
        self.frames.append(frame)
        publisher = (frame.worker, frame.boot)
        # A publisher numbers over all its edges: for one edge the numbers only rise.
        assert frame.sequence > self._sequences.get(publisher, 0)
        self._sequences[publisher] = frame.sequence
        take_frame(frame, self.received)
        self._moved.set()


def take_frame(frame: Frame, received: dict[bytes, Received]) -> None:
    """One frame into what an edge has. Fails if a law is broken."""
    token_at = text_at = 0
    assert len(frame.request_ids) == 16 * len(frame.first_index)
    assert len(frame.gap_us) == len(frame.text_size) == len(frame.first_index)
    opened = {opens.request_id for opens in frame.opens}
    assert len(opened) == len(frame.opens)
    for opens in frame.opens:
        assert received[opens.request_id].close is None
        assert frame.contexts[opens.context_index].revision
        received[opens.request_id].replies.append(opens.reply)
    for number, first_index in enumerate(frame.first_index):
        one = received[frame.request_ids[16 * number : 16 * number + 16]]
        attempt = frame.attempt[number] if frame.attempt else 1
        count = frame.token_count[number] if frame.token_count else 1
        context = frame.contexts[frame.context_index[number] if frame.context_index else 0]
        assert context.revision
        assert one.close is None, "nothing follows the close"
        if not one.attempts or attempt > one.attempts[-1]:
            one.attempts.append(attempt)
            assert frame.request_ids[16 * number : 16 * number + 16] in opened, "its first frame opens an attempt"
            assert first_index <= len(one.ids), "no gap"
            if first_index < len(one.ids):  # only tests without text between attempts come here
                del one.ids[first_index:], one.texts[first_index:], one.gaps[first_index:]
        assert attempt == one.attempts[-1]
        assert first_index == len(one.ids), "no gap, no repetition"
        one.ids += frame.token_id[token_at : token_at + count]
        one.texts.append(frame.text[text_at : text_at + frame.text_size[number]])
        if count:
            one.gaps.append(frame.gap_us[number])
        token_at += count
        text_at += frame.text_size[number]
        one.texts[-1].decode()
    assert token_at == len(frame.token_id)
    assert text_at == len(frame.text)
    for said in frame.logprobs:
        key = frame.request_ids[16 * said.delta : 16 * said.delta + 16]
        assert len(said.tokens) == (frame.token_count[said.delta] if frame.token_count else 1)
        received[key].logprobs += said.tokens
    for part in (*frame.embeddings, *frame.outputs):
        one = received[part.request_id]
        assert one.close is None, "nothing follows the close"
        if not one.attempts or part.attempt > one.attempts[-1]:
            one.attempts.append(part.attempt)
            one.parts.clear()
            assert part.request_id in opened, "its first frame opens an attempt"
        assert part.attempt == one.attempts[-1]
        if isinstance(part, Output):
            assert part.index == len(one.parts), "in order"
            one.parts[part.index] = part.data
        else:
            one.vectors[part.index] = part.values
    for close in frame.closes:
        one = received[close.request_id]
        assert one.close is None
        assert one.replies, "also one that has nothing but its end"
        assert len(one.replies) == max(1, len(one.attempts)), "one Open an attempt"
        assert close.usage.output_tokens == len(one.ids)
        one.close = close


@pytest.fixture(scope="session", name="take_frame")
def take_frame_fixture() -> Callable[[Frame, dict[bytes, Received]], None]:
    return take_frame


@pytest.fixture(scope="session")
def received_type() -> type[Received]:
    return Received


@pytest.fixture(scope="session")
def edge_type() -> type[Edge]:
    return Edge


@pytest.fixture
async def edge(bus: Bus) -> AsyncIterator[Edge]:
    edge = Edge(bus, f"edge-{bus.config.name}")
    await edge.start()
    yield edge
    await edge.stop()


@pytest.fixture
async def new_worker(nats_server: Any, bus: Bus, tmp_path: Path) -> AsyncIterator[Callable[..., WorkerProcess]]:
    """Makes workers that end with the test."""
    made: list[WorkerProcess] = []

    def make(**variables: str) -> WorkerProcess:
        worker = WorkerProcess(f"worker-{bus.config.name}-{len(made)}", nats_server.url, tmp_path, **variables)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.kill()


@pytest.fixture
async def worker(new_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    """A running one with the synthetic engine, a token every 5 ms."""
    made = new_worker()
    await made.start()
    return made

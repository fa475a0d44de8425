"""A batch that takes all there is, beside people who wait: their TTFT with it and without it, and how busy the workers
are.

Two kinds of load: calls that come by themselves, and bursts, every few seconds many at once. The slots that a burst
leaves are the batch's; when the next one comes they are taken from it again.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from inferbus.batch.v1.batch_pb2 import CancelJobRequest
from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus_bus.connection import BusConfig, connect

from bench.load import Answer, request_bytes
from bench.load import connect as dial
from bench.local import running
from bench.measure import percentile, table
from tests.harness.batches import Batches, chat_line
from tests.harness.local import Stack

WORKERS, SLOTS = 2, 32
SETTINGS = {
    "INFERBUS_WORKER_CAPACITY": str(SLOTS),
    "INFERBUS_WORKER_SYNTHETIC__ITL": "20ms",
    "INFERBUS_WORKER_SYNTHETIC__PREFILL_RATE": "20000",
}
WORDS, TOKENS, BATCH_TOKENS = 200, 32, 200
PER_SECOND, BURST, EVERY_SECONDS = 4.0, 24, 5.0


@dataclass
class Slots:
    """How many of them had something to do, looked at ten times a second."""

    active: dict[str, int] = field(default_factory=dict)
    seen: list[float] = field(default_factory=list)

    def heard(self, heartbeat: Heartbeat) -> None:
        self.active[heartbeat.worker] = min(SLOTS, heartbeat.active)

    async def look(self) -> None:
        while len(self.active) < WORKERS:  # who has not spoken yet is not idle
            await asyncio.sleep(0.1)
        while True:
            await asyncio.sleep(0.1)
            self.seen.append(sum(self.active.values()) / (WORKERS * SLOTS))

    @property
    def busy(self) -> float:
        return sum(self.seen) / max(1, len(self.seen))


@asynccontextmanager
async def watched(stack: Stack) -> AsyncIterator[Slots]:
    slots = Slots()
    async with connect(BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])) as bus:
        await bus.subscribe(Heartbeat, slots.heard)
        looking = asyncio.create_task(slots.look())
        yield slots
        looking.cancel()


def request(stack: Stack, number: int) -> bytes:
    """No two share a prefix."""
    source = random.Random(number)
    content = " ".join(str(source.randrange(10_000)) for _ in range(WORDS))
    body = {
        "model": "synthetic", "stream": True, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": content}],
    }  # fmt: skip
    return request_bytes(stack.chat_url, stack.api_key, body)


async def ask(stack: Stack, number: int) -> Answer:
    connection = await dial(stack.chat_url)
    answer = await connection.ask(request(stack, number))
    connection.transport.close()  # type: ignore[union-attr]
    return answer


async def load(stack: Stack, seconds: float, burst: int) -> list[Answer]:
    """The same each time, whatever becomes of the earlier ones. ``burst``: calls at once, now and then; 0: none."""
    source, tasks, number = random.Random(5), [], 0
    clock = asyncio.get_running_loop().time
    start = clock()
    next_burst = start + EVERY_SECONDS / 2
    while clock() < start + seconds:
        many = 1
        if burst and clock() >= next_burst:
            many, next_burst = burst, next_burst + EVERY_SECONDS
        for _ in range(many):
            tasks.append(asyncio.create_task(ask(stack, number)))
            number += 1
        await asyncio.sleep(source.expovariate(PER_SECOND))
    return list(await asyncio.gather(*tasks))


@dataclass
class Measured:
    """One kind of load: alone, beside a batch, alone again."""

    alone: list[Answer] = field(default_factory=list)
    beside: list[Answer] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """p99 of each round beside the batch, over that of its calls alone before and after."""
    lines: int = 0
    took: float = 0.0

    async def round(self, stack: Stack, seconds: float, burst: int) -> None:
        clock = asyncio.get_running_loop().time
        alone = await self._alone(stack, seconds, burst)
        batches = Batches(stack)
        # More than can be done meanwhile.
        count = int(WORKERS * SLOTS * (seconds + 60) / (0.02 * BATCH_TOKENS))
        job = await batches.submit(chat_line(f"{number}", "synthetic", BATCH_TOKENS) for number in range(count))
        await batches.until(job.job_id, lambda one: one.completed_line_count > WORKERS * SLOTS)
        begun, start = await batches.get(job.job_id), clock()
        async with watched(stack) as slots:
            beside = await load(stack, seconds, burst)
        self.busy.append(slots.busy)
        self.beside += beside
        ended = await batches.get(job.job_id)
        assert ended.completed_line_count < count, "the batch ended too soon"
        self.lines += ended.completed_line_count - begun.completed_line_count
        self.took += clock() - start
        async with batches.call() as api:
            await api.CancelJob(CancelJobRequest(tenant_id=job.tenant_id, job_id=job.job_id))
        await batches.ended(job.job_id)
        alone += await self._alone(stack, seconds, burst)
        self.ratios.append(_ttft(beside, 0.99) / _ttft(alone, 0.99))

    async def _alone(self, stack: Stack, seconds: float, burst: int) -> list[Answer]:
        async with watched(stack) as slots:
            answers = await load(stack, seconds, burst)
        self.idle.append(slots.busy)
        self.alone += answers
        return answers

    @property
    def ratio(self) -> float:
        return median(self.ratios)


async def run(seconds: float = 60.0, rounds: int = 3) -> str:
    kinds = {"one by one": (Measured(), 0), "in bursts": (Measured(), BURST)}
    async with running("synthetic", "--workers", str(WORKERS), **SETTINGS) as stack:
        await load(stack, 5.0, 0)
        for _ in range(rounds):
            for measured, burst in kinds.values():
                await measured.round(stack, seconds, burst)
    rows = []
    for name, (one, _) in kinds.items():
        rows += [_row(f"{name}, alone", one.alone, one.idle), _row(f"{name}, beside a batch", one.beside, one.busy)]
    single, bursty = (one for one, _ in kinds.values())
    lines = (single.lines + bursty.lines) / (single.took + bursty.took)
    return "\n".join((
        "## People beside a batch that takes all there is",
        "",
        f"{WORKERS} synthetic workers with {SLOTS} slots and steps of 20 ms; {PER_SECOND:.0f} calls a second of "
        f"{WORDS} words and {TOKENS} tokens, and where they come in bursts {BURST} at once every "
        f"{EVERY_SECONDS:.0f} s. The batch: lines of {BATCH_TOKENS} tokens, of the same tenant. "
        f"{rounds} rounds of {seconds:.0f} s alone, beside it, and alone again. Slots in use: what workers say in "
        "their heartbeats to run or hold, at most their slots, as the mean of ten looks a second.",
        "",
        table("TTFT", ("", "calls", "failed", "p50 ms", "p99 ms", "slots in use"), rows),
        f"p99 beside the batch, median of the rounds: {single.ratio:.2f} times its value alone (aim: 1.2) "
        f"where calls come one by one, {bursty.ratio:.2f} in bursts. Slots in use in bursts: "
        f"{_mean(bursty.busy):.1%} (aim: over 90 %). The batch: {lines:.0f} lines a second, "
        f"{lines * BATCH_TOKENS:.0f} tokens a second.",
    ))  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ttft(answers: list[Answer], share: float) -> float:
    return percentile([answer.ttft for answer in answers if answer.status == 200], share)


def _row(name: str, answers: list[Answer], busy: list[float]) -> tuple[str, ...]:
    failed = sum(answer.status != 200 for answer in answers)
    times = (f"{1000 * _ttft(answers, share):.0f}" for share in (0.5, 0.99))
    return (name, str(len(answers)), str(failed), *times, f"{_mean(busy):.0%}")

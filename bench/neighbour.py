"""A noisy neighbour: one tenant's TTFT alone, and while another tenant floods the same workers.

Synthetic workers that read prompts one after the other, as a GPU does, so that a flood can be in the way at two places:
in the queue for a batch slot, and in the queue of prompts to be read.
"""

import asyncio
import random
from dataclasses import dataclass

from bench.load import Answer, connect, request_bytes
from bench.local import running
from bench.measure import percentile, table
from tests.harness.local import Stack

WORKERS, SLOTS = 4, 32
PREFILL_RATE = 8000
SETTINGS = {
    "INFERBUS_WORKER_CAPACITY": str(SLOTS),
    "INFERBUS_WORKER_SYNTHETIC__ITL": "20ms",
    "INFERBUS_WORKER_SYNTHETIC__PREFILL_RATE": str(PREFILL_RATE),
    "INFERBUS_EDGE_MAX_ACTIVE_REQUESTS": "4096",
}
INPUT, QUIET_TOKENS, NOISY_TOKENS = 500, 16, 100
QUIET_PER_SECOND = 4.0
FLOOD = 1000


@dataclass
class Tenant:
    stack: Stack
    key: str
    tokens: int

    def request(self, number: int) -> bytes:
        """No two share a prefix."""
        source = random.Random(number)
        content = " ".join(str(source.randrange(10_000)) for _ in range(INPUT))
        messages = [{"role": "user", "content": content}]
        body = {"model": "synthetic", "stream": True, "max_tokens": self.tokens, "messages": messages}
        return request_bytes(self.stack.chat_url, self.key, body)

    async def ask(self, number: int) -> Answer:
        connection = await connect(self.stack.chat_url)
        answer = await connection.ask(self.request(number))
        connection.transport.close()  # type: ignore[union-attr]
        return answer


async def quiet(tenant: Tenant, seconds: float) -> list[Answer]:
    """Poisson arrivals, whatever becomes of the earlier ones."""
    source, tasks, number = random.Random(3), [], 0
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while clock() < end:
        tasks.append(asyncio.create_task(tenant.ask(number)))
        number += 1
        await asyncio.sleep(source.expovariate(QUIET_PER_SECOND))
    return list(await asyncio.gather(*tasks))


async def flood(tenant: Tenant, stop: asyncio.Event) -> list[Answer]:
    """As many at once as ``FLOOD``, each asking again as soon as it has its answer."""
    answers: list[Answer] = []

    async def client(number: int) -> None:
        asked = number
        while not stop.is_set():
            answers.append(await tenant.ask(asked))
            asked += FLOOD

    await asyncio.gather(*(client(number) for number in range(1_000_000, 1_000_000 + FLOOD)))
    return answers


async def run(seconds: float = 180.0) -> str:
    async with running("synthetic", "--workers", str(WORKERS), **SETTINGS) as stack:
        noisy = Tenant(stack, stack.api_key, NOISY_TOKENS)
        calm = Tenant(stack, await stack.new_key(tenant_id="calm"), QUIET_TOKENS)
        await quiet(calm, 5.0)
        alone = await quiet(calm, seconds)
        stop = asyncio.Event()
        flooding = asyncio.create_task(flood(noisy, stop))
        await asyncio.sleep(10)
        beside = await quiet(calm, seconds)
        stop.set()
        flooded = await flooding
    rows = [_row("alone", alone), _row(f"beside a flood of {FLOOD} requests at once", beside)]
    ratio = _ttft(beside, 0.99) / _ttft(alone, 0.99)
    done = [answer for answer in flooded if answer.status == 200]
    refused = len(flooded) - len(done)
    return "\n".join((
        "## A noisy neighbour: TTFT of a tenant that asks now and then",
        "",
        f"{WORKERS} synthetic workers with {SLOTS} slots and {PREFILL_RATE} input tokens a second each; "
        f"{INPUT} words a prompt.",
        "",
        table("The calm tenant", ("", "requests", "failed", "TTFT p50 ms", "TTFT p99 ms"), rows),
        f"p99 beside the flood: {ratio:.2f} times its value alone (aim: 1.5). The flood: {len(done)} answers of "
        f"{NOISY_TOKENS} tokens, {refused} refused (429).",
    ))  # fmt: skip


def _ttft(answers: list[Answer], share: float) -> float:
    return percentile([answer.ttft for answer in answers if answer.status == 200], share)


def _row(name: str, answers: list[Answer]) -> tuple[str, ...]:
    failed = sum(answer.status != 200 for answer in answers)
    times = (f"{1000 * _ttft(answers, share):.0f}" for share in (0.5, 0.99))
    return (name, str(len(answers)), str(failed), *times)

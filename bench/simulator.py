"""The simulator against the real stack: one trace, played in real time on `inferbus up` and in simulated time.

Both have the same engines (the timing model of `synthetic`), the same requests at the same times and the same policy.
What differs is all that the simulator leaves out: processes, sockets, the broker, this machine. How long a request is
on its way through them is measured first, on the idle stack by short requests one after the other, and given to the
simulator as its ``--overhead``. Nothing is fitted to the trace that is compared.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from inferbus_contracts.prefixes import CHUNK_TOKENS
from inferbus_runtime.timing_model import TimingModel
from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.core.simulate.compare import Setup, compare
from inferbus_scheduler.core.simulate.engine import WorkerKind
from inferbus_scheduler.core.simulate.generate import Workload, generate
from inferbus_scheduler.core.simulate.measures import Summary, Targets
from inferbus_scheduler.core.simulate.run import Delays
from inferbus_scheduler.core.simulate.trace import Arrival

from bench.load import Answer, Connection, connect, request_bytes
from bench.local import running
from bench.measure import percentile, table
from tests.harness.local import Stack

WORKERS = 4
KIND = WorkerKind(
    "worker",
    WORKERS,
    TimingModel(
        step_seconds=0.02,
        step_seconds_per_sequence=0.002,
        prefill_tokens_per_second=4000.0,
        kv_blocks=1536,
        kv_block_tokens=16,
    ),
    capacity=8,
)
TARGETS = Targets(ttft=0.5, itl=0.05)
# Requests a second, in bursts: about half of what the fleet can do, and nearly all of it.
RATES = (4.0, 8.0)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: requests a second within the targets, seconds."""

    goodput: float
    ttft: tuple[float, float]
    tpot: float


def workload(rate: float, seconds: float) -> Workload:
    return Workload(
        rate=rate,
        seconds=seconds,
        input_tokens=192.0,
        output_tokens=64.0,
        spread=0.6,
        burst_factor=3.0,
        burst_seconds=4.0,
        chat_share=0.6,
        system_prompts=6,
        system_tokens=512,
        turns=3.0,
    )


def text_of(arrival: Arrival) -> str:
    """As many words of four bytes as it has input tokens: those of equal chunks are equal, the others its own."""
    fresh = Random(f"{arrival.time}")
    words = [word for chunk in arrival.prefix for word in _words(Random(chunk), CHUNK_TOKENS)]
    return "".join(words + _words(fresh, arrival.input_tokens - len(words))).rstrip()


def _words(draws: Random, count: int) -> list[str]:
    return ["".join(draws.choices(_LETTERS, k=3)) + " " for _ in range(count)]


async def played(stack: Stack, arrivals: Sequence[Arrival]) -> list[Answer]:
    """Each sent at its time, on a connection that is free or a new one, whatever became of those before."""
    requests = [
        request_bytes(
            stack.chat_url,
            stack.api_key,
            {
                "model": "synthetic",
                "messages": [{"role": "user", "content": text_of(one)}],
                "stream": True,
                "max_tokens": one.output_tokens,
            },
        )
        for one in arrivals
    ]
    free: list[Connection] = []
    loop = asyncio.get_running_loop()
    began = loop.time() + 0.5

    async def ask(arrival: Arrival, request: bytes) -> Answer:
        await asyncio.sleep(began + arrival.time - loop.time())
        free[:] = [one for one in free if not one.closed]  # the edge closes what is idle for long
        connection = free.pop() if free else await connect(stack.chat_url)
        answer = await connection.ask(request)
        free.append(connection)
        return answer

    answers = await asyncio.gather(*(ask(*one) for one in zip(arrivals, requests, strict=True)))
    for connection in free:
        connection.transport.close()  # type: ignore[union-attr]
    return list(answers)


def figures(answers: Sequence[Answer], seconds: float) -> Figures:
    pauses = [(answer.total - answer.ttft) / (answer.tokens - 1) if answer.tokens > 1 else 0.0 for answer in answers]
    good = sum(
        answer.status == 200 and answer.ttft <= TARGETS.ttft and pause <= TARGETS.itl
        for answer, pause in zip(answers, pauses, strict=True)
    )
    firsts = [answer.ttft for answer in answers if answer.status == 200]
    return Figures(good / seconds, (percentile(firsts, 0.5), percentile(firsts, 0.99)), percentile(pauses, 0.5))


def short(number: int) -> Arrival:
    return Arrival(0.25 * number, "", "", Priority.INTERACTIVE, "synthetic", 8, 2)


def overhead(answers: Sequence[Answer]) -> float:
    """Seconds that short requests, each alone, took to their first token beyond what the engine takes: an idle one
    makes it when it has read the prompt."""
    return max(0.0, percentile([answer.ttft for answer in answers], 0.5) - KIND.timing.prefill(8))


async def real(arrivals: Sequence[Arrival], policy: str, seconds: float) -> tuple[Figures, float]:
    timing = KIND.timing
    variables = {
        "INFERBUS_WORKER_CAPACITY": str(KIND.capacity),
        "INFERBUS_WORKER_SYNTHETIC__ITL": f"{timing.step_seconds * 1e3:g}ms",
        "INFERBUS_WORKER_SYNTHETIC__PREFILL": "0s",
        "INFERBUS_WORKER_SYNTHETIC__STEP_PER_SEQUENCE": f"{timing.step_seconds_per_sequence * 1e3:g}ms",
        "INFERBUS_WORKER_SYNTHETIC__PREFILL_RATE": f"{timing.prefill_tokens_per_second:g}",
        "INFERBUS_WORKER_SYNTHETIC__KV_BLOCKS": str(timing.kv_blocks),
        "INFERBUS_WORKER_SYNTHETIC__KV_BLOCK_TOKENS": str(timing.kv_block_tokens),
    }
    if policy != "inferbus":
        variables["INFERBUS_SCHEDULER_POLICY"] = policy
    async with running("synthetic", "--workers", str(WORKERS), **variables) as stack:
        await played(stack, [short(number) for number in range(8)])
        alone = overhead(await played(stack, [short(number) for number in range(32)]))
        return figures(await played(stack, arrivals), seconds), alone


def simulated(arrivals: Sequence[Arrival], policy: str, alone: float) -> Summary:
    """``alone``: seconds, what :func:`overhead` found."""
    return compare(policy, arrivals, Setup((KIND,), TARGETS, delays=Delays.of(alone)), Random(1), Random(2))


def _rows(name: str, real: Figures, model: Summary) -> list[list[object]]:
    pairs = (
        ("goodput, requests/s", real.goodput, model.goodput, 1.0),
        ("TTFT p50, ms", real.ttft[0], model.ttft[0], 1e3),
        ("TTFT p99, ms", real.ttft[1], model.ttft[2], 1e3),
        ("TPOT p50, ms", real.tpot, model.tpot, 1e3),
    )
    return [
        [name, what, f"{one * scale:.1f}", f"{other * scale:.1f}", f"{(other / one - 1) * 100:+.1f} %" if one else "-"]
        for what, one, other, scale in pairs
    ]


async def run(seconds: float = 100.0, policies: tuple[str, ...] = ("inferbus",)) -> str:
    """``seconds`` of a trace for each load: in 100 s some 470 requests at 4/s, of which a p99 is five."""
    rows: list[list[object]] = []
    for rate in RATES:
        made = generate(workload(rate, seconds), Random(3))
        # Asked for as it is said: a bound that both schedulers know.
        arrivals = [replace(arrival, max_tokens=arrival.output_tokens) for arrival in made]
        for policy in policies:
            found, alone = await real(arrivals, policy, arrivals[-1].time)
            name = f"{policy}, {rate:g} requests/s, overhead {alone * 1e3:.1f} ms"
            rows += _rows(name, found, simulated(arrivals, policy, alone))
    return table(
        f"The simulator and the real stack on one trace, {WORKERS} workers of `synthetic`",
        ["policy and load", "", "real", "simulated", "difference"],
        rows,
    )

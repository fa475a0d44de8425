"""(b) CPU per token and per 1,000 unary requests, service by service, beside a bare aiohttp reverse proxy.

The load generator (and the proxy's upstream) run on core 0, everything that is measured on core 1, as in the peers'
table that these figures are compared with. Engine excluded: the synthetic engine's own cost is measured apart and
named; ClickHouse is shown by itself, since it may be any server.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass, replace

import psutil
from inferbus_stack.nats import free_port

from bench.load import Answer, Meter, closed_loop
from bench.local import running
from bench.measure import cpu_seconds, percentile, pin, table
from tests.harness.local import Stack

ITL = 0.02
PROMPT = "word " * 100
STREAM = {"model": "synthetic", "messages": [{"role": "user", "content": PROMPT}], "stream": True, "max_tokens": 128}
UNARY = {"model": "synthetic", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
LOAD_CORE, MEASURED_CORE = [0], [1]


@dataclass(frozen=True, slots=True)
class Window:
    """A steady stretch in the middle of a closed loop: CPU seconds by process, what arrived, wall seconds."""

    cpu: dict[str, float]
    tokens: int
    requests: int
    wall: float
    answers: list[Answer]


async def window(
    pids: dict[str, int], url: str, key: str, body: dict, concurrency: int, seconds: float, spread: float
) -> Window:
    """Everything is started and has settled for a second when the window opens, and goes on after it closes."""
    clock, meter = asyncio.get_running_loop().time, Meter()
    loop = asyncio.create_task(
        closed_loop(url, key, body, concurrency=concurrency, seconds=seconds + 2, spread=spread, meter=meter)
    )
    await asyncio.sleep(spread + 1)
    start, tokens, requests = clock(), meter.tokens, meter.answers
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    await asyncio.sleep(seconds)
    cpu = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    found = Window(cpu, meter.tokens - tokens, meter.answers - requests, clock() - start, [])
    return replace(found, answers=await loop)


def bad(answers: list[Answer], tokens: int) -> int:
    return sum(answer.status != 200 or answer.tokens != tokens for answer in answers)


def by_process(cpu: dict[str, float], unit: float, digits: int) -> tuple[str, str]:
    """(all but ClickHouse, each) in ``unit`` seconds."""
    values = {name: seconds / unit for name, seconds in cpu.items()}
    ours = sum(value for name, value in values.items() if name != "clickhouse")
    return f"{ours:.{digits}f}", " · ".join(f"{name} {value:.{digits}f}" for name, value in values.items())


def per_token(name: str, found: Window, concurrency: int) -> list[object]:
    ours, parts = by_process(found.cpu, found.tokens * 1e-6, 1)
    ttft = [answer.ttft * 1000 for answer in found.answers]
    return [
        name, concurrency, f"{found.tokens / found.wall:,.0f}", ours, parts,
        f"{percentile(ttft, 0.5):.1f} / {percentile(ttft, 0.99):.1f}", bad(found.answers, STREAM["max_tokens"]),
    ]  # fmt: skip


def per_request(name: str, found: Window, concurrency: int) -> list[object]:
    ours, parts = by_process(found.cpu, found.requests / 1000, 3)
    total = [answer.total * 1000 for answer in found.answers]
    return [
        name, concurrency, f"{found.requests / found.wall:,.0f}", ours, parts,
        f"{percentile(total, 0.5):.1f} / {percentile(total, 0.99):.1f}", bad(found.answers, UNARY["max_tokens"]),
    ]  # fmt: skip


async def synthetic_alone(streams: int, seconds: float = 3.0) -> float:
    """CPU microseconds a token of the synthetic engine by itself, in a process of its own."""
    code = f"import asyncio; from bench.synthetic_alone import run; asyncio.run(run({streams}, {ITL}, {seconds}))"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    return float(out)


async def listening(*ports: int) -> None:
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)


async def measure_proxy(rows_stream: list, rows_unary: list, seconds: float, levels: list[int]) -> None:
    upstream_port, proxy_port = free_port(), free_port()
    upstream = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.proxy", "upstream", str(upstream_port), str(ITL)
    )
    target = f"http://127.0.0.1:{upstream_port}/v1/chat/completions"
    proxy = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.proxy", "proxy", str(proxy_port), target)
    try:
        await listening(upstream_port, proxy_port)
        pin([upstream.pid], LOAD_CORE)
        pin([proxy.pid], MEASURED_CORE)
        url = f"http://127.0.0.1:{proxy_port}/v1/chat/completions"
        pids = {"proxy": proxy.pid}
        for concurrency in levels:
            found = await window(pids, url, "-", STREAM, concurrency, seconds, 128 * ITL)
            rows_stream.append(per_token("aiohttp proxy", found, concurrency))
        for concurrency in (16, 64):
            found = await window(pids, url, "-", UNARY, concurrency, seconds / 2, 0)
            rows_unary.append(per_request("aiohttp proxy", found, concurrency))
    finally:
        for process in (proxy, upstream):
            process.terminate()
            await process.wait()


async def settled(stack: Stack) -> dict[str, int]:
    pids = stack.pids
    pin(pids.values(), MEASURED_CORE)
    await closed_loop(stack.chat_url, stack.api_key, {**STREAM, "max_tokens": 20}, concurrency=16, seconds=1)
    return pids


async def run(seconds: float = 6.0, levels: tuple[int, ...] = (64, 256)) -> str:
    psutil.Process(os.getpid()).cpu_affinity(LOAD_CORE)
    streams: list[list[object]] = []
    unary: list[list[object]] = []
    async with running("synthetic", INFERBUS_WORKER_SYNTHETIC__ITL=f"{ITL}s") as stack:
        pids = await settled(stack)
        for concurrency in levels:
            found = await window(pids, stack.chat_url, stack.api_key, STREAM, concurrency, seconds, 128 * ITL)
            streams.append(per_token("InferBus", found, concurrency))
    async with running(
        "synthetic", INFERBUS_WORKER_SYNTHETIC__ITL="1ms", INFERBUS_WORKER_SYNTHETIC__PREFILL="0s"
    ) as stack:
        pids = await settled(stack)
        for concurrency in (16, 64):
            found = await window(pids, stack.chat_url, stack.api_key, UNARY, concurrency, seconds / 2, 0)
            unary.append(per_request("InferBus", found, concurrency))
    await measure_proxy(streams, unary, seconds, list(levels))
    psutil.Process(os.getpid()).cpu_affinity(list(range(psutil.cpu_count() or 1)))
    alone = {level: await synthetic_alone(level) for level in levels}
    note = "The synthetic engine alone (part of worker above): " + json.dumps(
        {f"{level} streams": f"{value:.1f} us/token" for level, value in alone.items()}
    )
    head = ["path", "concurrent", "rate", "CPU, all but ClickHouse", "by process", "p50 / p99 ms", "bad answers"]
    return "\n".join(
        [
            table("(b) CPU microseconds per token, one token every 20 ms and stream; TTFT", head, streams),
            note + "\n",
            table("(b) CPU seconds per 1,000 unary requests of one token (1 ms a step); E2E", head, unary),
        ]
    )

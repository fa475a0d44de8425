"""(c) Tokens a second of llama_cpp through the platform against one stream, and against llama.cpp's own server."""

import asyncio
import json
import os
import sys
from time import perf_counter

import aiohttp
from inferbus_worker.config import Config
from inferbus_worker.engines.llama_cpp_model import prepare

from bench.load import closed_loop
from bench.local import running
from bench.measure import table

TOKENS = 64
LEVELS = (1, 4, 8, 16)
THINGS = "cat dog tree river stone cloud lamp train house bird fish mountain road bridge garden clock".split()  # noqa: SIM905
PROMPTS = [f"Write a story about the number {number} and a {thing}." for number, thing in enumerate(THINGS)]


async def platform(seconds: float) -> dict[int, float]:
    found = {}
    async with running("llama_cpp") as stack:
        for level in LEVELS:
            bodies = [
                {
                    "model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": PROMPTS[number]}],
                    "stream": True, "max_tokens": TOKENS, "temperature": 0,
                }
                for number in range(level)
            ]  # fmt: skip
            await closed_loop(stack.chat_url, stack.api_key, bodies[0], concurrency=1, seconds=0.5)
            start = perf_counter()
            loops = (
                closed_loop(stack.chat_url, stack.api_key, body, concurrency=1, seconds=seconds) for body in bodies
            )
            answers = [answer for some in await asyncio.gather(*loops) for answer in some]
            found[level] = sum(answer.tokens for answer in answers) / (perf_counter() - start)
    return found


async def bare(seconds: float) -> dict[int, float]:
    """llama.cpp's own HTTP server with the worker's settings, asked directly."""
    config = Config(name="bench")
    weights = await asyncio.to_thread(prepare, config.model_cache, config.llama_cpp.precision)
    own = config.llama_cpp
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferbus_worker.engines.llama_cpp_server", "--model", str(weights.path),
        "--parent", str(os.getpid()), "--slots", "16", "--context-length", "0", "--precision", own.precision,
        "--kv-tokens", str(own.kv_tokens),
        "--batch-tokens", str(own.batch_tokens),
        "--threads", str(os.cpu_count()), "--omp-wait-policy", own.omp_wait_policy,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = (await process.stdout.readline()).decode().strip()  # type: ignore[union-attr]
        found = {}
        # llama.cpp closes idle connections at moments when a client may just be using them.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            for level in LEVELS:
                end = perf_counter() + seconds
                counts = [0] * level

                async def client(number: int, end: float = end, counts: list[int] = counts) -> None:
                    body = {
                        "messages": [{"role": "user", "content": PROMPTS[number]}], "stream": True,
                        "max_tokens": TOKENS, "temperature": 0,
                    }  # fmt: skip
                    while perf_counter() < end:
                        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                            async for line in answer.content:
                                if line.startswith(b"data: {"):
                                    delta = json.loads(line[6:])["choices"]
                                    counts[number] += bool(delta and delta[0]["delta"].get("content"))

                start = perf_counter()
                await asyncio.gather(*(client(number) for number in range(level)))
                found[level] = sum(counts) / (perf_counter() - start)
        return found
    finally:
        process.terminate()
        await process.wait()


async def run(seconds: float = 8.0) -> str:
    ours, theirs = await platform(seconds), await bare(seconds)
    rows = [
        [level, f"{ours[level]:.0f}", f"{ours[level] / ours[1]:.2f}", f"{theirs[level]:.0f}",
         f"{theirs[level] / theirs[1]:.2f}", f"{ours[level] / theirs[level]:.2f}"]
        for level in LEVELS
    ]  # fmt: skip
    return table(
        "(c) Tokens a second on llama_cpp, all services on the same cores",
        ["concurrent", "InferBus", "of one stream", "llama.cpp's server", "of one stream", "InferBus / llama.cpp"],
        rows,
    )

"""Prefix-aware placement beside round robin, on a real model: chats of several turns with a few shared system prompts.

Two workers, and more system prompts than one worker keeps: whoever sends a turn to where its beginning has been read
reads less.
"""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.local import running
from bench.measure import percentile, table

MODEL = "smollm2-135m-instruct"
POLICIES = ("round_robin", "inferbus")
PROMPTS, CHATS, OUTPUT = 6, 12, 12
# About 400 tokens each, of which no two begin alike.
SYSTEM_WORDS = 300
WORDS = ("sea", "fox", "moon", "bread", "king", "rain", "song", "stone")
AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Turn:
    ttft: float
    input_tokens: int
    cached_tokens: int


def system_prompt(number: int) -> str:
    words = random.Random(number)
    return " ".join(words.choice(WORDS) for _ in range(SYSTEM_WORDS))


async def turn(http: aiohttp.ClientSession, url: str, key: str, messages: list[dict[str, str]]) -> tuple[Turn, str]:
    """What it took, and what the model said."""
    body: dict[str, Any] = {
        "model": MODEL, "messages": messages, "max_tokens": OUTPUT, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    clock = asyncio.get_running_loop().time
    began, first, said, usage = clock(), 0.0, "", {}
    async with http.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or clock() - began
                    said += text
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Turn(first, usage["prompt_tokens"], cached), said


async def trace(url: str, key: str, turns: int) -> list[Turn]:
    """The same chats in the same order, AT_ONCE at once. In each round another one: people do not take turns, and a
    fixed order of an even number would give round robin on two workers the very placement that it does not know of."""
    found: list[Turn] = []
    chats = [
        [
            {"role": "system", "content": system_prompt(number % PROMPTS)},
            {"role": "user", "content": f"Tell me of {number}."},
        ]
        for number in range(CHATS)
    ]
    draw = random.Random(turns)
    order = [number for _ in range(turns) for number in draw.sample(range(CHATS), CHATS)]
    gate = asyncio.Semaphore(AT_ONCE)
    locks = [asyncio.Lock() for _ in chats]

    async def one(http: aiohttp.ClientSession, number: int) -> None:
        messages = chats[number]
        async with locks[number], gate:
            took, said = await turn(http, url, key, messages)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
            found.append(took)

    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(one(http, number) for number in order))
    return found


async def run(turns: int = 4) -> str:
    rows, means = [], {}
    for policy in POLICIES:
        variables = {"INFERBUS_SCHEDULER_POLICY": policy, "INFERBUS_WORKER_THREADS": "1"}
        async with running("llama_cpp", "--workers", "2", "--no-embeddings", **variables) as stack:
            await trace(stack.chat_url, stack.api_key, 1)
            found = await trace(stack.chat_url, stack.api_key, turns)
        read = sum(one.input_tokens for one in found)
        times = [1000 * one.ttft for one in found]
        means[policy] = sum(times) / len(times)
        hit = sum(one.cached_tokens for one in found) / read
        rows.append(
            (
                policy,
                len(found),
                f"{100 * hit:.0f} %",
                f"{percentile(times, 0.5):.0f}",
                f"{percentile(times, 0.99):.0f}",
            )
        )
    columns = ("policy", "turns", "input tokens from the cache", "TTFT p50 ms", "TTFT p99 ms")
    title = f"Placement by prefix: {CHATS} chats with {PROMPTS} system prompts on 2 llama_cpp workers"
    ratio = means["round_robin"] / means["inferbus"]
    return f"{table(title, columns, rows)}\nMean TTFT under round robin: {ratio:.2f} times that of inferbus.\n"

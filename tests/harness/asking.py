"""Many clients at once, by OpenAI's own SDK: whole texts, or the error that each got."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import openai

from tests.harness.local import Stack


@dataclass
class Answered:
    """``text``: what came, also of one that ended with ``error``."""

    text: str = ""
    error: openai.APIError | None = None


@asynccontextmanager
async def asking(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    """Tries nothing again by itself."""
    async with openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0, timeout=120) as client:
        yield client


async def unary(client: openai.AsyncOpenAI, **body: Any) -> Answered:
    try:
        answer = await client.chat.completions.create(**body)
    except openai.APIError as error:
        return Answered(error=error)
    return Answered(answer.choices[0].message.content or "")


async def streamed(client: openai.AsyncOpenAI, begun: asyncio.Event | None = None, **body: Any) -> Answered:
    """``begun`` is set once there are five parts with text, or its end."""
    answered, parts = Answered(), 0
    try:
        async for chunk in await client.chat.completions.create(**body, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                answered.text += chunk.choices[0].delta.content
                parts += 1
                if begun is not None and parts == 5:
                    begun.set()
    except openai.APIError as error:
        answered.error = error
    if begun is not None:
        begun.set()
    return answered


async def several(client: openai.AsyncOpenAI, streams: int, whole: int, **body: Any) -> list[asyncio.Task[Answered]]:
    """Running, each stream with text already (or ended), when it returns."""
    begun = [asyncio.Event() for _ in range(streams)]
    tasks = [asyncio.create_task(streamed(client, one, **body)) for one in begun]
    tasks += [asyncio.create_task(unary(client, **body)) for _ in range(whole)]
    async with asyncio.timeout(60):
        for one in begun:
            await one.wait()
    return tasks


async def audited(stack: Stack) -> dict[str, Any]:
    """Its summary; it must find nothing. All that has ended is stored after it."""
    code, out = await stack.cli("audit", "--json")
    assert code == 0, out
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])["summary"]
    return summary


async def bills(stack: Stack, since_us: int, count: int) -> list[dict[str, Any]]:
    """The rows of the ``count`` requests accepted after ``since_us`` (Unix microseconds)."""
    store = stack.content["clickhouse"]
    query = (
        f"SELECT * FROM {store['database']}.bills WHERE accepted_time > fromUnixTimestamp64Micro({since_us}) "
        "ORDER BY accepted_time FORMAT JSONEachRow"
    )
    headers = {"X-ClickHouse-User": store["user"], "X-ClickHouse-Key": store["password"]}
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(90):
        while len(rows) < count:
            await asyncio.sleep(0.1)
            answer = await http.post(store["url"], content=query, headers=headers)
            answer.raise_for_status()
            rows = [json.loads(line) for line in answer.text.splitlines()]
    assert len(rows) == count
    return rows

"""The customers' own clients, called in one way, and what the tests know of the models."""

import asyncio
from operator import attrgetter
from typing import Any

import anthropic
import httpx2 as httpx
import openai

from tests.harness.local import Stack

MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
SECONDS = 120.0


class Caller:
    """One client, sync or async, called in one way, so that a test says what it asks once."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._is_async = isinstance(client, openai.AsyncOpenAI | anthropic.AsyncAnthropic)

    async def one(self, method: str, *args: Any, **body: Any) -> Any:
        """The answer of ``client.<method>(...)``."""
        call = attrgetter(method)(self.client)
        if self._is_async:
            return await call(*args, **body)
        return await asyncio.to_thread(call, *args, **body)

    async def events(self, method: str, *args: Any, **body: Any) -> list[Any]:
        """All events of a stream."""
        call = attrgetter(method)(self.client)
        if self._is_async:
            return [event async for event in await call(*args, **body, stream=True)]
        return await asyncio.to_thread(lambda: list(call(*args, **body, stream=True)))

    async def helper(self, method: str, *args: Any, **body: Any) -> tuple[list[Any], Any]:
        """(events, last snapshot) of one of the SDK's stream helpers: ``client.<method>(...)`` as a context."""
        call = attrgetter(method)(self.client)
        if self._is_async:
            async with call(*args, **body) as stream:
                return [event async for event in stream], await _final(stream)

        def work() -> tuple[list[Any], Any]:
            with call(*args, **body) as stream:
                return list(stream), _final(stream)

        return await asyncio.to_thread(work)

    async def listed(self, method: str, *args: Any, **query: Any) -> list[Any]:
        """Every item of every page."""
        call = attrgetter(method)(self.client)
        if self._is_async:
            return [item async for item in call(*args, **query)]
        return await asyncio.to_thread(lambda: list(call(*args, **query)))


def _final(stream: Any) -> Any:
    for name in ("get_final_completion", "get_final_response", "get_final_message"):
        if hasattr(stream, name):
            return getattr(stream, name)()
    raise TypeError(f"{type(stream).__name__} has no end")


def openai_client(stack: Stack, edge: int = 0, **settings: Any) -> openai.AsyncOpenAI:
    url = stack.edge_urls[edge]
    return openai.AsyncOpenAI(
        **{"base_url": url, "api_key": stack.api_key, "max_retries": 0, "timeout": SECONDS, **settings}
    )


async def tokens_of(http: httpx.AsyncClient, text: str, model: str = MODEL, *, special: bool = False) -> list[int]:
    """``text`` in the model's own tokens."""
    body = {"model": model, "prompt": text, "add_special_tokens": special}
    answer = await http.post("/tokenize", json=body)
    answer.raise_for_status()
    tokens: list[int] = answer.json()["tokens"]
    return tokens


async def chat_tokens(http: httpx.AsyncClient, messages: list[dict[str, Any]]) -> int:
    """How many tokens a chat's prompt has."""
    answer = await http.post("/tokenize", json={"model": MODEL, "messages": messages, "add_generation_prompt": True})
    answer.raise_for_status()
    count: int = answer.json()["count"]
    return count

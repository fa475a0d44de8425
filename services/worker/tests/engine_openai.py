"""``openai`` in the contract suite: llama.cpp's own OpenAI server behind it, with a small real model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from inferbus_worker.config import Config, OpenAiConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

from services.worker.tests.openai_upstreams import servers
from services.worker.tests.openai_upstreams.faults import Fault, faults

NAME = "openai"
TITLE = "`openai` on llama.cpp"
CAPABILITIES = frozenset({"chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"})
# Not "ids": OpenAI's API does not say them, and llama.cpp only beside probabilities. It resumes by text.
CAN = frozenset(
    {"expressions", "seeds", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "model"}
    | {"batch", "tokenize", "salts", "overload"}
)
WHY = {"prefixes": "a server that keeps no salts apart is told to look for none, unless `SHARED_PREFIXES` allows it"}
PREFILL_WORDS = 3000
# The same grammars in the same program as the engine llama_cpp's; test_openai_upstream.py has a few of them.
SOAK = frozenset({"tools"})
_DOWN_SECONDS = 1.5
_reviving: set[asyncio.Task[None]] = set()


def missing() -> str:
    return servers.llama_missing()


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    async with servers.llama(cache) as server:
        engine = engine_class("openai").from_config(config_of(server.url, **changes))
        engine.tests_server = server
        async with stopping(engine):
            yield engine


@asynccontextmanager
async def crowded(cache: Path) -> AsyncIterator[Engine]:
    """Two answers come; whoever asks then is to come back in a minute, as a managed API says it."""
    async with servers.llama(cache) as server, faults(server.url) as proxy:
        settings = {"openai": {"capabilities": ("chat", "completions")}}
        engine = engine_class("openai").from_config(config_of(proxy.url, **settings))
        full = Fault(status=429, headers={"Retry-After": "60"}, body={"error": {"message": "rate limit of org-1"}})
        proxy.next += [Fault(), Fault(), *[full] * 100]
        async with stopping(engine):
            yield engine


@asynccontextmanager
async def stopping(engine: Engine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.stop()
        await asyncio.gather(*_reviving, return_exceptions=True)


def config_of(url: str, **changes: Any) -> Config:
    """As far as ``changes`` says nothing else."""
    settings = {"base_url": url, "start_timeout": timedelta(seconds=60), **changes.pop("openai", {})}
    return Config(name="contract", engine="openai", openai=OpenAiConfig(**settings), **{"capacity": 16, **changes})


async def kill(engine: Any) -> None:
    """The upstream's process; as an orchestrator would, somebody starts it again a while later."""
    await engine.tests_server.kill()

    async def revive() -> None:
        await asyncio.sleep(_DOWN_SECONDS)
        while engine._health is not None and engine._health.died is None:
            await asyncio.sleep(0.05)  # one that is back before that was not gone
        await engine.tests_server.start()

    task = asyncio.create_task(revive())
    _reviving.add(task)
    task.add_done_callback(_reviving.discard)


async def held(engine: Any) -> int:
    """Open connections to the upstream: the model there is its own."""
    connections = psutil.Process().net_connections("tcp")
    return sum(
        one.status == psutil.CONN_ESTABLISHED and one.raddr and one.raddr.port == engine.tests_server.port
        for one in connections
    )

"""``openai`` in the contract suite: llama.cpp's own OpenAI server behind it, with a small real model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from inferbus_worker.config import Config, OpenAiConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

from services.worker.tests.openai_upstreams import servers

NAME = "openai"
PREFILL_WORDS = 3000
# Not "ids": OpenAI's API does not say them, and llama.cpp only beside probabilities. Not "salts": it keeps nobody
# apart, so the engine tells it to look for no cached prefix. It resumes by text.
CAN = frozenset({"resume", "seeds", "penalties", "batch", "tokenize", "bias"})
_DOWN_SECONDS = 3.0
_reviving: set[asyncio.Task[None]] = set()


def missing() -> str:
    return servers.llama_missing()


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    async with servers.llama(cache) as server:
        engine = engine_class("openai").from_config(config_of(server.url, **changes))
        engine.tests_server = server
        try:
            yield engine
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
        await engine.tests_server.start()

    task = asyncio.create_task(revive())
    _reviving.add(task)
    task.add_done_callback(_reviving.discard)

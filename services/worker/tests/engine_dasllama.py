"""``openai`` in the contract suite on a second code base: dasLLAMA, which is neither llama.cpp nor known to us.

It is asked as any server that nobody knows: by what OpenAI documents and nothing else.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

from services.worker.tests import engine_openai
from services.worker.tests.openai_upstreams import servers

NAME = "openai"
TITLE = "`openai` on dasLLAMA"
CAPABILITIES = frozenset({"chat", "completions", "tools", "structured_output", "embeddings"})
CAN = frozenset({"seeds", "frequency_penalty", "presence_penalty", "model", "batch"})
PREFILL_WORDS = 3000
# What asks it for many answers or long ones, where it breaks most (see below).
SOAK = frozenset({"hundred", "batch", "tools", "forms", "cancel", "statistics", "death"})
# Seen at any load, and more of it with more at once: it ends streams in the middle, writes events of one answer into
# another's, or says nothing any more. The engine asks again, of a server like this one more often than by default.
_PATIENCE = {
    "max_retries": 20, "retry_floor": 1000, "breaker_failures": 1000, "breaker_rate": 1.0,
    "first_token_timeout": timedelta(seconds=15), "stall_timeout": timedelta(seconds=4),
}  # fmt: skip

kill = engine_openai.kill
held = engine_openai.held


def missing() -> str:
    return servers.das_missing()


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    async with servers.das(cache) as server:
        # It does not say how long its context is.
        settings = {"context_length": 8192, "capacity": 4, "openai": _PATIENCE, **changes}
        config = engine_openai.config_of(server.url, **settings)
        engine = engine_class(NAME).from_config(config)
        engine.tests_server = server
        async with engine_openai.stopping(engine):
            yield engine

"""``synthetic`` in the contract suite: the timing model, a token every 2 ms, with a KV cache that has room for all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

NAME = "synthetic"
CAPABILITIES = frozenset({"chat", "completions"})
# The parameters of sampling are taken, and do nothing.
CAN = frozenset(
    {"seeds", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}
    | {"batch", "ids", "tokenize", "prefixes", "salts", "told", "blocks"}
)
PREFILL_WORDS = 20_000
SMALL_CACHE = {"synthetic": {"kv_blocks": 48}, "context_length": 512}


def missing() -> str:
    return ""


@asynccontextmanager
async def made(_: Path, **changes: Any) -> AsyncIterator[Engine]:
    timing = SyntheticConfig(**{"itl": timedelta(milliseconds=2), "kv_blocks": 400_000, **changes.pop("synthetic", {})})
    engine: Engine = engine_class(NAME).from_config(Config(name="contract", engine=NAME, synthetic=timing, **changes))
    try:
        yield engine
    finally:
        await engine.stop()


async def kill(engine: Any) -> None:
    """As its timer does it with ``dies_after``: it has no process of its own."""
    engine._die()

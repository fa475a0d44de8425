"""``llama_cpp`` in the contract suite: the worker's own child process, with the small model that a package ships."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from inferbus_worker.config import Config, LlamaCppConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

NAME = "llama_cpp"
CAPABILITIES = frozenset({"chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"})
CAN = frozenset(
    {"expressions", "seeds", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "model"}
    | {"batch", "ids", "tokenize", "prefixes", "salts", "told", "blocks"}
)
WHY = {"reasoning": "the tests' model does not reason"}
PREFILL_WORDS = 3000
SMALL_CACHE = {"llama_cpp": {"prompt_cache_tokens": 512}}


def missing() -> str:
    return "" if find_spec("xllamacpp") else "the extra llama-cpp is not installed"


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    section = LlamaCppConfig(**changes.pop("llama_cpp", {}))
    config = Config(name="contract", engine=NAME, model_cache=cache, llama_cpp=section, **changes)
    engine: Engine = engine_class(NAME).from_config(config)
    try:
        yield engine
    finally:
        await engine.stop()


async def kill(engine: Any) -> None:
    os.kill(engine._server.pid, signal.SIGKILL)


async def held(_: Any) -> int:
    """Children that hold a model."""
    names = (" ".join(child.cmdline()) for child in psutil.Process().children() if child.is_running())
    return sum("llama_cpp_server" in name for name in names)

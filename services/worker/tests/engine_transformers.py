"""``transformers`` in the contract suite: the real packages and a tiny model made on the spot, on GPU or CPU."""

import importlib.util
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from inferbus_worker.config import Config, TransformersConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

from services.worker.tests.engine_tensorrt_llm import model_in

NAME = "transformers"
CAPABILITIES = frozenset({"chat", "completions"})
CAN = frozenset({"top_k", "model", "ids", "tokenize", "salts", "blocks"})
WHY = {
    "seeds": "the library has one for all requests",
    "min_p": "the library has one for all requests",
    "prefixes": "the library keeps nobody's apart, so they are off",
}
# Read 256 tokens a step, each of which takes this model some milliseconds.
PREFILL_WORDS = 12_000


def missing() -> str:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (make transformers)"
    return ""


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    """``changes``: of Config, or of its section (``transformers``)."""
    room = {"model_path": model_in(cache), "batch_tokens": 256, "kv_tokens": 49_152} | changes.pop("transformers", {})
    shared = {"name": "contract", "engine": NAME, "capacity": 16} | changes
    engine: Engine = engine_class(NAME).from_config(Config(**shared, transformers=TransformersConfig(**room)))
    try:
        yield engine
    finally:
        await engine.stop()


async def kill(engine: Any) -> None:
    os.kill(engine._child.pid, signal.SIGKILL)


async def held(_: Any) -> int:
    """Processes that generate."""
    children = psutil.Process().children(recursive=True)
    return sum("inferbus_worker.engines.transformers_child" in child.cmdline() for child in children)

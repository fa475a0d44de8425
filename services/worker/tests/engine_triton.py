"""``triton`` in the contract suite: family A's core model on a real tritonserver, with a small real model behind it."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inferbus_worker.config import Config, TritonConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

from services.worker.tests import smollm2_tokenizer
from services.worker.tests.triton_repository import server

NAME = "triton"
CAPABILITIES = frozenset({"chat", "completions", "structured_output", "logit_bias"})
CAN = frozenset(
    {"expressions", "seeds", "top_k", "repetition_penalty", "frequency_penalty", "presence_penalty", "model"}
    | {"batch", "ids", "tokenize", "prefixes", "overload", "blocks"}
)
WHY = {
    "min_p": "the backend has no tensor for it",
    "salts": "TensorRT-LLM's backend takes no salt",
    "reasoning": "the tests' model does not reason",
}
PREFILL_WORDS = 3000
UNLOADS = {"triton": {"control": "own"}}
_MODEL = "tensorrt_llm"


def missing() -> str:
    if find_spec("tritonclient") is None:
        return "the extra triton is not installed"
    return server.missing()


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    loads = changes.get("triton", {}).get("control") == "own"
    async with _serving(cache, [] if loads else [_MODEL]) as (triton, tokenizer):
        engine = engine_class("triton").from_config(config_of(triton, tokenizer, **changes))
        engine.tests_server = triton
        try:
            yield engine
        finally:
            await engine.stop()


@asynccontextmanager
async def crowded(cache: Path) -> AsyncIterator[Engine]:
    """A model that runs one request at a time, and lets one more wait in Triton's queue."""
    async with _serving(cache, ["narrow"]) as (triton, _):
        settings = {"triton": {"server_model": "narrow"}, "context_length": 8192}
        engine: Engine = engine_class("triton").from_config(config_of(triton, None, **settings))
        try:
            yield engine
        finally:
            await engine.stop()


@asynccontextmanager
async def _serving(cache: Path, names: list[str]) -> AsyncIterator[tuple[server.TritonServer, Path]]:
    """A tritonserver with these models loaded, and the folder of a tokenizer."""
    with TemporaryDirectory() as folder:
        async with server.llama(cache) as model:
            address = model.url.removeprefix("http://")
            async with server.triton(Path(folder), address, names) as triton:
                yield triton, smollm2_tokenizer.write(Path(folder) / "tokenizer")


def config_of(running: server.TritonServer, tokenizer: Path | None, **changes: Any) -> Config:
    """With the core model, as far as ``changes`` says nothing else."""
    settings = {
        "url": running.grpc,
        "tokenizer": tokenizer,
        "metrics_url": f"http://{running.metrics}/metrics",
        "metrics_interval": timedelta(seconds=0.5),
        "kv_block_tokens": 32,
        "probe_interval": timedelta(seconds=1),
        "start_timeout": timedelta(seconds=30),
        "control": "reload",
        **changes.pop("triton", {}),
    }
    return Config(name="contract", engine="triton", triton=TritonConfig(**settings), **{"capacity": 16, **changes})


async def kill(engine: Any) -> None:
    """The process of the model: the server, and the model on it, go on saying that they are ready."""
    os.kill(engine.tests_server.stub(_MODEL), signal.SIGKILL)


async def held(engine: Any) -> int:
    """Models that the server has loaded."""
    return int(await engine.tests_server.status(f"/v2/models/{_MODEL}/ready") == 200)

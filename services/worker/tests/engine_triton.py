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
PREFILL_WORDS = 3000
# Not "penalties": the backend has no min_p. Not "salts": Triton keeps nobody apart in its cache.
CAN = frozenset({"ids", "resume", "seeds", "batch", "tokenize", "bias"})


def missing() -> str:
    if find_spec("tritonclient") is None:
        return "the extra triton is not installed"
    return server.missing()


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    with TemporaryDirectory() as folder:
        async with server.llama(cache) as model:
            address = model.url.removeprefix("http://")
            async with server.triton(Path(folder), address, ["tensorrt_llm"]) as triton:
                tokenizer = smollm2_tokenizer.write(Path(folder) / "tokenizer")
                engine = engine_class("triton").from_config(config_of(triton, tokenizer, **changes))
                engine.tests_server = triton
                yield engine
                await engine.stop()


def config_of(running: server.TritonServer, tokenizer: Path | None, **changes: Any) -> Config:
    """With the core model, as far as ``changes`` says nothing else."""
    settings = {
        "url": running.grpc,
        "tokenizer": tokenizer,
        "metrics_url": f"http://{running.metrics}/metrics",
        "probe_interval": timedelta(seconds=1),
        "start_timeout": timedelta(seconds=30),
        "control": "reload",
        **changes.pop("triton", {}),
    }
    return Config(name="contract", engine="triton", triton=TritonConfig(**settings), **{"capacity": 16, **changes})


async def kill(engine: Any) -> None:
    """The process of the model: the server, and the model on it, go on saying that they are ready."""
    os.kill(engine.tests_server.stub("tensorrt_llm"), signal.SIGKILL)

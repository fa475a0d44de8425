"""TensorRT-LLM for the engine contract: the real package, on a real GPU, with a tiny model made on the spot.

Nobody has run this yet: no machine of this project's has had the package. What it promises is read, not seen.
"""

import importlib.util
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from inferbus_worker.config import Config, TensorRtLlmConfig
from inferbus_worker.engine import Engine
from inferbus_worker.engines import engine_class

NAME = "tensorrt_llm"
NEVER_RUN = "no machine of this project's has had TensorRT-LLM and a GPU that it runs on"
CAPABILITIES = frozenset({"chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"})
# Read 64 tokens a step, each of which takes a GPU a millisecond or more, whatever the model's size.
PREFILL_WORDS = 20_000
SMALL_CACHE = {"tensorrt_llm": {"kv_tokens": 1024}, "context_length": 512, "capacity": 1}
# Of what is promised beyond capabilities: a draw's seed and the penalties work with some versions and samplers only,
# and are refused by name with the others; a greedy text depends on its batch in the last bits of a logit.
CAN = frozenset({"expressions", "ids", "tokenize", "top_k", "model", "prefixes", "salts", "told", "blocks"})


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return "this machine has no NVIDIA GPU"
    for package in ("tensorrt_llm", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    return ""


def model_in(cache: Path) -> Path:
    """The tiny model, made once a cache."""
    folder = cache / "gpu-model"
    if not (folder / "model.safetensors").exists():
        spec = importlib.util.spec_from_file_location("gpu_model", Path(__file__).with_name("gpu_model.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.write_model(folder)
    return folder


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    """``changes``: of Config, or of its section (``tensorrt_llm``)."""
    room = {
        "model_path": model_in(cache), "batch_tokens": 64, "kv_tokens": 131_072, "kv_memory_fraction": 0.3,
        "kv_events": 65_536,
    } | changes.pop("tensorrt_llm", {})  # fmt: skip
    shared = {"name": "contract", "engine": NAME, "capacity": 16} | changes
    engine: Engine = engine_class(NAME).from_config(Config(**shared, tensorrt_llm=TensorRtLlmConfig(**room)))
    try:
        yield engine
    finally:
        await engine.stop()


async def kill(engine: Any) -> None:
    """Its worker process, which has the GPU. MPI may take the whole job down with it: then so does this test."""
    for child in psutil.Process().children(recursive=True):
        if "mpi4py" in " ".join(child.cmdline()) or "tensorrt_llm" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)

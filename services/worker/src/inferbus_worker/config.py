"""What a worker is told, by variables INFERBUS_WORKER_…"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Literal

from inferbus_runtime.config import Section, ServiceConfig
from pydantic import Field


class LlamaCppConfig(Section):
    """Variables INFERBUS_WORKER_LLAMA_CPP__…"""

    precision: Literal["f32", "f16"] = "f32"
    """Of weights and KV cache: with f32 a greedy text does not depend on its neighbours in a batch; f16 takes half."""
    kv_tokens: int = Field(default=16384, ge=512)
    """Tokens in the KV cache that all generations share, 46 KB each (f16: 23); when full the youngest wait a while."""
    batch_tokens: int = Field(default=256, ge=32, le=2048)
    """Tokens that one engine call takes at most; more makes prefill faster and the gaps of running streams longer."""
    prompt_cache_tokens: int = Field(default=2048, ge=0)
    """KV cells kept for ended prompts that may come again; the oldest leave above it. Each cell slows every step."""
    omp_wait_policy: Literal["passive", "active", "default"] = "passive"
    """Whether engine threads spin while they wait: passive shares the cores with other processes, active does not."""


class SyntheticConfig(Section):
    """Variables INFERBUS_WORKER_SYNTHETIC__…"""

    itl: timedelta = Field(default=timedelta(milliseconds=20), gt=timedelta(0))
    """Time of one engine step: each running generation gets one token."""
    prefill: timedelta = Field(default=timedelta(microseconds=50), ge=timedelta(0))
    """Time per input token before the first token."""
    jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    """Each step takes up to this fraction longer or shorter, by a fixed sequence; 0 switches it off."""
    dies_after: timedelta | None = Field(default=None, gt=timedelta(0))
    """The engine dies this long after each start, with all that runs: to see what follows; unset: never."""


class Config(ServiceConfig):
    """One worker: one engine, one model."""

    engine: Literal["llama_cpp", "minilm", "synthetic"] = "llama_cpp"
    """The software that generates; its packages must be installed, else the worker does not start."""
    model: str | None = Field(default=None, min_length=1, max_length=128)
    """Public model name; unset: the engine's own."""
    capacity: int | None = Field(default=None, ge=1, le=65536)
    """Generations that run at once, more wait; unset: 16 (llama_cpp), 64 (minilm), 1024 (synthetic)."""
    threads: int | None = Field(default=None, ge=1, le=512)
    """Threads of the engine; unset: one for each core that this process may use."""
    context_length: int | None = Field(default=None, ge=128)
    """Input and output tokens of one generation: longer input is refused, output ends there; unset: the model's own."""
    model_cache: Path | None = None
    """Folder for prepared model files (540 MB); unset: the user's cache folder."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=6), ge=timedelta(seconds=1))
    """A worker that cannot renew its lease for this long stops publishing, and is taken for dead."""
    heartbeat_interval: timedelta = Field(default=timedelta(milliseconds=500), gt=timedelta(0))
    """Load is told at least this often, and at once when it changes."""
    max_unacked_frames: int = Field(default=4096, ge=1)
    """Frames not yet stored; above it generation pauses until the broker has caught up."""
    max_engine_restarts: int = Field(default=3, ge=0)
    """Restarts of a dead engine within engine_restart_window; one more fails what runs and stops the worker."""
    engine_restart_window: timedelta = Field(default=timedelta(minutes=5), gt=timedelta(0))
    """The time over which restarts are counted."""
    llama_cpp: LlamaCppConfig = LlamaCppConfig()
    synthetic: SyntheticConfig = SyntheticConfig()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))

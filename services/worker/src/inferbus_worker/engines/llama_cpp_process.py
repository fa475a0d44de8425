"""The engine's process: started, watched, ended."""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engines.llama_cpp_model import Precision

log = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How llama.cpp runs.

    ``context_length``: bound of one generation, 0 for the model's own. ``kv_tokens``: size of the KV cache that all
    slots share (46 KB a token for the default model, half in f16). ``batch_tokens``: bound of one engine call.
    ``adapters``: files of LoRA adapters by name, in the order in which the server counts them.
    """

    slots: int
    context_length: int
    precision: Precision
    kv_tokens: int
    batch_tokens: int
    threads: int
    omp_wait_policy: str
    adapters: Mapping[str, Path] = field(default_factory=dict)


class ServerProcess:
    """A running child. ``url``: where it listens; ``dead`` is set when it is gone, wanted or not."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, errors: deque[str]) -> None:
        self._process = process
        self._errors = errors
        self.url = url
        self.pid = process.pid
        self.dead = asyncio.Event()
        self._watch = asyncio.create_task(self._await_end(), name="engine-child")

    @classmethod
    async def start(cls, model: Path, settings: ServerSettings) -> "ServerProcess":
        """Ready to serve when it returns. Raises InferBusError (unavailable) with the child's last words otherwise."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_worker.engines.llama_cpp_server",
            "--model", str(model), "--parent", str(os.getpid()),
            "--slots", str(settings.slots), "--context-length", str(settings.context_length),
            "--precision", settings.precision, "--kv-tokens", str(settings.kv_tokens),
            "--batch-tokens", str(settings.batch_tokens),
            "--threads", str(settings.threads), "--omp-wait-policy", settings.omp_wait_policy,
            *(f"--lora={path}" for path in settings.adapters.values()),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        errors: deque[str] = deque(maxlen=20)
        assert process.stdout is not None  # noqa: S101  (a pipe)
        assert process.stderr is not None  # noqa: S101
        drain = asyncio.create_task(keep_last(process.stderr, errors), name="engine-stderr")
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                url = (await process.stdout.readline()).decode().strip()
        except BaseException:
            await end(process)
            raise
        if not url:
            await end(process)
            await drain
            raise start_failed(f"exit code {process.returncode}: {' | '.join(errors)}")
        return cls(process, url, errors)

    async def _await_end(self) -> None:
        code = await self._process.wait()
        log.info("engine process ended", extra={"exit_code": code})
        self.dead.set()

    def last_words(self) -> str:
        """Exit code and last lines of standard error, for an operator."""
        return f"exit code {self._process.returncode}: {' | '.join(self._errors)}"

    async def stop(self) -> None:
        """Ended when it returns. Safe twice."""
        await end(self._process)
        await self._watch


async def keep_last(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    """The child logs errors only; the last are kept to say why it died. Ends with the stream."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the stream's limit: left out, since a child whose pipe is full stands still
            continue
        if not line:
            return
        lines.append(line.decode(errors="replace").rstrip())


async def end(process: asyncio.subprocess.Process) -> None:
    """Killed: it has nothing of its own to save, and one that stands still hears no other signal."""
    if process.returncode is None:
        process.kill()
        await process.wait()

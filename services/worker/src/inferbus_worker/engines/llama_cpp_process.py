"""The engine's process: started, watched, ended."""

import asyncio
import logging
import os
import sys
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from inferbus_runtime.errors import unavailable

from inferbus_worker.engines.llama_cpp_model import Precision

log = logging.getLogger(__name__)

_START_TIMEOUT_SECONDS = 120.0
_STOP_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How llama.cpp runs.

    ``context_length``: bound of one generation, 0 for the model's own. ``kv_tokens``: size of the KV cache that all
    slots share (46 KB a token for the default model, half in f16). ``batch_tokens``: bound of one engine call.
    """

    slots: int
    context_length: int
    precision: Precision
    kv_tokens: int
    batch_tokens: int
    threads: int
    omp_wait_policy: str


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
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        errors: deque[str] = deque(maxlen=20)
        assert process.stdout is not None  # noqa: S101  (a pipe)
        assert process.stderr is not None  # noqa: S101
        drain = asyncio.create_task(_keep_last(process.stderr, errors), name="engine-stderr")
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                url = (await process.stdout.readline()).decode().strip()
        except BaseException:
            await _end(process)
            raise
        if not url:
            await _end(process)
            await drain
            raise unavailable(
                "engine_start_failed",
                "The model's engine did not start.",
                retry_after=timedelta(seconds=10),
                diagnostic=f"exit code {process.returncode}: {' | '.join(errors)}",
            )
        return cls(process, url, errors)

    async def _await_end(self) -> None:
        code = await self._process.wait()
        log.info("engine process ended", extra={"exit_code": code})
        self.dead.set()

    def last_words(self) -> str:
        """Exit code and last lines of standard error, for an operator."""
        return f"exit code {self._process.returncode}: {' | '.join(self._errors)}"

    def kill(self) -> None:
        """Ends a child that no longer moves; ``dead`` follows."""
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """Ended when it returns. Safe twice."""
        await _end(self._process)
        await self._watch


async def _keep_last(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    """The child logs errors only; the last are kept to say why it died. Ends with the stream."""
    while line := await stream.readline():
        lines.append(line.decode(errors="replace").rstrip())


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()

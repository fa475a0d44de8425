"""The engine's process: started, written to, read, ended. What is said either way is in :mod:`.transformers_child`."""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from inferbus_worker.config import Config, usable_cores
from inferbus_worker.core.start_faults import refusal, start_failed
from inferbus_worker.engines.llama_cpp_process import end, keep_last
from inferbus_worker.engines.transformers_files import Files

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 64
# Of what is not read yet twice this is kept here, and then the child waits: at least, and for each of its generations,
# whose part of a step's line has some 20 bytes.
_BUFFER_BYTES = 16 * 1024
_LINE_BYTES = 32


def child_settings(config: Config, files: Files) -> dict[str, Any]:
    """What the child is told first."""
    told = config.transformers.model_dump(mode="json", exclude={"start_timeout", "tokenizer_path"})
    return told | {
        "parent": os.getpid(),
        "threads": config.threads or usable_cores(),
        "capacity": config.capacity or DEFAULT_CAPACITY,
        "end_ids": list(files.end_ids),
    }


class Child:
    """A running child that has made a token. ``about``: what it says of itself."""

    def __init__(self, process: asyncio.subprocess.Process, about: dict[str, Any], errors: deque[str]) -> None:
        self._process = process
        self._errors = errors
        self.about = about
        self.pid = process.pid

    @classmethod
    async def start(cls, settings: Mapping[str, Any], timeout: float) -> "Child":
        """Raises InferBusError: what it refuses, or its last words."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_worker.engines.transformers_child",
            limit=max(_BUFFER_BYTES, _LINE_BYTES * settings["capacity"]),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        errors: deque[str] = deque(maxlen=20)
        assert process.stdout is not None  # noqa: S101  (a pipe)
        assert process.stderr is not None  # noqa: S101
        drain = asyncio.create_task(keep_last(process.stderr, errors), name="engine-stderr")
        child = cls(process, {}, errors)
        child.send(settings)
        try:
            async with asyncio.timeout(timeout):
                line = await process.stdout.readline()
        except BaseException as error:
            await end(process)
            if isinstance(error, TimeoutError):
                raise start_failed(f"it was not ready after {timeout:g} s: {' | '.join(errors)}") from error
            raise
        message = orjson.loads(line) if line.endswith(b"\n") else {}
        if "ready" not in message:
            await end(process)
            await drain
            raise refusal(*message["refused"]) if "refused" in message else start_failed(child.last_words())
        child.about = message["ready"]
        return child

    def send(self, message: Mapping[str, Any]) -> None:
        """Returns at once. To a child that is gone: nothing happens, its steps end."""
        assert self._process.stdin is not None  # noqa: S101  (a pipe)
        self._process.stdin.write(orjson.dumps(message) + b"\n")

    async def steps(self) -> AsyncIterator[dict[str, Any]]:
        """Until the child is gone. What is not read here, it waits with."""
        assert self._process.stdout is not None  # noqa: S101  (a pipe)
        while (line := await self._process.stdout.readline()).endswith(b"\n"):
            yield orjson.loads(line)
        code = await self._process.wait()
        log.info("engine process ended", extra={"exit_code": code})

    def last_words(self) -> str:
        """Exit code and last lines of standard error, for an operator."""
        return f"exit code {self._process.returncode}: {' | '.join(self._errors)}"

    async def stop(self) -> None:
        """Ended when it returns. Safe twice."""
        await end(self._process)

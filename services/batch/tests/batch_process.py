"""``python -m inferbus_batch`` under test."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

READY_SECONDS = 60.0


async def until(condition: Callable[[], object], timeout: float = READY_SECONDS) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


class BatchProcess:
    """One batch service on ``url``, which may be started again."""

    def __init__(self, folder: Path, url: str, name: str = "batch") -> None:
        self.name = name
        self.ready_file = folder / f"ready-{name}.json"
        self.log_file = folder / f"{name}.log"
        self._url = url
        self._process: asyncio.subprocess.Process | None = None
        self.ready: dict[str, str] = {}

    async def start(self, **settings: str) -> None:
        """Returns when it serves. ``settings``: variables without their prefix."""
        self.ready_file.unlink(missing_ok=True)
        process = await self.launch(**settings)
        await until(lambda: self.ready_file.exists() or process.returncode is not None)
        assert self.ready_file.exists(), self.log()
        self.ready = json.loads(self.ready_file.read_text())

    async def launch(self, **settings: str) -> asyncio.subprocess.Process:
        variables = {
            "NAME": self.name, "NATS_URL": self._url, "READY_FILE": str(self.ready_file),
            "METRICS_ADDRESS": "127.0.0.1:0", "DIE_WITH_PARENT": "true", **settings,
        }  # fmt: skip
        environ = {**os.environ, **{f"INFERBUS_BATCH_{name}": value for name, value in variables.items()}}
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inferbus_batch", env=environ, stdout=log, stderr=log
            )
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def end(self, how: signal.Signals) -> int | None:
        """Returns the exit code; None if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.send_signal(how)
        async with asyncio.timeout(READY_SECONDS):
            return await process.wait()

    def log(self) -> str:
        return self.log_file.read_text()

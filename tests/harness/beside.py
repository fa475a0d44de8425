"""A service of our own beside those of a stack: started as one of its kind, with settings of ours over it."""

import asyncio
import json
import os
import signal
import sys
from typing import Any

import psutil

from tests.harness.local import Stack


class Beside:
    """``like``: the stack's process of the same kind (``worker-0``, ``edge``), whose environment it gets. On the bus
    it is the operator. ``settings``: without their prefix."""

    def __init__(self, stack: Stack, like: str, name: str, **settings: str) -> None:
        self.name = name
        self._role = like.partition("-")[0]
        self._ready = stack.home / f"{name}.ready.json"
        self._log = stack.home / "logs" / f"{name}.log"
        ours = {
            "NAME": name, "NATS_SEED": stack.content["nats_seed"], "READY_FILE": str(self._ready),
            "GRPC_ADDRESS": "127.0.0.1:0", **settings,
        }  # fmt: skip
        ours |= {"HTTP_PORT": "0", "INFERENCE_GRPC_ADDRESS": ""} if self._role == "edge" else {"METRICS_ADDRESS": ""}
        prefix = f"INFERBUS_{self._role.upper()}_"
        known = psutil.Process(stack.pids[like]).environ() | {prefix + key: value for key, value in ours.items()}
        self._environ = {key: value for key, value in known.items() if value or not key.startswith(prefix)}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> "Beside":
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"inferbus_{self._role}", env=self._environ, stdout=log, stderr=log
            )
        async with asyncio.timeout(120):
            while not self._ready.exists():
                assert self._process.returncode is None, self._log.read_text()[-4000:]
                await asyncio.sleep(0.05)
        return self

    @property
    def said(self) -> dict[str, Any]:
        """Its ready file."""
        content: dict[str, Any] = json.loads(self._ready.read_text())
        return content

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

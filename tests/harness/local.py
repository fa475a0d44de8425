"""``inferbus up`` on a folder of its own, watched through its public ``stack.json``."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

INFERBUS = str(Path(sys.executable).parent / "inferbus")


class Stack:
    """A running stack. Its content is read anew at each look, since restarts rewrite it."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process) -> None:
        self.home = home
        self.process = process

    @property
    def content(self) -> dict[str, Any]:
        return json.loads((self.home / "stack.json").read_text())

    @property
    def base_url(self) -> str:
        return self.content["base_url"]

    @property
    def chat_url(self) -> str:
        return f"{self.base_url}/chat/completions"

    @property
    def api_key(self) -> str:
        return self.content["api_key"]

    @property
    def admin_key(self) -> str:
        return self.content["admin_key"]

    @property
    def root_url(self) -> str:
        """Of the first edge, without the API's version."""
        return self.base_url.removesuffix("/v1")

    @property
    def edge_urls(self) -> list[str]:
        """The base URL of each edge, the first one's first."""
        services = self.content["services"]
        return [f"{services[name]['url']}/v1" for name in sorted(services) if name.partition("-")[0] == "edge"]

    @property
    def pids(self) -> dict[str, int]:
        return {name: entry["pid"] for name, entry in self.content["services"].items()}

    def kill(self, name: str) -> int:
        """kill -9 of one process; returns its pid."""
        pid = self.pids[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextmanager
    def nothing_restarts(self) -> Iterator[None]:
        """What is killed meanwhile stays away so long: the supervisor stands still."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    async def restarted(self, name: str, old_pid: int, timeout: float = 60) -> None:
        """Returns when stack.json names a new process."""
        await until(lambda: self.pids[name] != old_pid, timeout)

    async def cli(self, *arguments: str) -> tuple[int, str]:
        """One call of the command line tool: (exit code, output)."""
        process = await asyncio.create_subprocess_exec(
            INFERBUS, *arguments, env={**os.environ, "INFERBUS_HOME": str(self.home)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def new_key(self, **fields: Any) -> str:
        """The secret of a new key (fields of CreateKeyRequest), known to every edge."""
        async with httpx.AsyncClient() as http:
            asked = {"tenant_id": "default", "project_id": "default", "name": "test", **fields}
            admin = {"Authorization": f"Bearer {self.admin_key}"}
            made = await http.post(f"{self.root_url}/inferbus/v1/keys", json=asked, headers=admin)
            made.raise_for_status()
            secret: str = made.json()["secret"]
            async with asyncio.timeout(60):
                for url in self.edge_urls:
                    while (await _status(http, f"{url}/models", secret)) == 401:
                        await asyncio.sleep(0.02)
        return secret

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in (self.home / "logs").glob("*.log"))


async def _status(http: httpx.AsyncClient, url: str, key: str) -> int:
    return (await http.get(url, headers={"Authorization": f"Bearer {key}"})).status_code


async def until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    home: Path, engine: str, *options: str, variables: dict[str, str] | None = None, timeout: float = 90
) -> AsyncIterator[Stack]:
    """A stack on ``home``; ``variables`` are passed on to the services. Stopped by the Ctrl-C that users press."""
    home.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        (home / "stack.json").unlink()
    with (home / "up.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            INFERBUS, "up", "--home", str(home), "--port", "0", "--engine", engine, *options,
            env={**os.environ, **(variables or {})}, stdout=log, stderr=log,
        )  # fmt: skip
    stack = Stack(home, process)
    family: list[psutil.Process] = []
    try:
        async with asyncio.timeout(timeout):
            while not (home / "stack.json").exists():
                if process.returncode is not None:
                    raise RuntimeError((home / "up.log").read_text() + stack.logs())
                await asyncio.sleep(0.05)
        yield stack
    finally:
        if process.returncode is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(60):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
                raise
    left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    if left:
        raise RuntimeError(f"processes left behind: {left}")

"""The stack of the demo: `inferbus up` as a child, on a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from inferbus_runtime import clock
from inferbus_stack.home import Home, StackError, read_stack

from inferbus_cli.target import Target

_READY_SECONDS = 180.0
_STOP_SECONDS = 60.0
_EVERY_SECONDS = 0.05


class DemoStack:
    """Two edges, two workers, one of all else. Use as a context manager: it is stopped at the end. ``keep``: its folder
    stays then."""

    def __init__(self, engine: str, *, keep: bool = False) -> None:
        self._engine = engine
        self._keep = keep
        self._home = Path(tempfile.mkdtemp(prefix="inferbus-demo-"))
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DemoStack":
        """Returns when all of it serves. Raises ClickException with what it said if it does not."""
        options = ("--port", "0", "--workers", "2", "--edges", "2", "--no-embeddings", "--engine", self._engine)
        command = (sys.executable, "-m", "inferbus_cli", "up", "--home", str(self.folder), *options)
        with self._log.open("wb") as output:
            # A group of its own: Ctrl-C is for the demo, which stops it in order.
            self._child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            self._wait()
        except click.ClickException:
            self._stop()  # the folder stays: its logs say why
            raise
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if not self._keep:
            shutil.rmtree(self._home, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Of its data and logs."""
        return self._home / "stack"

    @property
    def content(self) -> dict[str, Any]:
        """Of stack.json now: what is started again has another pid."""
        return read_stack(Home(self.folder))

    @property
    def edges(self) -> list[str]:
        """Their URLs, by name."""
        services = self.content["services"]
        return [services[name]["url"] for name in sorted(services) if name.partition("-")[0] == "edge"]

    def target(self, url: str) -> Target:
        return Target(url, self.content["api_key"], self.content["admin_key"], None)

    def name_of(self, url: str) -> str:
        """Of an edge."""
        return next(str(name) for name, one in self.content["services"].items() if one.get("url") == url)

    def kill(self, name: str) -> int:
        """kill -9; its pid."""
        pid = int(self.content["services"][name]["pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    @property
    def _log(self) -> Path:
        return self._home / "up.log"

    def _wait(self) -> None:
        deadline = clock.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self._child is None or self._child.poll() is not None or clock.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-4000:]
                raise click.ClickException(f"the stack did not start; its logs are in {self._home}:\n{said}")
            time.sleep(_EVERY_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return bool(self.content["services"])
        except (StackError, json.JSONDecodeError):
            return False

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)  # at once
                try:
                    child.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()

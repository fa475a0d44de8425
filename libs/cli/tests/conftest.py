"""Real stacks, started by the command itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from inferbus_cli.__main__ import cli

_READY_SECONDS = 90
Launch = Callable[..., "RunningStack"]


class RunningStack:
    """One ``inferbus up --engine synthetic`` and what belongs to it."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        home.parent.mkdir(parents=True, exist_ok=True)
        self.output_file = home.with_suffix(".out")
        command = [sys.executable, "-m", "inferbus_cli", "up", "--home", str(home), "--port", "0", *options]
        environ = {"INFERBUS_WORKER_SYNTHETIC__ITL": "2ms"} | os.environ
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--engine", "synthetic"], stdout=output, stderr=output, env=environ
            )

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def content(self) -> dict[str, Any]:
        return json.loads((self.home / "stack.json").read_text())

    def pids(self) -> dict[str, int]:
        return {name: entry["pid"] for name, entry in self.content["services"].items()}

    def wait_ready(self) -> "RunningStack":
        until(lambda: "Ready after" in self.output or self.process.poll() is not None, _READY_SECONDS)
        assert self.process.poll() is None, self.output
        return self

    def family(self) -> list[psutil.Process]:
        """The supervisor and all that it has started, directly or not."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(90)

    def run(self, *arguments: str, check: bool = True, stdin: str | None = None) -> Result:
        """The command ``inferbus`` with the stack's folder, as a person would give it; in this process, to be quick."""
        done = CliRunner().invoke(cli, arguments, input=stdin, env={"INFERBUS_HOME": str(self.home)})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert not check or done.exit_code == 0, f"{arguments}: {done.output}"
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)


def until(true: Callable[[], bool], seconds: float) -> None:
    """Poll until it holds. Fails the test if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts stacks that are gone when the test ends, however it ends."""
    started: list[RunningStack] = []

    def start(home: Path, *options: str) -> RunningStack:
        started.append(RunningStack(home, *options))
        return started[-1].wait_ready()

    yield start
    for stack in started:
        stack.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack that many tests ask; none of them breaks it."""
    running = RunningStack(tmp_path_factory.mktemp("shared") / "stack", "--workers", "2", "--edges", "2")
    try:
        yield running.wait_ready()
    finally:
        running.end()

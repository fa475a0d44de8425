"""``inferbus up --autoscale``: workers come and go with the load, and no request notices but by its time."""

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from libs.cli.tests.conftest import Launch, RunningStack, until

_SECONDS = 120


class Load:
    """Requests at once, each in a thread of its own."""

    def __init__(self, stack: RunningStack, count: int, tokens: int) -> None:
        self.answers: list[Any] = []
        self._content = stack.content
        self._threads = [threading.Thread(target=self._ask, args=(tokens,)) for _ in range(count)]
        for each in self._threads:
            each.start()

    def _ask(self, tokens: int) -> None:
        body = {"model": "synthetic", "max_tokens": tokens, "messages": [{"role": "user", "content": "Go."}]}
        headers = {"Authorization": f"Bearer {self._content['api_key']}", "Content-Type": "application/json"}
        url = f"{self._content['base_url']}/chat/completions"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
                self.answers.append(json.load(answer)["usage"]["completion_tokens"])
        except OSError as error:
            self.answers.append(error)

    def ended(self) -> list[Any]:
        for each in self._threads:
            each.join(_SECONDS)
        return self.answers


@pytest.fixture
def scaled(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningStack:
    monkeypatch.setenv("INFERBUS_WORKER_CAPACITY", "2")
    monkeypatch.setenv("INFERBUS_SCHEDULER_SCALE_DOWN_WINDOW", "1s")
    return launch(tmp_path / "stack", "--autoscale", "--workers", "3")


def workers(stack: RunningStack) -> set[str]:
    return {name for name in stack.pids() if name.startswith("worker-")}


def test_load_starts_workers_idleness_drains_them_and_a_request_wakes_one(scaled: RunningStack) -> None:
    until(lambda: "scaled from 1 to 3" in scaled.output, _SECONDS)
    before = scaled.output.partition("scaled from 1 to 3")[0]
    assert {name for name in ("worker-0", "worker-1", "worker-2") if f"{name} is ready" in before} == {"worker-0"}

    load = Load(scaled, 6, 3000)
    until(lambda: all(f"worker-{n} is ready" in scaled.output for n in range(3)), _SECONDS)
    # Two are too many at once: they finish what they run, and only then they leave.
    scaled.run("deployments", "set", "synthetic", "--max", "1")
    assert load.ended() == [3000] * 6
    until(lambda: workers(scaled) == {"worker-0"}, _SECONDS)

    scaled.run("deployments", "set", "synthetic", "--min", "0", "--max", "3", "--idle-time", "2s")
    until(lambda: not workers(scaled), _SECONDS)
    shown = scaled.json("deployments", "show", "synthetic")["scaling"]
    assert shown["reason"] == "idle"
    assert "replicas" not in shown

    assert Load(scaled, 1, 5).ended() == [5]
    events = scaled.json("audit-log", "--tenant", "operator")
    assert [one["type"] for one in events if one["type"].startswith("deployment.")] == ["deployment.set"] * 2


def test_nothing_brings_grpc_along_before_the_supervisor_has_told_it_to_leave_forks_alone() -> None:
    loaded = "import inferbus_cli.__main__, inferbus_cli.commands.up, sys; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True)

"""``inferbus up``: the whole platform as real processes that are killed, stopped and started again."""

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import openai
import pytest
from inferbus_cli.commands.up import _ready
from inferbus_stack.home import Home
from rich.console import Console

from .conftest import Launch, RunningStack, all_gone, until


def asks(stack: RunningStack) -> dict[str, object]:
    return stack.json("chat", "hello", "--max-tokens", "5")


def up(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One that does not come up, to its end."""
    command = [sys.executable, "-m", "inferbus_cli", "up", "--port", "0", "--engine", "synthetic", *options]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=90, check=False)


def test_it_says_how_to_use_it(stack: RunningStack) -> None:
    content = stack.content
    for wanted in (content["base_url"], content["services"]["edge-1"]["url"], "curl -N", "Ready after"):
        assert wanted in stack.output


def test_what_is_no_terminal_is_told_where_the_keys_are_and_not_the_keys(stack: RunningStack) -> None:
    """A journal keeps what it is told, and shows it to many."""
    for name, kept in (("api_key", "api-key"), ("admin_key", "admin-key")):
        file = stack.home / "secrets" / kept
        assert f"in {file}\n" in stack.output
        assert file.read_text().strip() == stack.content[name]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = [path.read_text().strip() for path in (stack.home / "secrets").iterdir() if path.is_file()]
    assert [secret for secret in secrets if secret in stack.output] == []


def test_a_forced_colour_makes_no_terminal(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI systems set it
    console = Console(highlight=False, soft_wrap=True)
    assert console.is_terminal
    _ready(console, console.status(""), stack.content, Home(stack.home), "synthetic", 1.0)
    said = capsys.readouterr().out
    assert str(stack.home / "secrets" / "api-key") in said
    assert stack.content["api_key"] not in said
    assert stack.content["admin_key"] not in said


def test_an_engine_whose_model_its_variables_name_says_how_to_ask_for_the_name(
    stack: RunningStack, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    _ready(console, console.status(""), stack.content, Home(stack.home), None, 1.0)
    said = capsys.readouterr().out
    assert f"{stack.content['base_url']}/models" in said
    assert "None" not in said


def test_on_a_terminal_it_shows_the_keys(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "inferbus_cli", "up", "--home", str(tmp_path / "stack"), "--port", "0"]
    process = subprocess.Popen([*command, "--engine", "synthetic"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while b"Say hello." not in said:
            ready, _, _ = select.select([terminal], [], [], 90)
            assert ready, said
            said += os.read(terminal, 65_536)
        content = json.loads((tmp_path / "stack" / "stack.json").read_text())
        assert f"API key    {content['api_key']}".encode() in said
        assert f"admin key  {content['admin_key']}".encode() in said
        assert f"Bearer {content['api_key']}".encode() in said
    finally:
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # it would wait for who reads its terminal
            if select.select([terminal], [], [], 0.1)[0]:
                with suppress(OSError):
                    os.read(terminal, 65_536)
        os.close(terminal)
    assert process.returncode == 0


def test_the_curl_line_that_it_prints_works(stack: RunningStack) -> None:
    line = next(line for line in stack.output.splitlines() if "curl -N" in line)
    answer = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout.rstrip().endswith("data: [DONE]")


def test_stack_json_keeps_its_contract(stack: RunningStack) -> None:
    content = stack.content
    assert stat.S_IMODE((stack.home / "stack.json").stat().st_mode) == 0o600
    assert content["base_url"].endswith("/v1")
    assert content["nats_url"].startswith("nats://")
    assert set(content["clickhouse"]) == {"url", "user", "password", "database"}
    assert set(content["analyst"]) == {"user", "password"}
    ours = ("edge", "edge-1", "batch", "scheduler", "worker-0", "worker-1", "meter")
    assert set(content["services"]) == {*ours, "nats", "clickhouse"}
    assert all(content["services"][name]["grpc"] for name in ours)


def test_no_service_was_refused_anything_on_the_bus(stack: RunningStack) -> None:
    asks(stack)
    stack.run("audit")
    said = "".join(path.read_text() for path in (stack.home / "logs").glob("*.log"))
    assert "permissions violation" not in said.lower()


def test_a_second_one_on_the_same_folder_is_refused(stack: RunningStack) -> None:
    refused = up("--home", str(stack.home))
    assert refused.returncode == 1
    assert f"a stack already runs on {stack.home} (process {stack.process.pid})" in refused.stderr
    assert stack.content  # and the running one is left alone


def test_a_taken_port_is_said_at_once(stack: RunningStack, tmp_path: Path) -> None:
    port = stack.content["base_url"].rsplit(":", 1)[1].removesuffix("/v1")
    refused = up("--home", str(tmp_path / "other"), "--port", port)
    assert refused.returncode == 1
    assert f"port {port} for edge-0-http is in use" in refused.stderr


def test_a_service_that_cannot_start_shows_why_and_leaves_nothing(tmp_path: Path) -> None:
    failed = up("--home", str(tmp_path / "s"), INFERBUS_WORKER_CAPACITY="many")
    assert failed.returncode == 1
    assert "worker-0 exited with code 2 while starting" in failed.stderr
    assert "INFERBUS_WORKER_CAPACITY" in failed.stderr
    assert not (tmp_path / "s" / "stack.json").exists()


def test_whatever_is_killed_comes_back_and_no_token_is_lost(launch: Launch, tmp_path: Path) -> None:
    stack = launch(tmp_path / "stack")
    asks(stack)
    before = stack.pids()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(stack.pids().values()) & set(before.values()), 90)
    assert set(stack.pids()) == set(before)
    until(lambda: stack.run("chat", "hello", "--max-tokens", "5", check=False).exit_code == 0, 60)
    assert "was killed by SIGKILL; starting it again" in stack.output
    stack.run("audit")
    stack.end()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_and_the_next_start_continues(
    launch: Launch, tmp_path: Path, how: signal.Signals
) -> None:
    stack = launch(tmp_path / "stack")
    asks(stack)
    until(lambda: bool(stack.json("usage").get("rows")), 20)
    before, family = stack.content, stack.family()
    assert len(family) >= 1 + len(before["services"])
    exit_code = stack.end(how)
    assert exit_code == (0 if how is signal.SIGINT else -signal.SIGKILL)
    until(lambda: all_gone(family), 30)
    if how is signal.SIGINT:
        assert not (tmp_path / "stack" / "stack.json").exists()

    again = launch(tmp_path / "stack")
    for name in ("base_url", "api_key", "admin_key", "nats_url", "nats_seed", "clickhouse", "analyst"):
        assert again.content[name] == before[name], name
    assert json.loads(again.run("usage", "--json").stdout)["rows"][0]["requests"] == "1"
    again.end()


def test_a_stop_lets_a_running_stream_end(launch: Launch, tmp_path: Path) -> None:
    stack = launch(tmp_path / "stack")
    with openai.OpenAI(base_url=stack.content["base_url"], api_key=stack.content["api_key"]) as client:
        stream = client.chat.completions.create(
            model="synthetic", messages=[{"role": "user", "content": "hello"}], max_tokens=500, stream=True
        )
        first = next(stream)
        stack.process.send_signal(signal.SIGINT)
        rest = list(stream)
    assert first.id == rest[-1].id
    assert rest[-1].choices[0].finish_reason == "length"
    assert stack.end() == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stop_while_it_starts_leaves_nothing(tmp_path: Path, signals: int) -> None:
    stack = RunningStack(tmp_path / "stack")
    until(lambda: "nats is ready" in stack.output, 60)
    family = stack.family()
    for _ in range(signals):
        stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(60) == 0, stack.output
    until(lambda: all_gone(family), 30)
    assert not (tmp_path / "stack" / "stack.json").exists()


def test_a_second_signal_ends_it_at_once(launch: Launch, tmp_path: Path) -> None:
    stack = launch(tmp_path / "stack")
    family = stack.family()
    for one in family[1:]:
        one.suspend()  # none of them listens any more
    stack.process.send_signal(signal.SIGINT)
    until(lambda: "stopping edge-0" in stack.output, 30)
    stack.process.send_signal(signal.SIGINT)
    stack.process.wait(10)
    until(lambda: all_gone(family), 30)

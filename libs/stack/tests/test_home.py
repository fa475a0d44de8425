"""The folder of a stack: one holder, kept ports, a stack.json that is whole."""

import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from inferbus_stack.home import Home, StackError, hold, is_free, keep_ports, read_stack, write_stack


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "stack")
    made.make_folders()
    return made


def test_only_the_owner_may_look_in(home: Home) -> None:
    for folder in (home.root, home.secrets, home.logs, home.run, home.nats, home.clickhouse):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_second_holder_is_told_who_has_it(home: Home) -> None:
    with hold(home), pytest.raises(StackError, match=r"already runs on .* \(process \d+\)"), hold(home):
        pass
    with hold(home):  # given back
        pass


def test_a_holder_that_was_killed_holds_nothing(home: Home) -> None:
    program = (
        "import pathlib, sys, time; from inferbus_stack.home import Home, hold\n"
        f"with hold(Home(pathlib.Path({str(home.root)!r}))): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StackError, match=str(holder.pid)), hold(home):
            pass
        holder.kill()
    with hold(home):
        pass


def test_ports_are_distinct_free_and_kept_from_start_to_start(home: Home) -> None:
    names = [f"port-{n}" for n in range(12)]
    first = keep_ports(home, names, {})
    assert len(set(first.values())) == len(names)
    assert all(is_free(port) for port in first.values())
    assert keep_ports(home, names, {}) == first


def test_a_kept_port_that_someone_took_is_replaced(home: Home) -> None:
    first = keep_ports(home, ["a", "b"], {})
    with socket.create_server(("127.0.0.1", first["a"])):
        second = keep_ports(home, ["a", "b"], {})
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_the_asked_for_port_is_taken_or_refused_in_words(home: Home) -> None:
    free = keep_ports(home, ["x"], {})["x"]
    assert keep_ports(home, ["edge-0-http"], {"edge-0-http": free}) == {"edge-0-http": free}
    with (
        socket.create_server(("127.0.0.1", free)),
        pytest.raises(StackError, match=f"port {free} for edge-0-http is in use"),
    ):
        keep_ports(home, ["edge-0-http"], {"edge-0-http": free})


def test_a_missing_stack_names_the_command_that_starts_one(home: Home) -> None:
    with pytest.raises(StackError, match="inferbus up --home"):
        read_stack(home)
    home.stack_file.write_text("{")
    with pytest.raises(StackError, match="cannot be read"):
        read_stack(home)


def test_stack_json_is_private_and_replaced_whole(home: Home) -> None:
    write_stack(home, {"base_url": "http://127.0.0.1:1/v1"})
    assert stat.S_IMODE(home.stack_file.stat().st_mode) == 0o600
    assert read_stack(home) == {"base_url": "http://127.0.0.1:1/v1"}
    assert json.loads(home.stack_file.read_text())
    assert [path.name for path in home.root.iterdir() if path.name.startswith(".")] == []

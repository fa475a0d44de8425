"""Starting, stopping, bounds, and clients that go away."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inferbus_stack.clickhouse.users import Users, UsersFileError

from .conftest import PASSWORDS, Server, write_users


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferbus_stack.clickhouse", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_path_has_one_owner(server: Server, tmp_path: Path) -> None:
    users = str(write_users(tmp_path))
    second = run("--path", str(server.path), "--port", "0", "--users", users)
    assert second.returncode == 3
    told = json.loads(second.stderr.splitlines()[-1])
    assert f"owned by another process (pid {server.process.pid})" in told["message"]
    taken = run("--path", str(tmp_path / "d"), "--port", str(server.port), "--users", users)
    assert taken.returncode == 3
    assert "cannot listen" in taken.stderr


def test_wrong_users_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "users.json"
    for content in (
        "{}", "[]", "nonsense", '{"a": 1}', '{"a": {"profile": "admin"}}',
        '{"a": {"password": "", "profile": "admin"}}',
        '{"a": {"password": "x"}}', '{"a": {"password": "x", "profile": "root"}}',
        '{"a": {"password_sha256_hex": "xyz", "profile": "admin"}}',
        '{"a": {"password": "x", "password_sha256_hex": "00", "profile": "admin"}}',
        '{"a": {"password": "x", "profile": "admin", "extra": 1}}',
    ):  # fmt: skip
        file.write_text(content)
        with pytest.raises(UsersFileError):
            Users.load(file)
    assert run("--path", str(tmp_path / "d"), "--port", "0", "--users", str(tmp_path / "none")).returncode == 2
    assert not (tmp_path / "d").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(server: Server, words: str) -> bool:
    found = f"SELECT count() FROM system.processes WHERE query LIKE '%{words}%' AND query NOT LIKE '%processes%'"
    return server.value(found) == "1"


def test_sigterm_finishes_what_ends_in_time_and_stops_the_rest(own_server: Callable[..., Server]) -> None:
    server = own_server()
    server.value("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(server.ask, "SELECT sleep(3), 'done'")
        assert wait_until(lambda: runs(server, "sleep"))
        assert server.terminate() == 0
        assert slow.result().text == "0\tdone\n"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)

    server = own_server("--drain-seconds", "1", "--no-query-log")
    assert server.value("EXISTS t") == "1"
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(server.ask, "SELECT sum(cityHash64(number)) FROM numbers(10000000000000)")
        assert wait_until(lambda: runs(server, "cityHash64"))
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 10
        with contextlib.suppress(http.client.HTTPException, OSError):  # the connection may go first
            assert endless.result(30).code == 394


def test_a_client_that_leaves_stops_its_query(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": PASSWORDS["analyst"]}
    connection.request("POST", "/", b"SELECT /*leaver*/ sum(cityHash64(number)) FROM numbers(19000000000)", headers)
    assert wait_until(lambda: runs(server, "/*leaver*/"))
    connection.close()
    assert wait_until(lambda: not runs(server, "/*leaver*/"))


def test_a_client_that_leaves_does_not_stop_a_write(server: Server, table: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"X-ClickHouse-User": "inferbus_writer", "X-ClickHouse-Key": PASSWORDS["inferbus_writer"]}
    slow = (
        f"INSERT INTO {table} SELECT number, toString(cityHash64(number) + sum(number) OVER ()) FROM numbers(2000000)"
    )
    connection.request("POST", "/", slow.encode(), headers)

    def stored() -> bool:
        return server.value(f"SELECT count() FROM {table}") == "2000000"

    assert wait_until(lambda: runs(server, f"INSERT INTO {table}") or stored())
    connection.close()
    assert wait_until(stored, 60)


def test_a_reader_that_leaves_in_the_middle_frees_its_place(server: Server) -> None:
    for _ in range(8):  # more than an analyst's places
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        headers = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": PASSWORDS["analyst"]}
        connection.request("POST", "/", b"SELECT number, toString(number) FROM numbers(4900000)", headers)
        connection.getresponse().read(1000)
        connection.close()
    assert server.value("SELECT 1", "analyst") == "1"


def test_analysts_wait_their_turn_and_are_refused_beyond(own_server: Callable[..., Server]) -> None:
    server = own_server()  # a place that another test's client has just left may not be free yet
    heavy = "SELECT sum(cityHash64(number)) FROM numbers(19000000000)"
    with ThreadPoolExecutor(45) as pool:
        asked = [pool.submit(server.ask, heavy, "analyst", max_execution_time="25") for _ in range(40)]
        assert wait_until(lambda: sum(each.done() for each in asked) >= 5)
        assert server.value("SELECT 1", "inferbus_writer") == "1", "the writer's places are its own"
        refused = [each.result() for each in asked if each.done()]
        assert [(each.code, each.status) for each in refused] == [(202, 503)] * 5
        # Those that wait are not run for this test: killing the running ones and leaving would take half a minute.
        for each in asked:
            each.cancel()
        server.ask("KILL QUERY WHERE query LIKE '%19000000000%' AND query NOT LIKE '%KILL%' SYNC")
        while not all(each.done() for each in asked):
            server.ask("KILL QUERY WHERE query LIKE '%19000000000%' AND query NOT LIKE '%KILL%' ASYNC")
            time.sleep(0.1)


def test_the_environment_and_the_secrets_stay_out(server: Server) -> None:
    assert (server.path / "owner.lock").read_text().strip() == str(server.process.pid)
    assert os.stat(server.path / "owner.lock").st_mode & 0o077 == 0
    config = (server.path / "confined" / "config.xml").read_text()
    assert not any(password in config for password in PASSWORDS.values())

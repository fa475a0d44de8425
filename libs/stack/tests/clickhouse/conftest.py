"""A real server process for these tests: most modules share one, those that kill start their own."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest

PASSWORDS = {"admin": "adm-pw", "inferbus_writer": "wri-pw", "analyst": "ana-pw"}
_PROFILES = {"admin": "admin", "inferbus_writer": "writer", "analyst": "analyst"}


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def code(self) -> int:
        """ClickHouse's error code, 0 for none."""
        return int(self.headers.get("X-ClickHouse-Exception-Code", "0"))


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    path: Path
    port: int
    log: Path
    arguments: list[str] = field(default_factory=list)

    def ask(
        self,
        query: str | bytes,
        user: str = "admin",
        data: bytes | Iterable[bytes] | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        password: str | None = None,
        **params: str,
    ) -> Reply:
        """One request on a connection of its own. With `data` the query goes in the URL, and parts go in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body: bytes | Iterable[bytes] | None = query.encode() if isinstance(query, str) else query
        if data is not None or method == "GET":
            params["query"] = query if isinstance(query, str) else query.decode()
            body = data
        sent = {
            "X-ClickHouse-User": user,
            "X-ClickHouse-Key": PASSWORDS[user] if password is None else password,
            **(headers or {}),
        }
        try:
            connection.request(method, "/?" + urlencode(params), body, sent)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def value(self, query: str, user: str = "admin", **params: str) -> str:
        """The text of a query that must succeed."""
        reply = self.ask(query, user, **params)
        assert reply.status == 200, reply.text
        return reply.text.rstrip("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def terminate(self, timeout: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def write_users(folder: Path) -> Path:
    users = {
        name: {"password_sha256_hex": hashlib.sha256(password.encode()).hexdigest(), "profile": _PROFILES[name]}
        for name, password in PASSWORDS.items()
    }
    users["plain"] = {"password": "plain-pw", "profile": "analyst"}
    file = folder / "users.json"
    file.write_text(json.dumps(users))
    return file


def start_server(folder: Path, *extra: str) -> Server:
    """Starts a server on folder/data and waits until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    log = folder / "server.log"
    arguments = [
        sys.executable, "-m", "inferbus_stack.clickhouse", "--path", str(folder / "data"), "--port", "0",
        "--users", str(write_users(folder)), "--ready-file", str(ready), *extra,
    ]  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=output, env=os.environ | {"SECRET_ENV": "canary-env"}
        )
    deadline = time.monotonic() + 90
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"server did not start: {log.read_text()}")
        time.sleep(0.02)
    told = json.loads(ready.read_text())
    assert told["pid"] == process.pid
    return Server(process, folder / "data", told["port"], log, arguments)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = start_server(tmp_path_factory.mktemp("clickhouse"))
    yield started
    started.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers for one test, on the same folder if asked again."""
    started: list[Server] = []

    def start(*extra: str) -> Server:
        started.append(start_server(tmp_path / "own", *extra))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


@pytest.fixture
def table(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty table of the test's own."""
    name = f"t_{abs(hash(request.node.nodeid)) % 10**10}"
    server.value(f"CREATE TABLE {name} (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
    yield name
    server.ask(f"DROP TABLE IF EXISTS {name} SYNC")

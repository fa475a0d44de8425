"""One folder holds one stack: where each thing lies, who holds it, which ports it keeps, and its ``stack.json``."""

import contextlib
import fcntl
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Below the range that Linux and macOS give to outgoing connections: a port of ours that is free for the moment in
# which its process restarts must not be taken by some client's connection.
_PORTS = range(20_000, 32_000)
_HOST = "127.0.0.1"


class StackError(Exception):
    """The stack cannot start or be found; ``str()`` says why and what to do, for the operator's terminal."""


@dataclass(frozen=True, slots=True)
class Home:
    """The layout under one folder. Everything of a stack is in it: deleting it deletes the stack."""

    root: Path

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def certificates(self) -> Path:
        """Of the local authority (``--tls``), with their keys."""
        return self.secrets / "tls"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """What is true of the running stack only: ready files, generated configuration."""
        return self.root / "run"

    @property
    def scratch(self) -> Path:
        """What is on disk only while it is worked on: inputs of batches."""
        return self.root / "scratch"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def clickhouse(self) -> Path:
        return self.root / "clickhouse"

    @property
    def stack_file(self) -> Path:
        return self.root / "stack.json"

    def ready_file(self, name: str) -> Path:
        return self.run / f"{name}.json"

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def make_folders(self) -> None:
        """Only the owner may look in: logs and stores belong to many tenants."""
        for folder in (self.root, self.secrets, self.logs, self.run, self.scratch, self.nats, self.clickhouse):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.secrets.chmod(0o700)


@contextmanager
def hold(home: Home) -> Iterator[None]:
    """The right to run a stack on ``home``, until the block ends or this process dies, however it dies.

    Raises StackError at once if another process has it.
    """
    with (home.root / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StackError(
                f"a stack already runs on {home.root} (process {holder}); stop it or choose another --home"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_private(path: Path, text: str) -> None:
    """Replaces ``path`` in one step, readable by the owner only: no reader ever sees a part of the text."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_stack(home: Home, content: Mapping[str, Any]) -> None:
    write_private(home.stack_file, json.dumps(content, indent=2) + "\n")


def read_stack(home: Home) -> dict[str, Any]:
    """What ``inferbus up`` wrote when everything was ready. Raises StackError if no stack is running on ``home``."""
    try:
        content: dict[str, Any] = json.loads(home.stack_file.read_text())
    except FileNotFoundError:
        raise StackError(f"no stack is running on {home.root}; start one: inferbus up --home {home.root}") from None
    except (OSError, ValueError) as error:
        raise StackError(f"{home.stack_file} cannot be read: {error}") from None
    return content


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return True
    return False


def keep_ports(home: Home, names: Sequence[str], fixed: Mapping[str, int]) -> dict[str, int]:
    """A port for each of ``names``: the ``fixed`` one, else the one of the last start if it is free, else a free one.

    Clients of a restarted stack find it where it was. Raises StackError if a fixed port is taken.
    """
    path = home.root / "ports.json"
    known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    for name, port in fixed.items():
        if not is_free(port):
            raise StackError(f"port {port} for {name} is in use; choose another, or 0 for any free one")
    chosen = dict(fixed)
    candidates = random.Random().sample(_PORTS, len(_PORTS))  # noqa: S311 (spreads stacks of one machine, no secret)
    for name in names:
        if name in chosen:
            continue
        options = [known[name]] if name in known else []
        taken = set(chosen.values())
        found = next((port for port in (*options, *candidates) if port not in taken and is_free(port)), None)
        if found is None:
            raise StackError("no free port on this machine")
        chosen[name] = found
    write_private(path, json.dumps(known | chosen, indent=2) + "\n")
    return chosen

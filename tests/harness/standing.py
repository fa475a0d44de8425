"""A process that stands still, for as long as something is tried."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def stand_still(pid: int) -> None:
    """Stop it, and return when all of its threads have: one that runs on for a moment still answers."""
    os.kill(pid, signal.SIGSTOP)
    while not all(_state(thread) in "tT" for thread in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    stand_still(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(thread: Path) -> str:
    try:
        # After the name in parentheses, which may hold anything.
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:  # it has ended since
        return "T"

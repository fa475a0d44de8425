"""How much memory the processes hold that this one has started: an engine that leaks is seen from outside (Linux)."""

import asyncio
import os
from pathlib import Path

from inferbus_worker.core.start_faults import start_failed

_PROC = Path("/proc")
_KILOBYTE = 1024
# What is swapped out was not given back.
_HELD = ("VmRSS:", "VmSwap:")


def engine_memory(parent: int | None = None) -> int | None:
    """Bytes, resident or swapped out, of all processes below ``parent`` (this one, if unset); None: there are none.

    Pages that several of them share count for each.
    """
    below = _below(os.getpid() if parent is None else parent)
    return sum(_held(pid) for pid in below) if below else None


def worker_memory() -> int:
    """Bytes, resident or swapped out, of this process and all below it; 0: not known."""
    own = os.getpid()
    return sum(_held(pid) for pid in (own, *_below(own)))


class MemoryLook:
    """What the worker holds of main memory, looked at now and then: a look reads all of /proc. ``on_gpus``: that is not
    what it is bounded by, and nothing is looked at."""

    def __init__(self, *, on_gpus: bool, interval: float = 2.0) -> None:
        self._held = 0
        self._on_gpus = on_gpus
        self._interval = interval

    def held(self) -> int:
        """Bytes, as of the last look; 0: not known."""
        return self._held

    async def run(self) -> None:
        """For ever."""
        while not self._on_gpus:
            self._held = await asyncio.to_thread(worker_memory)
            await asyncio.sleep(self._interval)
        await asyncio.Event().wait()


def _below(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal() and (status := _read(int(entry.name), "stat")):
            # Its name, in brackets, may have any character in it.
            children.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = [], [parent]
    while waiting:
        some = children.get(waiting.pop(), [])
        found += some
        waiting += some
    return found


def _held(pid: int) -> int:
    lines = (line.split() for line in _read(pid, "status").splitlines())
    return sum(int(words[1]) * _KILOBYTE for words in lines if words and words[0] in _HELD)


def _read(pid: int, name: str) -> str:
    """Empty if the process is gone, or not ours to look at."""
    try:
        return (_PROC / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def check_bound(bound: int, used: int | None) -> None:
    """Right after a start. Raises InferBusError if ``bound`` (bytes) cannot be kept."""
    if used is None:
        why = "ENGINE_MAX_MEMORY is set, and this engine has no process of its own that could be bounded"
    elif used > bound:
        why = f"ENGINE_MAX_MEMORY is {bound} bytes, and the engine holds {used} as soon as it has started"
    else:
        return
    raise start_failed(why)

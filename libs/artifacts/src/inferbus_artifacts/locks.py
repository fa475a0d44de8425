"""Locks on files, between the processes of one machine: they end with the process that holds them, however it ends."""

import asyncio
import fcntl
import os
from pathlib import Path

_POLL_SECONDS = 0.1


class FileLock:
    """A lock that is held. ``close`` gives it back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


def try_lock(path: Path, *, shared: bool = False) -> FileLock | None:
    """None: somebody else has it. The file is made, and stays. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return FileLock(descriptor)


async def lock(path: Path, *, shared: bool = False) -> FileLock:
    """Waits for whoever has it. Raises OSError."""
    while (held := try_lock(path, shared=shared)) is None:
        await asyncio.sleep(_POLL_SECONDS)
    return held

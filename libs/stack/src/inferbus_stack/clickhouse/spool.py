"""The data of one INSERT on its way into the engine: a file without a name.

chDB has a call that takes data in pieces (`insert_append`), and it hides what fails when they reach the table: a
violated CHECK or a view that throws ends there as a success with rows missing. Every error of INSERT ... FROM INFILE
is raised. So a body goes to a file first. That also keeps a statement from starting on a body that never ends: who
leaves in the middle inserts nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from inferbus_stack.clickhouse.errors import CANNOT_WRITE, NOT_ENOUGH_SPACE, ClickHouseError

# Free space that neither spools nor the engine's inserts and merges use. Not for comfort: the engine asks for its space
# first, but where a write then fails all the same (someone else filled the disk) it reports success and the part is
# cut. So no write of ours may come near a full disk.
KEPT_FREE_BYTES = 512 << 20

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def make_folder(folder: Path) -> None:
    """An empty folder for spools. Their files have no names where the file system can do that; where it cannot, a
    kill may have left one that had its name still.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


class Spool:
    """Data on disk that goes when this is closed or the process dies, however it dies. Holds one descriptor."""

    def __init__(self, folder: str) -> None:
        """Raises ClickHouseError, NOT_ENOUGH_SPACE (243) for a full disk."""
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - close() ends it
        except OSError as error:
            raise _failed(error) from None

    def write(self, data: bytes) -> None:
        """Appends. Raises as the constructor does."""
        rest = memoryview(data)
        try:
            disk = os.fstatvfs(self._file.fileno())
            if disk.f_bavail * disk.f_frsize < KEPT_FREE_BYTES + len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _failed(error) from None

    @property
    def path(self) -> str:
        """Under which the engine, in this process alone, reads all that was written."""
        # Not the path of a file: the engine would read `*`, `?` and `{` in the data path as patterns, match nothing
        # and report success.
        return f"/proc/self/fd/{self._file.fileno()}"

    def close(self) -> None:
        """Gives the space back. Idempotent."""
        self._file.close()


def _failed(error: OSError) -> ClickHouseError:
    if error.errno in _NO_SPACE:
        return ClickHouseError(NOT_ENOUGH_SPACE, f"Cannot store the data of the INSERT: {error.strerror}.")
    return ClickHouseError(CANNOT_WRITE, f"Cannot store the data of the INSERT: {error.strerror}.")

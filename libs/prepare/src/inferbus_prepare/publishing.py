"""What was prepared, sent to where workers pull it from."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from inferbus.bus.v1.revision_pb2 import RevisionRecord

from inferbus_prepare.errors import DamagedError, PrepareError
from inferbus_prepare.preparing import Prepared, Progress, sha256_of

# In this order, after those of the preparation itself.
STEPS = ("upload", "register")


class Uploads(Protocol):
    """Where a revision's files go, by their digest."""

    async def put(self, path: Path, sha256: str) -> bool:
        """True: it was not there. Raises what the store raises."""
        ...


async def publish(
    prepared: Prepared,
    uploads: Uploads,
    register: Callable[[RevisionRecord], None],
    progress: Progress = lambda step, part: None,
) -> None:
    """Files first, then the record: who sees it can have them. Both may be done again, and then change nothing.

    Raises DamagedError if a file is no longer the one that was measured, and what the store and ``register`` raise.
    """
    if prepared.record is None:
        raise PrepareError("there is no file to make a revision of")
    for number, file in enumerate(prepared.files):
        progress("upload", number / len(prepared.files))
        if sha256_of(file.path) != file.sha256:
            raise DamagedError(f"{file.path} is no longer the file that was measured")
        await uploads.put(file.path, file.sha256)
    progress("upload", 1.0)
    register(prepared.record)
    progress("register", 1.0)

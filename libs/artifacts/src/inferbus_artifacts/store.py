"""Artifacts by SHA-256, over any store of objects: an object's name is its digest in hex.

What is not what its name says is neither stored nor taken: both directions count and digest each byte.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_objects.store import ObjectStore
from inferbus_runtime.errors import InferBusError, invalid

_READ_BYTES = 4 << 20
# Written to the disk at once; smaller parts would cost a thread's change each.
_WRITE_BYTES = 4 << 20

Progress = Callable[[int], None]
"""Told the bytes of a file that are here."""


class Artifacts:
    """Content by digest. All of it raises InferBusError UNAVAILABLE while the store is away."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, path: Path, sha256: str) -> bool:
        """Stores the file. False: it was there already, with that digest and size.

        Raises InferBusError INVALID ``wrong_digest`` if the file has another digest (then nothing is stored),
        RESOURCE_EXHAUSTED, and OSError if it cannot be read."""
        _check(sha256)
        size = (await asyncio.to_thread(path.stat)).st_size
        if await self.has(sha256, size):
            return False
        await self._store.put(sha256, _verified(path, sha256))
        return True

    async def has(self, sha256: str, size: int) -> bool:
        """What was stored under a digest was verified then: only its size is looked at."""
        return await self._store.size(sha256) == size

    async def fetch(self, sha256: str, size: int, into: Path, progress: Progress = lambda _: None) -> None:
        """The content at ``into``, which has it whole or is not there. What was broken off is gone on with: it lies
        beside it, as ``<into>.part``. One process at a time (see :mod:`.folder`).

        Raises InferBusError NOT_FOUND ``no_such_object``, INTERNAL ``wrong_digest``, and OSError if it cannot be
        written."""
        _check(sha256)
        part = into.with_name(f"{into.name}.part")
        kept = await asyncio.to_thread(_size_of, part)
        try:
            await self._complete(sha256, size, part, progress)
        except InferBusError as error:
            await asyncio.to_thread(_drop_if_wrong, part, error)
            if error.reason != "wrong_digest" or kept == 0:
                raise
            # What was left of an earlier time may be what is wrong.
            await self._complete(sha256, size, part, progress)
        await asyncio.to_thread(_finish, part, into)

    async def delete(self, sha256: str) -> bool:
        """False if there was none."""
        _check(sha256)
        return await self._store.delete(sha256)

    async def names(self) -> list[str]:
        """Digests of all that is there; what was deleted a moment ago may still be named."""
        return await self._store.names("")

    async def _complete(self, sha256: str, size: int, part: Path, progress: Progress) -> None:
        """``part`` has the whole content, and it is the right one."""
        with await asyncio.to_thread(part.open, "ab+") as file:
            digest = hashlib.sha256()
            at = await asyncio.to_thread(_digested, file, digest)
            if at < size:
                at = await self._append(sha256, at, size, file, digest, progress)
            if at != size or digest.hexdigest() != sha256:
                raise _wrong(sha256, f"{at} bytes with digest {digest.hexdigest()}, expected {size} bytes")
            await asyncio.to_thread(os.fsync, file.fileno())

    async def _append(self, sha256: str, at: int, size: int, file: BinaryIO, digest: Any, progress: Progress) -> int:
        held = bytearray()
        progress(at)
        async with aclosing(self._store.get(sha256, at)) as content:
            async for data in content:
                held += data
                if at + len(held) > size:
                    raise _wrong(sha256, f"more than the {size} bytes that it should have")
                if len(held) >= _WRITE_BYTES:
                    await asyncio.to_thread(_write, file, digest, bytes(held))
                    at += len(held)
                    held.clear()
                    progress(at)
        await asyncio.to_thread(_write, file, digest, bytes(held))
        progress(at + len(held))
        return at + len(held)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex. Blocks: a second for each GB or two. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _verified(path: Path, sha256: str) -> AsyncIterator[bytes]:
    """The file in parts; raises after the last one if they are not what they should be, which undoes the upload."""
    digest = hashlib.sha256()
    with await asyncio.to_thread(path.open, "rb") as file:
        while part := await asyncio.to_thread(file.read, _READ_BYTES):
            digest.update(part)
            yield part
    if digest.hexdigest() != sha256:
        error = invalid("The file has another digest.", param="sha256")
        error.reason = "wrong_digest"
        error.diagnostic = f"{path} has digest {digest.hexdigest()}, not {sha256}"
        raise error


def _digested(file: BinaryIO, digest: Any) -> int:
    """How much there is."""
    file.seek(0)
    at = 0
    while part := file.read(_READ_BYTES):
        digest.update(part)
        at += len(part)
    return at


def _write(file: BinaryIO, digest: Any, data: bytes) -> None:
    digest.update(data)
    file.write(data)
    file.flush()


def _finish(part: Path, into: Path) -> None:
    part.chmod(0o444)
    os.replace(part, into)
    folder = os.open(into.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut could leave the rename undone
    finally:
        os.close(folder)


def _drop_if_wrong(part: Path, error: InferBusError) -> None:
    """What has merely broken off is gone on with next time."""
    if error.reason == "wrong_digest":
        part.unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check(sha256: str) -> None:
    if len(sha256) != 64 or any(letter not in "0123456789abcdef" for letter in sha256):
        raise invalid("A digest is 64 hexadecimal digits, in lower case.", param="sha256")


def _wrong(sha256: str, what: str) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_INTERNAL, "wrong_digest", "The server had an error; retry.",
        diagnostic=f"artifact {sha256}: {what}",
    )  # fmt: skip

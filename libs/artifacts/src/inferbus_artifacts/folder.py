"""The artifacts of one machine, shared by its workers.

    blobs/<sha256>                     content, verified; <sha256>.part: what is on its way
    revisions/<model>/<revision>/...   hard links to it, by a revision's names (copies, if the file system has no links)

Of both there are two locks. Whoever uses it shares ``.lock`` as long as his process lives: what nobody holds may be
deleted. Whoever looks whether it is right, or makes it, has ``.making`` alone.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inferbus_runtime.clock import monotonic

from inferbus_artifacts.locks import FileLock, lock, try_lock
from inferbus_artifacts.store import Artifacts, digest_of

log = logging.getLogger(__name__)
_TELL_SECONDS = 5.0


class Wanted(NamedTuple):
    """A file of a revision. ``name``: a path below its folder, checked."""

    name: str
    sha256: str
    size: int


class Folder:
    """``root``: made if it is not there. ``max_bytes``: of blobs; above it those go that nobody uses, the ones used
    longest ago first."""

    def __init__(self, root: Path, store: Artifacts, max_bytes: int) -> None:
        self._blobs = root / "blobs"
        self._revisions = root / "revisions"
        self._store = store
        self._max_bytes = max_bytes
        self._held: list[FileLock] = []

    async def pull(self, model: str, revision: str, wanted: Sequence[Wanted]) -> Path:
        """The folder with exactly these files, each verified now; they stay as long as this process or until
        :meth:`close`. ``model`` and ``revision``: as names of folders.

        Raises InferBusError and OSError, with a note that names the file that it could not get."""
        await asyncio.to_thread(self._blobs.mkdir, parents=True, exist_ok=True)
        sizes = {one.sha256: one.size for one in wanted}
        await asyncio.to_thread(self.collect, sum(sizes.values()), frozenset(sizes))
        done: set[str] = set()
        for one in wanted:
            if one.sha256 not in done:
                try:
                    await self._blob(one)
                except Exception as error:
                    error.add_note(f"artifact {one.name} (sha256 {one.sha256}, {one.size} bytes)")
                    raise
                done.add(one.sha256)
        return await self._linked(self._revisions / model / revision, wanted)

    def close(self) -> None:
        """From now on they may be deleted."""
        for held in self._held:
            held.close()
        self._held.clear()

    async def _blob(self, one: Wanted) -> None:
        """It is there, was read and found right, and stays."""
        self._held.append(await lock(self._blobs / f"{one.sha256}.lock", shared=True))
        blob = self._blobs / one.sha256
        making = await lock(self._blobs / f"{one.sha256}.making")
        try:
            if not await asyncio.to_thread(_is_whole, blob, one):
                log.info("artifact is pulled", extra={"artifact": one.name, "sha256": one.sha256, "bytes": one.size})
                await self._store.fetch(one.sha256, one.size, blob, _Telling(one))
            await asyncio.to_thread(os.utime, blob)
        finally:
            making.close()

    async def _linked(self, folder: Path, wanted: Sequence[Wanted]) -> Path:
        await asyncio.to_thread(folder.parent.mkdir, parents=True, exist_ok=True)
        # No revision begins with a dot.
        self._held.append(await lock(folder.with_name(f".{folder.name}.lock"), shared=True))
        making = await lock(folder.with_name(f".{folder.name}.making"))
        try:
            await asyncio.to_thread(_link, folder, self._blobs, wanted)
        finally:
            making.close()
        return folder

    def collect(self, room: int = 0, kept: frozenset[str] = frozenset()) -> None:
        """Deletes until ``room`` more bytes are within the bound, or only what is in use, or ``kept``, is left. Blocks.
        Raises OSError."""
        blobs = {path: path.stat() for path in self._blobs.iterdir() if _is_blob(path)}
        there = {path.name for path in blobs}
        total = sum(stat.st_size for path, stat in blobs.items() if path.name not in kept) + room
        if total <= self._max_bytes:
            return
        for path in sorted(self._revisions.glob("*/.*.lock")):
            _delete_folder(path)
        for path, stat in sorted(blobs.items(), key=lambda item: item[1].st_mtime):
            if total <= self._max_bytes:
                break
            if path.name in kept or not _delete_blob(path):
                continue
            total -= stat.st_size
            log.info("artifact deleted here", extra={"sha256": path.name, "bytes": stat.st_size, "of": len(there)})


class _Telling:
    """Progress into the log, every five seconds and at the end."""

    def __init__(self, one: Wanted) -> None:
        self._one = one
        self._began = self._told = monotonic()
        self._first: int | None = None

    def __call__(self, got: int) -> None:
        now = monotonic()
        self._first = got if self._first is None else self._first
        if now - self._told >= _TELL_SECONDS or got == self._one.size:
            self._told = now
            rate = (got - self._first) / max(now - self._began, 1e-3)
            log.info(
                "artifact on its way",
                extra={
                    "artifact": self._one.name, "bytes": got, "of": self._one.size, "bytes_per_second": round(rate),
                    "went_on_at": self._first,
                },
            )  # fmt: skip


def _is_whole(blob: Path, one: Wanted) -> bool:
    try:
        if blob.stat().st_size == one.size and digest_of(blob) == one.sha256:
            return True
    except FileNotFoundError:
        return False
    log.warning("an artifact was damaged here: it is pulled again", extra={"artifact": one.name, "sha256": one.sha256})
    blob.unlink()
    return False


def _link(folder: Path, blobs: Path, wanted: Sequence[Wanted]) -> None:
    """What is right stays, for others may be using it; a file that they have open stays theirs when it is replaced."""
    folder.mkdir(exist_ok=True)
    names = {folder / one.name for one in wanted}
    for stale in [path for path in folder.rglob("*") if not path.is_dir() and path not in names]:
        stale.unlink()
    for one in wanted:
        target, blob = folder / one.name, blobs / one.sha256
        if target.exists() and (target.samefile(blob) or _is_right(target, one)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_name(f".{target.name}.making")
        made.unlink(missing_ok=True)
        try:
            os.link(blob, made)
        except OSError:  # a file system without hard links
            shutil.copyfile(blob, made)
        os.replace(made, target)


def _is_right(copy: Path, one: Wanted) -> bool:
    return copy.stat().st_size == one.size and digest_of(copy) == one.sha256


def _is_blob(path: Path) -> bool:
    return len(path.name) == 64 and path.is_file()


def _delete_folder(path: Path) -> None:
    """A revision's, by its lock, if nobody uses it: links keep the content of deleted blobs."""
    held = try_lock(path)
    if held is None:
        return
    try:
        shutil.rmtree(path.with_name(path.name[1:].removesuffix(".lock")), ignore_errors=True)
    finally:
        held.close()


def _delete_blob(path: Path) -> bool:
    held = try_lock(path.with_name(f"{path.name}.lock"))
    if held is None:
        return False
    try:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.part").unlink(missing_ok=True)
    finally:
        held.close()
    return True

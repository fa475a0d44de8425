"""A folder for what is on disk only while it is worked on: customers' content, so nothing of it is left behind."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def scratch(parent: Path | None, name: str) -> AsyncIterator[Path]:
    """An empty folder that its owner alone may enter, gone at the end: ``name`` under ``parent``, without what one of
    this name left when it was killed; without ``parent``, a new one. Raises OSError if it cannot be made."""
    if parent is None:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=f"inferbus-{name}-"))
    else:
        folder = parent / name
        await asyncio.to_thread(_emptied, folder)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _emptied(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True)

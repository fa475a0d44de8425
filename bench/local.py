"""A stack on an empty folder for one measurement."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.harness import local
from tests.harness.local import Stack


@asynccontextmanager
async def running(engine: str, *options: str, **variables: str) -> AsyncIterator[Stack]:
    """``inferbus up`` with its data in a folder that goes with it. ``options``: more of the command;
    ``variables`` are passed on to the services."""
    with TemporaryDirectory() as folder:
        async with local.running(Path(folder) / "home", engine, *options, variables=variables) as stack:
            yield stack

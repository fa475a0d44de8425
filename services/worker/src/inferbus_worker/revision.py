"""What a worker of a revision is: its record read from the bus, its artifacts pulled, before its engine is made."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus_artifacts.folder import Folder, Wanted
from inferbus_artifacts.opened import opened
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_contracts.subjects import subject_token
from inferbus_runtime.clock import monotonic
from inferbus_runtime.config import ConfigError
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_worker.config import Config, of_revision
from inferbus_worker.core.revisions import placed, why_not
from inferbus_worker.engines.llama_cpp_model import default_cache

log = logging.getLogger(__name__)


@asynccontextmanager
async def revised(bus: Bus, config: Config) -> AsyncIterator[Config]:
    """``config`` with what its revision, if it names one, says in place of its own. While it is entered the revision's
    artifacts stay where they are.

    Raises InferBusError UNAVAILABLE ``revision_unusable`` that says why, and like :meth:`Registry.start`.
    """
    if config.revision is None:
        yield config
        return
    name = f"{config.model}/{config.revision}"
    record = await _read(bus, name)
    if record is None:
        raise _unusable(name, "there is none of this name")
    if why := why_not(record):
        raise _unusable(name, why)
    settings, folder = dict(record.settings), None
    # Before gigabytes are pulled for nothing; no path is looked at by it.
    made = _configured(name, record, settings)
    try:
        if record.artifacts:
            root = (config.model_cache or default_cache()) / "artifacts"
            folder = Folder(root, await opened(bus, config.artifacts.s3), config.artifacts_max_bytes)
            path = await _pulled(name, record, folder)
            made = _configured(name, record, placed(settings, str(path)))
        log.info("revision", extra={"revision": name, "engine": record.engine, "settings": settings})
        yield made
    finally:
        if folder is not None:
            folder.close()


def _configured(name: str, record: RevisionRecord, settings: dict[str, str]) -> Config:
    try:
        return of_revision(record.engine, settings)
    except ConfigError as error:
        raise _unusable(name, f"its settings do not fit this worker: {error}") from error


async def _pulled(name: str, record: RevisionRecord, folder: Folder) -> Path:
    wanted = [Wanted(one.name, one.sha256.hex(), one.size_bytes) for one in record.artifacts]
    began = monotonic()
    try:
        path = await folder.pull(subject_token(record.model), record.revision, wanted)
    except (InferBusError, OSError) as error:
        said = error.diagnostic or str(error) if isinstance(error, InferBusError) else repr(error)
        raise _unusable(name, ": ".join([*getattr(error, "__notes__", ()), said])) from error
    extra = {"revision": name, "files": len(wanted), "bytes": sum(one.size for one in wanted)}
    log.info("artifacts verified", extra={**extra, "seconds": round(monotonic() - began, 1)})
    return path


async def _read(bus: Bus, name: str) -> RevisionRecord | None:
    revisions: Registry[RevisionRecord] = Registry(bus, "revisions", RevisionRecord)
    await revisions.start()
    try:
        return revisions.get(name)
    finally:
        await revisions.stop()


def _unusable(name: str, why: str) -> InferBusError:
    return unavailable(
        "revision_unusable",
        "The model's revision cannot be served.",
        retry_after=timedelta(minutes=1),
        diagnostic=f"revision {name}: {why}",
    )

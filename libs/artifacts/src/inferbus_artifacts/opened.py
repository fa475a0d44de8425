"""The store that a process uses: a bucket of its own on the bus, or one of S3."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_contracts.subjects import ARTIFACTS
from inferbus_objects.store import BusStore, ObjectStore

from inferbus_artifacts.settings import ArtifactsS3
from inferbus_artifacts.store import Artifacts


async def opened(bus: Bus, s3: ArtifactsS3 | None) -> Artifacts:
    """On the ``bus``, or where ``s3`` says. Raises InferBusError UNAVAILABLE if that bucket cannot be listed."""
    return Artifacts(await _in_s3(s3) if s3 is not None else await _on_bus(bus))


@asynccontextmanager
async def uploads(bus: BusConfig | None, s3: ArtifactsS3 | None = None) -> AsyncIterator[Artifacts]:
    """For an operator: to put, look up and delete. ``bus``: with an identity that may, as the one in stack.json; not
    needed with ``s3``. Raises InferBusError UNAVAILABLE."""
    if s3 is not None:
        yield Artifacts(await _in_s3(s3))
        return
    if bus is None:
        raise ValueError("neither a bus nor a bucket")
    async with connect(bus) as connected:
        yield Artifacts(await _on_bus(connected))


async def _on_bus(bus: Bus) -> ObjectStore:
    publisher = Publisher(bus)
    await publisher.start()
    return BusStore(Objects(bus, publisher, ARTIFACTS))


async def _in_s3(s3: ArtifactsS3) -> ObjectStore:
    # A library of 10 MB, in Rust, which nobody else needs.
    from inferbus_objects.s3_store import S3Store

    store = S3Store(s3)
    await store.check()
    return store

"""The only wiring: bus → store and registries → files and uploads → gRPC."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from inferbus.bus.v1.batch_pb2 import FileRecord, JobCheckpoint, Segment, UploadRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_runtime import rpc
from inferbus_runtime.lifecycle import Process, ReadyInfo

from inferbus_batch.config import Config
from inferbus_batch.file_servicer import SERVICE_NAME as FILE_SERVICE
from inferbus_batch.file_servicer import add_file_service
from inferbus_batch.files import Files
from inferbus_batch.scratch import scratch
from inferbus_batch.store import BusStore, ObjectStore
from inferbus_batch.sweeping import Sweeper
from inferbus_batch.uploads import Uploads


async def wire(config: Config, process: Process) -> ReadyInfo:
    """Build everything; returns when gRPC listens."""
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed, config.tls)))
    publisher = Publisher(bus)
    await publisher.start()
    await process.enter(scratch(config.scratch_folder, config.name))
    store = await _store(config, Objects(bus, publisher))
    files = Files(await process.enter(_following(Registry(bus, "files", FileRecord))), store, config.files)
    uploads = Uploads(await process.enter(_following(Registry(bus, "uploads", UploadRecord))), files)
    checkpoints = await process.enter(_following(Registry(bus, "job_checkpoints", JobCheckpoint)))
    sweeper = Sweeper(files, uploads, lambda: _segments(checkpoints), lambda: checkpoints.following)
    process.spawn(sweeper.run(), "what is over goes")

    def add(server: Any) -> None:
        add_file_service(server, files, uploads)

    token = config.rpc_token.get_secret_value() if config.rpc_token else None
    server = await process.enter(rpc.serve(config.grpc_address, add, [FILE_SERVICE], token, config.tls))
    return {"grpc": server.address}


async def _store(config: Config, objects: Objects) -> ObjectStore:
    """Raises InferBusError UNAVAILABLE if a bucket that was set cannot be listed: a name or a key may be wrong."""
    if config.s3 is None:
        return BusStore(objects)
    # A library of 10 MB, in Rust, which nobody else needs.
    from inferbus_batch.s3_store import S3Store

    store = S3Store(config.s3)
    await store.check()
    return store


def _segments(checkpoints: Registry[JobCheckpoint]) -> Iterator[Segment]:
    """What jobs have stored and no file names yet."""
    for one in checkpoints.items().values():
        if one.HasField("index"):
            yield one.index
        yield from one.output
        yield from one.errors


@asynccontextmanager
async def _following(registry: Registry[Any]) -> AsyncIterator[Registry[Any]]:
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()

"""The only wiring: bus → store and registries → files, uploads and jobs → their runner and gRPC."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inferbus.bus.v1.batch_pb2 import FileRecord, JobCheckpoint, JobRecord, Segment, UploadRecord
from inferbus.bus.v1.control_pb2 import Capacity
from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberRecord, ModelRecord, ProjectRecord, TenantRecord, WorkerRecord
from inferbus_budgets.budgets import Budgets
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.log import FrameLog
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.shards import Shards
from inferbus_bus.store import Store
from inferbus_bus.workers import Workers
from inferbus_contracts.subjects import BATCH_SHARDS
from inferbus_objects.store import BusStore, ObjectStore
from inferbus_runtime import rpc
from inferbus_runtime.lifecycle import Process, ReadyInfo
from inferbus_webhooks.signing import secret_of

from inferbus_batch.config import Config
from inferbus_batch.core.seen import Seen
from inferbus_batch.file_servicer import SERVICE_NAME as FILE_SERVICE
from inferbus_batch.file_servicer import add_file_service
from inferbus_batch.files import Files
from inferbus_batch.intake import Intake
from inferbus_batch.job_servicer import SERVICE_NAME as JOB_SERVICE
from inferbus_batch.job_servicer import add_job_service
from inferbus_batch.jobs import Jobs
from inferbus_batch.judging import Judge
from inferbus_batch.keys import Keys
from inferbus_batch.leftovers import Leftovers
from inferbus_batch.pace import Pace
from inferbus_batch.parts import Parts
from inferbus_batch.queue_jobs import QueueJobs
from inferbus_batch.runner import Runner
from inferbus_batch.scratch import scratch
from inferbus_batch.sweeping import Sweeper
from inferbus_batch.taking import Taking
from inferbus_batch.telling_ends import EndTeller
from inferbus_batch.telling_results import Results
from inferbus_batch.uploads import Uploads
from inferbus_batch.webhooks import Webhooks


async def wire(config: Config, process: Process) -> ReadyInfo:
    """Build everything; returns when gRPC listens."""
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed, config.tls)))
    publisher = Publisher(bus)
    await publisher.start()
    folder = await process.enter(scratch(config.scratch_folder, config.name))
    store = await _store(config, Objects(bus, publisher))
    files = Files(await process.enter(_following(Registry(bus, "files", FileRecord))), store, config.files)
    uploads = Uploads(await process.enter(_following(Registry(bus, "uploads", UploadRecord))), files)
    checkpoints = await process.enter(_following(Registry(bus, "job_checkpoints", JobCheckpoint)))
    sweeper = Sweeper(files, uploads, lambda: _segments(checkpoints), lambda: checkpoints.following)
    process.spawn(sweeper.run(), "what is over goes")
    jobs = Jobs(await process.enter(_following(Registry(bus, "jobs", JobRecord))), files, config.jobs)
    leftovers = Leftovers(jobs, checkpoints, Store(bus, "job_checkpoints", JobCheckpoint, publisher))
    process.spawn(leftovers.run(), "checkpoints of jobs that have ended go")
    models = await process.enter(_following(Registry(bus, "models", ModelRecord)))
    budgets = Budgets(bus, edge=config.name, model_of=models.get)
    await process.enter(_following(budgets))
    process.spawn(budgets.run(), "grants of budgets")
    token = config.rpc_token.get_secret_value() if config.rpc_token else None
    workers = Workers(Registry(bus, "fleet", WorkerRecord), lambda address: rpc.channel(address, token, config.tls))
    judge = Judge(models, budgets, await process.enter(_following(workers)), config.max_batch_lines)
    keys = await _keys(bus, process)
    await _runner(
        config, process, bus, publisher, jobs=jobs, files=files, models=models, judge=judge, keys=keys, folder=folder,
        budgets=budgets,
    )  # fmt: skip
    await _intake(config, process, bus, publisher, jobs=jobs, files=files, keys=keys, models=models)

    def add(server: Any) -> None:
        add_file_service(server, files, uploads)
        add_job_service(server, jobs, files, judge, keys, folder, _webhook_secret(config))

    server = await process.enter(rpc.serve(config.grpc_address, add, [FILE_SERVICE, JOB_SERVICE], token, config.tls))
    return {"grpc": server.address}


async def _runner(
    config: Config, process: Process, bus: Bus, publisher: Publisher, *, jobs: Jobs, files: Files,
    models: Registry[ModelRecord], judge: Judge, keys: Keys, folder: Path, budgets: Budgets,
) -> None:  # fmt: skip
    """Runs the jobs of the shards that are ours."""
    shards = Shards(bus, role="batch", count=BATCH_SHARDS, name=config.name, ttl=config.lease_ttl)
    pace = Pace(jobs.running)
    await bus.subscribe(Capacity, pace.on_capacity)
    parts = Parts(
        jobs=jobs, files=files, checkpoints=Store(bus, "job_checkpoints", JobCheckpoint, publisher), judge=judge,
        keys=keys, model=models.get, budgets=budgets, publisher=publisher, cancel=bus.send, pace=pace, scratch=folder,
        line_timeout=config.line_timeout,
    )  # fmt: skip
    runner = Runner(parts, FrameLog(bus))
    await process.enter(_held(shards))
    process.spawn(shards.run(runner), "shards of jobs")
    process.on_drain(shards.stop)
    if (secret := _webhook_secret(config)) is not None:
        webhooks = Webhooks(jobs, secret, shards.holds, anywhere=config.webhook_anywhere)
        process.spawn(webhooks.run(), "webhooks of jobs")
    process.spawn(EndTeller(jobs, files, publisher, shards.holds).run(), "ends of jobs of the queue")


async def _intake(
    config: Config, process: Process, bus: Bus, publisher: Publisher, *, jobs: Jobs, files: Files, keys: Keys,
    models: Registry[ModelRecord],
) -> None:  # fmt: skip
    """Takes what comes straight over the queue, while no other batch service does."""
    submit, results = QueueJobs(jobs, files), Results(publisher)

    def taking(seen: Seen) -> Taking:
        return Taking(
            seen, submit=submit, results=results, keys=keys, models=models.get, busy=jobs.is_busy,
            max_lines=config.max_batch_lines,
        )  # fmt: skip

    shards = Shards(bus, role="intake", count=1, name=config.name, ttl=config.lease_ttl)
    await process.enter(_held(shards))
    process.spawn(shards.run(Intake(bus, jobs, submit, taking)), "intake of the queue")
    process.on_drain(shards.stop)


@asynccontextmanager
async def _held(shards: Shards) -> AsyncIterator[None]:
    await shards.start()
    try:
        yield
    finally:
        await shards.close()


async def _keys(bus: Bus, process: Process) -> Keys:
    return Keys(
        await process.enter(_following(Registry(bus, "keys", KeyRecord))),
        await process.enter(_following(Registry(bus, "tenants", TenantRecord))),
        await process.enter(_following(Registry(bus, "projects", ProjectRecord))),
        await process.enter(_following(Registry(bus, "members", MemberRecord))),
    )


async def _store(config: Config, objects: Objects) -> ObjectStore:
    """Raises InferBusError UNAVAILABLE if a bucket that was set cannot be listed: a name or a key may be wrong."""
    if config.s3 is None:
        return BusStore(objects)
    # A library of 10 MB, in Rust, which nobody else needs.
    from inferbus_objects.s3_store import S3Store

    store = S3Store(config.s3)
    await store.check()
    return store


def _webhook_secret(config: Config) -> bytes | None:
    return None if config.webhook_secret is None else secret_of(config.webhook_secret.get_secret_value())


def _segments(checkpoints: Registry[JobCheckpoint]) -> Iterator[Segment]:
    """What jobs have stored and no file names yet."""
    for one in checkpoints.items().values():
        if one.HasField("index"):
            yield one.index
        yield from one.output
        yield from one.errors


@asynccontextmanager
async def _following(registry: Any) -> AsyncIterator[Any]:
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()

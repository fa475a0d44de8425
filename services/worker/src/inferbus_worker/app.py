"""The wiring of a worker, and nothing else."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

from inferbus.bus.v1.control_pb2 import Cancel, Recall
from inferbus.worker.v1 import worker_pb2, worker_pb2_grpc
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock, metrics
from inferbus_runtime.lifecycle import Process
from inferbus_runtime.rpc import serve

from inferbus_worker.cache_events import CacheTeller
from inferbus_worker.cold_start import ColdStart
from inferbus_worker.config import Config, host_name, visible_gpus
from inferbus_worker.core.gpu_names import wanted
from inferbus_worker.core.records import model_records, worker_record
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.direct import Direct
from inferbus_worker.drain import Drain
from inferbus_worker.engine import Engine, EngineInfo, TellsPrefixes
from inferbus_worker.engine_memory import MemoryLook, check_bound, engine_memory
from inferbus_worker.engine_report import EngineReport
from inferbus_worker.engine_watch import EngineWatch, MemoryBound
from inferbus_worker.engines import GPU_ENGINES, engine_class
from inferbus_worker.fence import Fence
from inferbus_worker.generations import Generations
from inferbus_worker.heartbeat import Heartbeats, Load
from inferbus_worker.intake import Intake
from inferbus_worker.registration import Registration
from inferbus_worker.revision import revised
from inferbus_worker.servicer import WorkerServicer
from inferbus_worker.telemetry import Telemetry, watching
from inferbus_worker.telemetry_nvml import open_nvml
from inferbus_worker.work_source import WorkSource

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
# Deliveries held beyond what runs: they keep the engine busy while a finished one is on its way to be acknowledged.
_SPARE_DELIVERIES = 16
# After a stop signal: what still runs is given to other workers after half of DRAIN_TIMEOUT, or all of it but this, and
# this one leaves whatever is left then.
_HAND_OVER_SECONDS = 10.0
_LEAVE_PART = 0.9


async def wire(config: Config, process: Process) -> Mapping[str, str]:
    """Everything runs and listens when it returns."""
    cold_start, boot = ColdStart(), clock.now_us()
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus_config = BusConfig(config.nats_url, config.name, seed, config.tls)
    bus = await process.enter(connect(bus_config))
    cold_start.connected()
    config = await process.enter(revised(bus, config))
    if config.revision is not None:
        cold_start.artifacts_fetched()
    engine: Engine = engine_class(config.engine).from_config(config)
    info = await process.enter(_started(engine))
    if config.revision is not None:
        info = replace(info, revision=config.revision)
    cold_start.engine_started()
    if config.engine_max_memory is not None:
        check_bound(config.engine_max_memory, engine_memory())
    frames = await process.enter(_publishing(bus_config, config, boot))

    telemetry = await process.enter(_watching_gpus(config))

    direct = Direct(engine)
    limit = RestartLimit(config.max_engine_restarts, config.engine_restart_window.total_seconds())
    energy = telemetry.energy if telemetry is not None else None
    fence = Fence()
    generations = Generations(engine, info, frames, direct, limit, fence, energy)
    intake = Intake(generations, frames, FrameLog(bus), config.name, boot, info)
    source = WorkSource(bus, config.name, intake.on_delivery, info.capacity + _SPARE_DELIVERIES)

    async def reborn(boot: int) -> None:
        intake.born_again(boot)
        await source.start(boot)

    record = worker_record(
        config.name, boot, info, telemetry.gpus if telemetry is not None else (),
        node=config.node or host_name(), zone=config.zone, cost_per_hour=config.cost_per_hour,
    )  # fmt: skip
    canary = config.revision is not None
    registration = Registration(bus, record, model_records(info), config.lease_ttl, fence, reborn, canary=canary)
    drain = Drain(registration, source, generations, intake)

    report = EngineReport(engine, info.engine)
    statuses = telemetry.statuses if telemetry is not None else tuple
    memory = MemoryLook(on_gpus=bool(record.gpus))
    load = Load(config.name, generations, intake, frames, report, statuses, memory.held)
    heartbeats = Heartbeats(bus, load.current, config.heartbeat_interval, generations)
    intake.on_suspect(heartbeats.soon)
    metrics.WORKER_CAPACITY.set(info.capacity)

    def recalled(recall: Recall) -> None:
        if intake.on_recall(recall):
            heartbeats.soon()

    servicer = WorkerServicer(registration, generations, frames, direct, drain, engine, info, report)
    add = partial(worker_pb2_grpc.add_WorkerServiceServicer_to_server, servicer)
    token = config.rpc_token.get_secret_value() if config.rpc_token else None
    rpc = await process.enter(serve(config.grpc_address, add, [SERVICE], token, config.tls))
    process.spawn(generations.run(), "steps into frames")
    process.spawn(_engine_watch(config, info, generations, registration).run(), "engine watch")
    process.spawn(generations.run_deadlines(), "deadlines")
    process.spawn(intake.run_recovery(), "recovery")
    process.spawn(intake.run_acks(), "acks of work")
    await bus.subscribe(Cancel, intake.on_cancel)
    await bus.subscribe(Recall, recalled, Recall(worker=config.name))
    record.start.CopyFrom(cold_start.done())
    await process.enter(_registered(registration, rpc.address))
    process.spawn(registration.run(), "fleet lease")
    await process.enter(_taking_work(source, boot))
    process.spawn(heartbeats.run(), "heartbeats")
    process.spawn(memory.run(), "memory")
    if isinstance(engine, TellsPrefixes):
        teller = CacheTeller(bus, config.name, lambda: registration.boot, engine.prefixes)
        process.spawn(teller.run(), "what the cache holds")
    seconds = config.drain_timeout.total_seconds()
    grace = max(seconds / 2, seconds - _HAND_OVER_SECONDS)
    if telemetry is not None:
        process.spawn(telemetry.run(partial(drain.finish, grace), config.gpu.drain_on), "GPUs")
    process.on_drain(lambda: drain.leave(grace, seconds * _LEAVE_PART))
    return {"grpc": rpc.address}


@asynccontextmanager
async def _started(engine: Engine) -> AsyncIterator[EngineInfo]:
    try:
        yield await engine.start()
    finally:
        await engine.stop()


def _engine_watch(
    config: Config, info: EngineInfo, generations: Generations, registration: Registration
) -> EngineWatch:
    bound = None
    if config.engine_max_memory is not None:
        limit = RestartLimit(config.max_engine_restarts, config.engine_restart_window.total_seconds())
        bound = MemoryBound(config.engine_max_memory, config.engine_memory_grace.total_seconds(), limit)
    stall = max(config.engine_stall.total_seconds(), info.patience)
    return EngineWatch(generations, stall, bound, registration.rest)


def _watching_gpus(config: Config) -> AbstractAsyncContextManager[Telemetry | None]:
    devices = wanted(config.gpu.devices, visible_gpus(), config.engine in GPU_ENGINES)
    hot_for = config.gpu.hot_for.total_seconds()
    return watching(partial(open_nvml, devices), ignored_xids=config.gpu.ignored_xids, hot_for=hot_for)


@asynccontextmanager
async def _publishing(bus: BusConfig, config: Config, boot: int) -> AsyncIterator[FramePublisher]:
    frames = FramePublisher(bus, worker=config.name, boot=boot, max_unacked=config.max_unacked_frames)
    await frames.start()
    try:
        yield frames
    finally:
        await frames.stop()


@asynccontextmanager
async def _registered(registration: Registration, address: str) -> AsyncIterator[None]:
    await registration.start(address)
    try:
        yield
    finally:
        await registration.stop()


@asynccontextmanager
async def _taking_work(source: WorkSource, boot: int) -> AsyncIterator[None]:
    await source.start(boot)
    try:
        yield
    finally:
        await source.close()

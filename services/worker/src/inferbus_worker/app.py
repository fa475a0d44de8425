"""The wiring of a worker, and nothing else."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import partial

from inferbus.bus.v1.control_pb2 import Cancel, Heartbeat
from inferbus.worker.v1 import worker_pb2, worker_pb2_grpc
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.workqueue import WorkQueue
from inferbus_contracts.subjects import work_subject
from inferbus_runtime import clock, metrics
from inferbus_runtime.lifecycle import Process
from inferbus_runtime.rpc import serve

from inferbus_worker.config import Config, visible_gpus
from inferbus_worker.core.gpu_names import wanted
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.direct import Direct
from inferbus_worker.drain import Drain
from inferbus_worker.engine import Engine, EngineInfo
from inferbus_worker.engine_memory import check_bound, engine_memory
from inferbus_worker.engine_report import EngineReport
from inferbus_worker.engine_watch import EngineWatch, MemoryBound
from inferbus_worker.engines import GPU_ENGINES, engine_class
from inferbus_worker.generations import Generations
from inferbus_worker.heartbeat import Heartbeats
from inferbus_worker.intake import Intake
from inferbus_worker.registration import Registration
from inferbus_worker.servicer import WorkerServicer
from inferbus_worker.telemetry import Telemetry, watching
from inferbus_worker.telemetry_nvml import open_nvml

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name
# Deliveries held beyond what runs: they keep the engine busy while a finished one is on its way to be acknowledged.
_SPARE_DELIVERIES = 16
# How long a killed worker's streams pause until its successor is given the work again. Short, since a delivery that
# comes twice to the same process changes nothing.
_ACK_WAIT = timedelta(seconds=3)
# Part of the drain time that is left to end what did not finish by itself.
_LAST_PART = 0.2


async def wire(config: Config, process: Process) -> Mapping[str, str]:
    """Everything runs and listens when it returns."""
    boot = clock.now_us()
    seed = config.nats_seed.get_secret_value() if config.nats_seed else None
    bus_config = BusConfig(config.nats_url, config.name, seed, config.tls)
    bus = await process.enter(connect(bus_config))
    engine: Engine = engine_class(config.engine).from_config(config)
    info = await process.enter(_started(engine))
    if config.engine_max_memory is not None:
        check_bound(config.engine_max_memory, engine_memory())
    frames = await process.enter(_publishing(bus_config, config, boot))

    telemetry = await process.enter(_watching_gpus(config))

    direct = Direct(engine)
    limit = RestartLimit(config.max_engine_restarts, config.engine_restart_window.total_seconds())
    energy = telemetry.energy if telemetry is not None else None
    generations = Generations(engine, info, frames, direct, limit, energy)
    intake = Intake(generations, frames, FrameLog(bus), config.name, info)
    gpus = telemetry.gpus if telemetry is not None else ()
    registration = Registration(bus, config.name, boot, info, config.lease_ttl, generations.may_publish, gpus)
    queue = WorkQueue(
        bus,
        stream="WORK",
        durable=config.name,
        subject=work_subject(config.name),
        on_delivery=intake.on_delivery,
        in_flight=info.capacity + _SPARE_DELIVERIES,
        ack_wait=_ACK_WAIT,
    )
    drain = Drain(registration, queue, generations, intake)

    report = EngineReport(engine, info.engine)

    def load() -> Heartbeat:
        return Heartbeat(
            worker=config.name,
            boot=boot,
            active=len(generations.running),
            work_sequence=intake.work_sequence,
            unacked_frames=frames.unacked,
            output_tokens_total=generations.output_tokens,
            gpus=telemetry.statuses() if telemetry is not None else (),
            engine=report.current(),
        )

    heartbeats = Heartbeats(bus, load, config.heartbeat_interval)
    generations.on_end(lambda *_: heartbeats.soon())
    metrics.WORKER_CAPACITY.set(info.capacity)

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
    await process.enter(_registered(registration, rpc.address))
    process.spawn(registration.run(), "fleet lease")
    await process.enter(_taking_work(queue))
    process.spawn(heartbeats.run(), "heartbeats")
    if telemetry is not None:
        process.spawn(telemetry.run(drain.finish, config.gpu.drain_on), "GPUs")
    process.on_drain(lambda: drain.leave(config.drain_timeout.total_seconds() * (1 - _LAST_PART)))
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
async def _taking_work(queue: WorkQueue) -> AsyncIterator[None]:
    await queue.start()
    try:
        yield
    finally:
        await queue.stop()
        await queue.close()

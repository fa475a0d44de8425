"""The only wiring: bus → fleet → dispatch → gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from inferbus.bus.v1.control_pb2 import Cancel, Heartbeat
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.workqueue import WorkQueue
from inferbus_runtime import clock
from inferbus_runtime.lifecycle import Process, ReadyInfo
from inferbus_runtime.rpc import serve

from inferbus_scheduler.config import Config
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.dispatch import TICK_SECONDS, Dispatcher
from inferbus_scheduler.endings import Endings
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.gauges import Gauges
from inferbus_scheduler.servicer import SchedulerServicer

# One consumer for all schedulers that ever run: what one held goes to the next.
DURABLE = "scheduler"
SWEEP_SECONDS = 1.0


async def wire(config: Config, process: Process) -> ReadyInfo:
    """Build everything; returns when requests are taken and gRPC listens."""
    seed = config.nats_seed.get_secret_value() if config.nats_seed is not None else None
    bus_config = BusConfig(config.nats_url, config.name, seed, config.tls)
    bus = await process.enter(connect(bus_config))
    models = await process.enter(_registry(Registry(bus, "models", ModelRecord)))
    fleet = await _fleet(config, process, bus)
    frames = await process.enter(_frames(bus_config, config.name))
    endings = Endings(frames)
    process.spawn(endings.run(), "endings")
    publisher = Publisher(bus)
    await publisher.start()
    queues = Queues(config.shares)
    dispatcher = Dispatcher(
        bus=bus,
        publisher=publisher,
        fleet=fleet,
        endings=endings,
        queues=queues,
        # A worker's lease and its model are two records: whichever is here first.
        knows_model=lambda model: models.get(model) is not None or fleet.knows_model(model),
        limits=config.limits,
        max_wait=config.max_wait.total_seconds(),
        decisions_kept=config.decisions_kept,
    )
    await bus.subscribe(Cancel, dispatcher.on_cancel)
    await bus.subscribe(Heartbeat, lambda beat: fleet.heartbeat(beat, clock.monotonic()))
    _follow_outages(bus, fleet, dispatcher)
    process.spawn(_tick(fleet, dispatcher, queues), "tick")
    queue = await process.enter(_intake(bus, dispatcher, config.max_held, config.ack_wait))
    process.on_drain(queue.stop)
    process.on_drain(dispatcher.drain)
    servicer = SchedulerServicer(fleet=fleet, queues=queues, dispatcher=dispatcher, limits=config.limits)
    server = await process.enter(
        serve(
            config.grpc_address,
            lambda grpc_server: scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, grpc_server),
            [scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name],
            config.rpc_token.get_secret_value() if config.rpc_token is not None else None,
            config.tls,
        )
    )
    return {"grpc": server.address}


async def _fleet(config: Config, process: Process, bus: Bus) -> Fleet:
    """A fleet that follows the leases."""
    fleet = Fleet(
        heartbeat_timeout=config.heartbeat_timeout.total_seconds(),
        reconnect_grace=config.reconnect_grace.total_seconds(),
        now=clock.monotonic(),
    )

    def changed(name: str, record: WorkerRecord | None) -> None:
        if record is None:
            fleet.lease_ended(name, clock.monotonic())
        else:
            fleet.registered(name, record, clock.monotonic())

    leases = Registry(bus, "fleet", WorkerRecord)
    leases.on_change(changed)
    await process.enter(_registry(leases))
    return fleet


def _follow_outages(bus: Bus, fleet: Fleet, dispatcher: Dispatcher) -> None:
    async def back() -> None:
        fleet.bus_back(clock.monotonic())
        dispatcher.pump_all()

    bus.on_disconnect(fleet.bus_away)
    bus.on_reconnect(back)


async def _tick(fleet: Fleet, dispatcher: Dispatcher, queues: Queues) -> None:
    """All that happens by time alone."""
    gauges = Gauges(queues, fleet)
    sweep_at = 0.0
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = clock.monotonic()
        dispatcher.tick(now)
        if now >= sweep_at:
            sweep_at = now + SWEEP_SECONDS
            fleet.sweep(now)
            queues.prune()
            gauges.update()


@asynccontextmanager
async def _registry(registry: Registry[Any]) -> AsyncIterator[Registry[Any]]:
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


@asynccontextmanager
async def _frames(bus_config: BusConfig, name: str) -> AsyncIterator[FramePublisher]:
    """The ends of what is never placed, published in the scheduler's own name."""
    frames = FramePublisher(bus_config, worker=name, boot=clock.now_us())
    await frames.start()
    try:
        yield frames
    finally:
        await frames.stop()


@asynccontextmanager
async def _intake(bus: Bus, dispatcher: Dispatcher, in_flight: int, ack_wait: timedelta) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(
        bus,
        stream="REQUESTS",
        durable=DURABLE,
        subject="req.>",
        on_delivery=dispatcher.on_delivery,
        in_flight=in_flight,
        ack_wait=ack_wait,
    )
    await queue.start()
    try:
        yield queue
    finally:
        await queue.close()

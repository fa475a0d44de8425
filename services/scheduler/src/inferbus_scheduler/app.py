"""The only wiring: bus → fleet → shards → dispatch → gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Protocol, TypeVar

import grpc
from inferbus.bus.v1.control_pb2 import CacheEvents, Cancel, Heartbeat
from inferbus.bus.v1.registry_pb2 import ModelRecord, ProjectRecord, TenantRecord, WorkerRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from inferbus.scheduler.v1.revision_pb2_grpc import add_RevisionServiceServicer_to_server
from inferbus.scheduler.v1.rollout_pb2_grpc import add_RolloutServiceServicer_to_server
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.shards import Shards
from inferbus_runtime import clock
from inferbus_runtime.lifecycle import Process, ReadyInfo
from inferbus_runtime.rpc import channel, serve

from inferbus_scheduler.capacity import Capacities
from inferbus_scheduler.cold_starts import ColdStarts
from inferbus_scheduler.config import Config
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.estimates import OutputMeans
from inferbus_scheduler.core.placement import Policy, place
from inferbus_scheduler.core.policies import picker
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.scaling import ScalingSettings
from inferbus_scheduler.decision_log import DecisionLog
from inferbus_scheduler.deployments import DEPLOYMENT_SERVICE, Deployments, add_deployment_service
from inferbus_scheduler.dispatch import TICK_SECONDS, Dispatcher
from inferbus_scheduler.draining import Draining
from inferbus_scheduler.endings import Endings
from inferbus_scheduler.fallbacks import Fallbacks
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.gauges import Gauges
from inferbus_scheduler.incoming import request_of
from inferbus_scheduler.intake import Intake
from inferbus_scheduler.keda import serve_keda
from inferbus_scheduler.making_room import MakingRoom
from inferbus_scheduler.model_records import ModelRecords
from inferbus_scheduler.placed import PlacedWork
from inferbus_scheduler.probes import Prober
from inferbus_scheduler.revisions import REVISION_SERVICE, Revisions, RevisionServicer
from inferbus_scheduler.rollout_control import RolloutControl
from inferbus_scheduler.rollout_servicer import ROLLOUT_SERVICE, RolloutServicer
from inferbus_scheduler.rollouts import Rollouts
from inferbus_scheduler.routing import Routing
from inferbus_scheduler.scaler import Scaler
from inferbus_scheduler.servicer import SchedulerServicer
from inferbus_scheduler.settled_before import SettledBefore
from inferbus_scheduler.shadowing import Shadowing
from inferbus_scheduler.shard_work import ShardWork
from inferbus_scheduler.shards import ModelShards, shards_of
from inferbus_scheduler.takeover import Takeover
from inferbus_scheduler.waiting import Waiting

SWEEP_SECONDS = 1.0
# Whose holder decides how many workers there are to be, for all models.
SCALING_SHARD = 0
SCHEDULER_SERVICE = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name


class _Following(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


FollowingT = TypeVar("FollowingT", bound=_Following)


async def wire(config: Config, process: Process) -> ReadyInfo:
    """Build everything; returns when gRPC listens. Requests are taken as shards are."""
    seed = config.nats_seed.get_secret_value() if config.nats_seed is not None else None
    bus_config = BusConfig(config.nats_url, config.name, seed, config.tls)
    bus, boot = await process.enter(connect(bus_config)), clock.now_us()
    models = await process.enter(_following(Registry(bus, "models", ModelRecord)))
    tenants = await process.enter(_following(Registry(bus, "tenants", TenantRecord)))
    projects = await process.enter(_following(Registry(bus, "projects", ProjectRecord)))
    builds = await process.enter(_following(Registry(bus, "revisions", RevisionRecord)))
    deployments = await process.enter(_following(Deployments(bus)))
    fleet = await _fleet(config, process, bus)
    shards = await process.enter(_shards(shards_of(bus, config.name, config.lease_ttl)))
    ours = ModelShards(shards)
    frames = await process.enter(_frames(bus_config, config.name, boot))
    endings = Endings(frames)
    process.spawn(endings.run(), "endings")
    publisher = Publisher(bus)
    await publisher.start()

    revisions = Revisions(builds, models)
    rollouts = await process.enter(_following(Rollouts(bus, revisions, publisher)))
    policy = _policies(deployments, config.max_prefill_tokens, config.policy)
    means, rate, queues = OutputMeans(), DrainRate(), Queues(config.shares, _weights(tenants, projects))
    decisions = DecisionLog(publisher, scheduler=config.name, boot=boot, kept=config.decisions_kept, policy=policy)
    takeover = Takeover(
        bus=bus, publisher=publisher, frames=frames, fleet=fleet, owns=ours.owns,
        describe=_describe(means, config.max_wait.total_seconds()),
    )  # fmt: skip
    waiting = Waiting(
        fleet=fleet,
        queues=queues,
        rate=rate,
        fallbacks=Fallbacks(
            fleet=fleet, queues=queues, rate=rate, deployment=deployments.of, policy=policy,
            model=lambda name: models.get(name) or models.get(base_of(name)),
            too_large=lambda model: scaler.too_large(model),  # it is made below
        ),
        deployment=deployments.of,
        # A worker's lease and its model are two records: whichever is here first.
        knows_model=lambda model: models.get(model) is not None or fleet.knows_model(model),
        limits=config.limits,
        too_large=lambda model: scaler.too_large(model),
    )  # fmt: skip
    pick = picker(config.policy, Random().random)  # noqa: S311 (it hides nothing)
    routing = Routing(fleet, rollouts.traffic, pick)
    making_room = MakingRoom(fleet, queues, takeover.preempt)
    cold_starts = ColdStarts(lambda: (worker.record for worker in fleet.workers()), clock.monotonic())
    dispatcher = Dispatcher(
        bus=bus, publisher=publisher, fleet=fleet, endings=endings, queues=queues, waiting=waiting,
        making_room=making_room, takeover=takeover, rate=rate, decisions=decisions, means=means, policy=policy,
        routing=routing, shadowing=Shadowing(publisher, fleet, rollouts.traffic),
        owns=ours.owns, holds=ours.holds, without_worker=cold_starts.waited,
        max_wait=config.max_wait.total_seconds(),
    )  # fmt: skip
    fleet.on_gone = takeover.gone
    fleet.on_ended = lambda view: queues.ended(view.key)
    fleet.on_served = _served(queues, means)

    def serving(model: str, served: bool, now: float) -> None:
        rate.serving(model, served, now)
        cold_starts.serving(model, served, now)

    fleet.on_serving = serving
    scaler = Scaler(
        bus=bus, publisher=publisher, fleet=fleet, deployments=deployments, name=config.name,
        decides=lambda: shards.holds(SCALING_SHARD),
        settings=ScalingSettings(config.gpu_budget, config.scale_down_window.total_seconds()),
        rules=config.rules, revisions=builds.items, shares=rollouts.shares,
    )  # fmt: skip
    scaler.log.on_decision = cold_starts.decided
    await process.enter(_following(scaler))
    rpc_token = config.rpc_token.get_secret_value() if config.rpc_token is not None else None
    control = RolloutControl(
        rollouts, revisions, fleet, Prober(rpc_token, config.tls), await _meter(config, process, rpc_token),
        decides=lambda: shards.holds(SCALING_SHARD),
    )  # fmt: skip
    process.spawn(control.run(), "rollouts")
    rollouts.on_change = dispatcher.pump_for
    await _listen(bus, fleet, takeover, dispatcher, scaler)
    _follow_outages(bus, fleet, dispatcher)
    process.spawn(takeover.run(), "takeover")
    process.spawn(scaler.run(), "scaler")
    announcing = ModelRecords(models, builds, lambda: shards.holds(SCALING_SHARD))
    process.spawn(announcing.run(), "models that were never served")
    capacities = Capacities(bus, fleet=fleet, queues=queues, name=config.name, owns=ours.owns)
    process.spawn(capacities.run(), "capacity for batches")
    process.spawn(_tick(fleet, dispatcher, queues, rate, decisions, making_room), "tick")
    intake = Intake(bus, on_delivery=dispatcher.on_delivery, max_held=config.max_held, ack_wait=config.ack_wait)
    placed = PlacedWork(bus, publisher)
    settled = SettledBefore(bus, placed, schedulers=shards.seen, told=dispatcher.settled_before)
    work = ShardWork(intake=intake, placed=takeover, settled=settled, queued=dispatcher)
    process.spawn(shards.run(work), "shards")
    process.on_drain(shards.stop)
    process.on_drain(endings.flushed)

    servicer = SchedulerServicer(
        name=config.name, fleet=fleet, queues=queues, dispatcher=dispatcher, waiting=waiting, decisions=decisions,
        draining=Draining(rpc_token, config.tls), policy=policy, schedulers=shards.holders,
        routing=Routing(fleet, rollouts.traffic, place),  # to be asked about changes nothing
        without_worker=cold_starts.waited,
    )  # fmt: skip

    def add(grpc_server: Any) -> None:
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(servicer, grpc_server)
        add_deployment_service(grpc_server, deployments, scaler.log, cold_starts.last)
        add_RevisionServiceServicer_to_server(RevisionServicer(revisions, fleet, rollouts.get), grpc_server)
        rollout_servicer = RolloutServicer(rollouts, revisions, fleet, control.figures)
        add_RolloutServiceServicer_to_server(rollout_servicer, grpc_server)

    services = [SCHEDULER_SERVICE, DEPLOYMENT_SERVICE, REVISION_SERVICE, ROLLOUT_SERVICE]
    server = await process.enter(serve(config.grpc_address, add, services, rpc_token, config.tls))
    bound = {"grpc": server.address}
    if config.keda_address is not None:
        keda = await process.enter(serve_keda(config.keda_address, scaler, deployments, config.tls))
        bound["keda"] = keda.address
    return bound


async def _meter(config: Config, process: Process, token: str | None) -> grpc.aio.Channel | None:
    if config.meter_address is None:
        return None
    return await process.enter(channel(config.meter_address, token, config.tls))


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
    await process.enter(_following(leases))
    return fleet


async def _listen(bus: Bus, fleet: Fleet, takeover: Takeover, dispatcher: Dispatcher, scaler: Scaler) -> None:
    def cancelled(cancel: Cancel) -> None:
        takeover.on_cancel(cancel)
        dispatcher.on_cancel(cancel)

    def heard(beat: Heartbeat) -> None:
        now = clock.monotonic()
        fleet.heartbeat(beat, now)
        takeover.on_heartbeat(beat)
        scaler.heartbeat(beat, now)

    await bus.subscribe(Cancel, cancelled)
    await bus.subscribe(Heartbeat, heard)
    await bus.subscribe(CacheEvents, lambda events: fleet.cache_events(events, clock.monotonic()))


def _follow_outages(bus: Bus, fleet: Fleet, dispatcher: Dispatcher) -> None:
    async def back() -> None:
        fleet.bus_back(clock.monotonic())
        dispatcher.pump_all()

    bus.on_disconnect(fleet.bus_away)
    bus.on_reconnect(back)


def _policies(deployments: Deployments, max_prefill_tokens: int, name: str) -> Callable[[str], Policy]:
    """Of a model, as its deployment wants it. They differ in their targets only."""
    by_target: dict[float | None, Policy] = {}

    def policy(model: str) -> Policy:
        target = deployments.of(model).itl_target
        found = by_target.get(target)
        if found is None:
            found = by_target[target] = Policy(itl_target=target, max_prefill_tokens=max_prefill_tokens, name=name)
        return found

    return policy


def _weights(
    tenants: Registry[TenantRecord], projects: Registry[ProjectRecord]
) -> Callable[[str, str], tuple[int, int]]:
    """(of the tenant among tenants, of the project among its tenant's)."""

    def weights(tenant: str, project: str) -> tuple[int, int]:
        of_tenant, of_project = tenants.get(tenant), projects.get(f"{tenant}/{project}")
        return (of_tenant.weight if of_tenant else 0) or 1, (of_project.weight if of_project else 0) or 1

    return weights


def _describe(means: OutputMeans, max_wait: float) -> Callable[[GenerateRequest], Request]:
    return lambda message: request_of(message, means, now=clock.monotonic(), now_us=clock.now_us(), max_wait=max_wait)


def _served(queues: Queues, means: OutputMeans) -> Callable[[str, Heartbeat], None]:
    """What was delivered counts for shares, and tells how long answers are."""

    def served(model: str, beat: Heartbeat) -> None:
        output_tokens = 0
        for each in beat.served:
            priority = Priority(each.priority_class or Priority.INTERACTIVE)
            queues.charge(model, each.tenant_id, each.project_id, priority, each.input_tokens, each.output_tokens)
            output_tokens += each.output_tokens
        means.told(model, output_tokens, len(beat.ended_ids) // 16)

    return served


async def _tick(
    fleet: Fleet,
    dispatcher: Dispatcher,
    queues: Queues,
    rate: DrainRate,
    decisions: DecisionLog,
    making_room: MakingRoom,
) -> None:
    """All that happens by time alone."""
    gauges = Gauges(queues, fleet)
    sweep_at = 0.0
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = clock.monotonic()
        dispatcher.tick(now)
        decisions.flush(now)
        if now >= sweep_at:
            sweep_at = now + SWEEP_SECONDS
            fleet.sweep(now)
            queues.prune()
            rate.prune(now)
            making_room.prune()
            gauges.update()


@asynccontextmanager
async def _following(registry: FollowingT) -> AsyncIterator[FollowingT]:
    await registry.start()
    try:
        yield registry
    finally:
        await registry.stop()


@asynccontextmanager
async def _shards(shards: Shards) -> AsyncIterator[Shards]:
    await shards.start()
    try:
        yield shards
    finally:
        await shards.close()


@asynccontextmanager
async def _frames(bus_config: BusConfig, name: str, boot: int) -> AsyncIterator[FramePublisher]:
    """The ends of what no worker has, in the scheduler's own name, and fences in the place of workers that are gone."""
    frames = FramePublisher(bus_config, worker=name, boot=boot)
    await frames.start()
    try:
        yield frames
    finally:
        await frames.stop()

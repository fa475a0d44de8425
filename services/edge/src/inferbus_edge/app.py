"""The wiring of an edge: what is built of what, in the order of start and stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
from inferbus.bus.v1.control_pb2 import Attached
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import IdempotencyRecord, ModelRecord, ResponseRecord, WorkerRecord
from inferbus.edge.v1.edge_pb2_grpc import add_EdgeServiceServicer_to_server
from inferbus_budgets.budgets import Budgets
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store
from inferbus_bus.workers import Workers
from inferbus_runtime import metrics, rpc
from inferbus_runtime.lifecycle import Process

from inferbus_edge.admission import InferenceSettings
from inferbus_edge.attendance import Attendance
from inferbus_edge.batch_services import BatchServices
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.config import Config
from inferbus_edge.cors import cors_of
from inferbus_edge.deliveries import DeliveryLog
from inferbus_edge.directory import Directory
from inferbus_edge.following import Following
from inferbus_edge.idempotency import Claims
from inferbus_edge.inference import Inference
from inferbus_edge.inference_v2_servicer import SERVICE as INFERENCE_SERVICE
from inferbus_edge.inference_v2_servicer import InferenceV2Servicer
from inferbus_edge.limits import RateLimits
from inferbus_edge.listening import listen
from inferbus_edge.queue_door import QueueDoor
from inferbus_edge.reports import Reports
from inferbus_edge.resume import ResumeRoutes
from inferbus_edge.routes.admin import AdminRoutes
from inferbus_edge.routes.analytics import AnalyticsRoutes
from inferbus_edge.routes.anthropic import MessageRoutes
from inferbus_edge.routes.batches import BatchRoutes
from inferbus_edge.routes.brands import BrandRoutes
from inferbus_edge.routes.budgets import BudgetRoutes
from inferbus_edge.routes.chat import ChatRoutes, StoredChatRoutes
from inferbus_edge.routes.completions import CompletionRoutes
from inferbus_edge.routes.console import ConsoleRoutes
from inferbus_edge.routes.deployments import DeploymentRoutes
from inferbus_edge.routes.embeddings import EmbeddingRoutes
from inferbus_edge.routes.files import FileRoutes
from inferbus_edge.routes.health import HealthRoutes
from inferbus_edge.routes.inference_v2 import InferenceV2Routes
from inferbus_edge.routes.inference_v2_door import InferenceDoor
from inferbus_edge.routes.invoices import InvoiceRoutes
from inferbus_edge.routes.models import ModelRoutes
from inferbus_edge.routes.openapi import OpenApiRoutes
from inferbus_edge.routes.organization import OrganizationRoutes
from inferbus_edge.routes.organization_usage import OrganizationUsageRoutes
from inferbus_edge.routes.prices import PriceRoutes
from inferbus_edge.routes.privacy import PrivacyRoutes
from inferbus_edge.routes.rates import RateRoutes
from inferbus_edge.routes.replay import ReplayRoutes
from inferbus_edge.routes.requests import RequestRoutes
from inferbus_edge.routes.responses import ResponsesRoutes
from inferbus_edge.routes.responses_input_tokens import InputTokensRoutes
from inferbus_edge.routes.rollouts import RolloutRoutes
from inferbus_edge.routes.sizing import SizingRoutes
from inferbus_edge.routes.tenants import TenantRoutes
from inferbus_edge.routes.tokenize import TokenizeRoutes
from inferbus_edge.routes.usage import UsageRoutes
from inferbus_edge.schedulers import Schedulers
from inferbus_edge.server import Routes
from inferbus_edge.servicer import DirectoryServicer
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Streams
from inferbus_edge.unattended import Unattended

SERVICE = "inferbus.edge.v1.EdgeService"


async def wire(config: Config, process: Process) -> dict[str, str]:
    """Everything, in the order of its start; returns the addresses that it listens on."""
    seed = None if config.nats_seed is None else config.nats_seed.get_secret_value()
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed, config.tls)))
    models = Registry(bus, "models", ModelRecord)
    publisher = Publisher(bus)
    await publisher.start()
    limits = RateLimits(bus, edge=config.name)
    await limits.start()
    process.spawn(limits.run(), "limits held together")
    budgets = Budgets(bus, edge=config.name, model_of=models.get)
    await process.enter(_running(budgets))
    process.spawn(budgets.run(), "grants of budgets")
    directory = Directory(bus, publisher, lambda key: limits.count_change(key.tenant_id, config.max_changes_per_minute))
    await process.enter(_running(directory))
    await process.enter(_running(models))
    catalogue = Catalogue(models)
    stored = Stored(Store(bus, "responses", ResponseRecord, publisher), config.response_retention)
    inference = await _inference(config, process, bus, publisher, limits, budgets, directory, catalogue, stored)

    token = None if config.rpc_token is None else config.rpc_token.get_secret_value()
    channels = [await process.enter(rpc.channel(one, token, config.tls)) for one in config.scheduler_addresses]
    schedulers = Schedulers(channels)
    meter = await _channel(process, config, config.meter_address, token)
    workers = Workers(Registry(bus, "fleet", WorkerRecord), lambda address: rpc.channel(address, token, config.tls))
    await process.enter(_running(workers))
    auth, wait = directory.auth, config.body_timeout

    def not_ready() -> str | None:
        return _not_ready(bus, directory, models, inference)

    door = InferenceDoor(
        auth=auth, inference=inference, catalogue=catalogue, workers=workers, not_ready=not_ready,
        max_bytes=config.max_body_bytes,
    )  # fmt: skip
    routes = Routes()
    ChatRoutes(auth, inference, wait).add_to(routes)
    StoredChatRoutes(auth, inference, stored).add_to(routes)
    CompletionRoutes(auth, inference, wait).add_to(routes)
    EmbeddingRoutes(auth, inference, catalogue, wait).add_to(routes)
    InferenceV2Routes(door, wait).add_to(routes)
    ResponsesRoutes(auth, inference, stored, wait).add_to(routes)
    InputTokensRoutes(
        auth=auth, inference=inference, stored=stored, catalogue=catalogue, workers=workers, body_timeout=wait
    ).add_to(routes)
    MessageRoutes(auth, inference, catalogue, workers, wait).add_to(routes)
    TokenizeRoutes(auth, inference, catalogue, workers, wait).add_to(routes)
    ResumeRoutes(auth, inference).add_to(routes)
    ModelRoutes(auth, catalogue).add_to(routes)
    HealthRoutes(not_ready).add_to(routes)
    bounds = Reports(auth, limits, of_tenant=config.max_reports, of_operators=config.max_operator_reports)
    reports = routes.within(bounds.bound)
    admin = AdminRoutes(
        auth=auth, desk=directory.keys, schedulers=schedulers, meter=meter, publisher=publisher, body_timeout=wait
    )
    admin.add_to(routes, reports)
    TenantRoutes(auth, directory.tenants, wait).add_to(routes)
    DeploymentRoutes(auth, schedulers, publisher, wait).add_to(routes)
    RolloutRoutes(auth, schedulers, publisher, wait).add_to(routes)
    PriceRoutes(auth, meter, publisher, wait).add_to(routes)
    RateRoutes(auth, catalogue, budgets).add_to(routes)
    BudgetRoutes(directory, meter, wait).add_to(reports)
    ReplayRoutes(auth, meter, wait).add_to(routes)
    OrganizationUsageRoutes(directory, meter, wait).add_to(reports)
    UsageRoutes(auth, meter).add_to(reports)
    RequestRoutes(directory, meter, schedulers, wait).add_to(reports)
    AnalyticsRoutes(directory, meter, wait).add_to(reports)
    SizingRoutes(auth, bounds, wait).add_to(routes)
    InvoiceRoutes(directory, meter, publisher, wait).add_to(reports)
    OrganizationRoutes(directory, wait).add_to(routes)
    BrandRoutes(directory, wait).add_to(routes)
    ConsoleRoutes(directory.brands).add_to(routes)
    PrivacyRoutes(directory, meter, publisher, wait).add_to(reports)
    at = [await process.enter(rpc.channel(one, token, config.tls)) for one in config.batch_addresses]
    batch = BatchServices(at) if at else None
    FileRoutes(auth, batch, wait).add_to(routes)
    issuer = config.bus_issuer
    BatchRoutes(auth, batch, wait, queue=issuer).add_to(routes)
    OpenApiRoutes().add_to(routes)  # last: it describes the others

    servicer = DirectoryServicer(directory)
    # No operator's token here: each call carries an admin key.
    server = await process.enter(
        rpc.serve(
            config.grpc_address,
            lambda one: add_EdgeServiceServicer_to_server(servicer, one),
            (SERVICE,),
            token=None,
            identity=config.tls,
        )
    )
    address = await process.enter(
        listen(
            config.http_host,
            config.http_port,
            routes,
            edge=config.name,
            max_body_bytes=config.max_body_bytes,
            idle_timeout=config.idle_timeout,
            unread_timeout=config.unread_timeout,
            cors=cors_of(config.cors_origins),
            tls=config.http_tls,
        )
    )
    addresses = {"http": address, "grpc": server.address}
    if issuer is not None:
        await QueueDoor(bus, auth, issuer, config.queue_session).start()
    if config.inference_grpc_address is not None:
        addresses["inference_grpc"] = await _inference_grpc(config, process, config.inference_grpc_address, door)
    process.on_drain(lambda: _drain(inference))
    return addresses


async def _inference(
    config: Config,
    process: Process,
    bus: Bus,
    publisher: Publisher,
    limits: RateLimits,
    budgets: Budgets,
    directory: Directory,
    catalogue: Catalogue,
    stored: Stored,
) -> Inference:
    """All between a parsed call and its answer, running."""
    attendance = Attendance(config.name, bus.send, config.orphan_hold.total_seconds())
    streams = Streams(attendance, metrics.STREAMS_ACTIVE.set)
    following = Following(bus, config.name, attendance)

    def on_frame(frame: Frame, sequence: int) -> None:
        streams.on_frame(frame, sequence)
        following.on_own_frame(frame, sequence)
        budgets.on_frame(frame)

    reader = FrameReader(bus, edge=config.name, on_frame=on_frame)
    await process.enter(_running(reader))
    following.start(reader)
    await process.enter(_stopping(following))
    await bus.subscribe(Attached, attendance.on_attached)
    process.spawn(attendance.run(), "who attends to what")

    deliveries = DeliveryLog(config.name, publisher)
    await process.enter(_flushing(deliveries))
    process.spawn(deliveries.run(), "what was delivered")
    inference = Inference(
        edge=config.name,
        auth=directory.auth,
        catalogue=catalogue,
        publisher=publisher,
        streams=streams,
        following=following,
        attendance=attendance,
        limits=limits,
        budgets=budgets,
        claims=Claims(
            Store(bus, "idempotency", IdempotencyRecord, publisher), config.name, config.idempotency_retention
        ),
        stored=stored,
        unattended=Unattended(following, stored, config.background_timeout),
        deliveries=deliveries,
        settings=InferenceSettings(
            request_timeout=config.request_timeout,
            background_timeout=config.background_timeout,
            max_active=config.max_active_requests,
            max_unsent_bytes=config.max_unsent_bytes,
            max_hold=config.max_hold,
            idempotent_hold=config.idempotent_hold,
        ),
    )
    process.spawn(inference.keep_alive(config.keepalive_interval), "keep-alive comments")
    return inference


async def _inference_grpc(config: Config, process: Process, address: str, door: InferenceDoor) -> str:
    """For clients: no operator's token and no certificate of theirs, as at the HTTP port."""
    servicer = InferenceV2Servicer(door, config.name)
    server = await process.enter(
        rpc.serve(
            address,
            servicer.add_to,
            (INFERENCE_SERVICE,),
            token=None,
            identity=config.http_tls,
            public=rpc.Public(
                servicer.admit,
                config.max_body_bytes,
                read_timeout=config.body_timeout,
                idle_timeout=config.idle_timeout,
                unread_timeout=config.unread_timeout,
                call_timeout=config.request_timeout,
            ),
        )
    )
    return server.address


class _Part(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@asynccontextmanager
async def _running(part: _Part) -> AsyncIterator[None]:
    await part.start()
    try:
        yield
    finally:
        await part.stop()


@asynccontextmanager
async def _stopping(following: Following) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await following.stop()


@asynccontextmanager
async def _flushing(deliveries: DeliveryLog) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await deliveries.flush()


async def _channel(process: Process, config: Config, address: str | None, token: str | None) -> grpc.aio.Channel | None:
    return None if address is None else await process.enter(rpc.channel(address, token, config.tls))


def _not_ready(bus: Bus, directory: Directory, models: Registry[ModelRecord], inference: Inference) -> str | None:
    """Why no request can be taken now; None if one can."""
    if inference.admission.draining:
        return "draining"
    if not bus.connected:
        return "bus_unavailable"
    if not (directory.loaded and models.loaded):
        return "registries_loading"
    return None


async def _drain(inference: Inference) -> None:
    """New requests are refused from now on, running ones end by themselves; at the deadline they are ended."""
    try:
        await inference.drain()
    finally:
        inference.end_all()

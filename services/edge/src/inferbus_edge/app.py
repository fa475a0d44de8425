"""The wiring of an edge: what is built of what, in the order of start and stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.edge.v1.edge_pb2_grpc import add_EdgeServiceServicer_to_server
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_runtime import rpc
from inferbus_runtime.lifecycle import Process

from inferbus_edge.auth import Auth
from inferbus_edge.config import Config
from inferbus_edge.keys import KeyDesk
from inferbus_edge.routes.admin import AdminRoutes
from inferbus_edge.routes.chat import ChatLimits, ChatRoutes
from inferbus_edge.routes.health import HealthRoutes
from inferbus_edge.routes.models import ModelRoutes
from inferbus_edge.server import Routes, listen
from inferbus_edge.servicer import EdgeServicer
from inferbus_edge.streaming import Replies

SERVICE = "inferbus.edge.v1.EdgeService"


async def wire(config: Config, process: Process) -> dict[str, str]:
    """Everything, in the order of its start; returns the addresses that it listens on."""
    seed = None if config.nats_seed is None else config.nats_seed.get_secret_value()
    bus = await process.enter(connect(BusConfig(config.nats_url, config.name, seed)))
    keys = Registry(bus, "keys", KeyRecord)
    models = Registry(bus, "models", ModelRecord)
    publisher = Publisher(bus)
    await publisher.start()
    await process.enter(_running(keys))
    await process.enter(_running(models))

    replies = Replies(send=bus.send, max_active=config.max_active_requests)
    await process.enter(_running(FrameReader(bus, edge=config.name, on_frame=replies.on_frame)))
    process.spawn(replies.keep_alive(config.keepalive_interval), "keep-alive comments")

    auth = Auth(keys)
    desk = KeyDesk(keys, publisher)
    token = None if config.rpc_token is None else config.rpc_token.get_secret_value()
    scheduler = await _channel(process, config.scheduler_address, token)
    meter = await _channel(process, config.meter_address, token)

    routes = Routes()
    limits = ChatLimits(config.request_timeout, config.body_timeout, config.max_unsent_bytes)
    ChatRoutes(edge=config.name, auth=auth, models=models, publisher=publisher, replies=replies, limits=limits).add_to(
        routes
    )
    ModelRoutes(auth, models).add_to(routes)
    HealthRoutes(lambda: _not_ready(bus, keys, models, replies)).add_to(routes)
    AdminRoutes(auth=auth, desk=desk, scheduler=scheduler, meter=meter, body_timeout=config.body_timeout).add_to(routes)

    servicer = EdgeServicer(auth, desk)
    # No operator's token here: each call carries an admin key.
    server = await process.enter(
        rpc.serve(
            config.grpc_address, lambda one: add_EdgeServiceServicer_to_server(servicer, one), (SERVICE,), token=None
        )
    )
    address = await process.enter(
        listen(config.http_host, config.http_port, routes, max_body_bytes=config.max_body_bytes)
    )
    process.on_drain(lambda: _drain(replies))
    return {"http": address, "grpc": server.address}


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


async def _channel(process: Process, address: str | None, token: str | None) -> grpc.aio.Channel | None:
    return None if address is None else await process.enter(rpc.channel(address, token))


def _not_ready(bus: Bus, keys: Registry[KeyRecord], models: Registry[ModelRecord], replies: Replies) -> str | None:
    """Why no request can be taken now; None if one can."""
    if replies.draining:
        return "draining"
    if not bus.connected:
        return "bus_unavailable"
    if not (keys.loaded and models.loaded):
        return "registries_loading"
    return None


async def _drain(replies: Replies) -> None:
    """New requests are refused from now on, running ones end by themselves; at the deadline they are ended."""
    try:
        await replies.drain()
    finally:
        replies.end_all()

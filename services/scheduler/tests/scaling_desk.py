"""What the tests of scaling share: deployments, scaler and their gRPC on a real broker; the test says which workers
there are."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from externalscaler.externalscaler_pb2_grpc import ExternalScalerStub
from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage
from inferbus.scheduler.v1.deployment_pb2 import SetDeploymentRequest
from inferbus.scheduler.v1.deployment_pb2_grpc import DeploymentServiceStub
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_runtime import clock
from inferbus_runtime.rpc import channel, serve
from inferbus_scheduler.core.scaling import ScalingSettings
from inferbus_scheduler.core.view import WorkerView
from inferbus_scheduler.deployments import DEPLOYMENT_SERVICE, Deployments, add_deployment_service
from inferbus_scheduler.keda import serve_keda
from inferbus_scheduler.scaler import Scaler
from inferbus_stack.nats import NatsServer

_probes = itertools.count(1)
TOKEN = "operators-token-of-tests"


class Workers:
    """The fleet's views, as the test sets them."""

    def __init__(self) -> None:
        self._views: dict[str, WorkerView] = {}

    def views(self) -> list[WorkerView]:
        return list(self._views.values())

    def set(
        self, model: str, count: int, *, active: int = 0, capacity: int = 8, draining: int = 0, revision: str = ""
    ) -> None:
        """``active`` generations on each; ``draining`` of them leave. Of other revisions they stay as they are."""
        self._views = {
            name: view for name, view in self._views.items() if (view.model, view.revision) != (model, revision)
        }
        for n in range(count):
            name = f"{model}{revision}-{n}"
            self._views[name] = WorkerView(
                name=name, boot=1, model=model, capacity=capacity, active=active, on_the_way=0, revision=revision,
                draining=n >= count - draining, alive_until=clock.monotonic() + 1e6,
            )  # fmt: skip


class Desk:
    """One scheduler's part in scaling. ``deciding``: whether it holds the right to decide."""

    def __init__(self, bus: Bus, stack: AsyncExitStack) -> None:
        self.bus = bus
        self.workers = Workers()
        self.revisions: dict[str, RevisionRecord] = {}
        self.shares: dict[str, tuple[tuple[str, int], ...]] = {}
        self.deciding = True
        self._stack = stack

    async def start(self, name: str, **settings: Any) -> "Desk":
        self.publisher = Publisher(self.bus)
        await self.publisher.start()
        self.deployments = Deployments(self.bus)
        await self.deployments.start()
        self._stack.push_async_callback(self.deployments.stop)
        settle = settings.pop("settle", 0.2)
        rules = settings.pop("rules", None)
        self.deciding = settings.pop("deciding", True)
        self.scaler = Scaler(
            bus=self.bus, publisher=self.publisher, fleet=self.workers, deployments=self.deployments, name=name,
            decides=lambda: self.deciding, settings=ScalingSettings(**settings), interval=0.05, settle=settle,
            rules=rules, revisions=lambda: self.revisions, shares=lambda model: self.shares.get(model, ()),
        )  # fmt: skip
        await self.scaler.start()
        self._stack.push_async_callback(self.scaler.stop)
        running = asyncio.create_task(self.scaler.run())
        self._stack.callback(running.cancel)
        scaler, deployments = self.scaler, self.deployments
        server = await self._stack.enter_async_context(
            serve(
                "127.0.0.1:0",
                lambda one: add_deployment_service(one, deployments, scaler.log),
                [DEPLOYMENT_SERVICE],
                TOKEN,
            )
        )
        at = await self._stack.enter_async_context(channel(server.address, TOKEN))
        self.api = DeploymentServiceStub(at)
        keda = await self._stack.enter_async_context(serve_keda("127.0.0.1:0", scaler, deployments, None))
        # As KEDA: a plain gRPC client, without anything of ours.
        self.keda_channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(keda.address))
        self.keda = ExternalScalerStub(self.keda_channel)
        return self

    async def set(self, model: str, **fields: Any) -> DeploymentRecord:
        record = DeploymentRecord(model=model, **fields)
        answer = await self.api.SetDeployment(SetDeploymentRequest(deployment=record, actor_key_id="key_operator"))
        return answer.deployment

    def register(self, model: str, revision: str, memory: int) -> None:
        self.revisions[f"{model}/{revision}"] = RevisionRecord(
            model=model, revision=revision, stage=RevisionStage.REVISION_STAGE_STABLE, memory_bytes=memory
        )

    async def wait(self, model: str) -> None:
        """A request of ``model`` that nobody takes."""
        request = GenerateRequest(request_id=uuid7(clock.now_us() // 1000, os.urandom(10)), edge="edge")
        request.context.model = model
        await self.publisher.publish(request)

    async def decided(self, model: str, replicas: int, revision: str = "", reason: str = "") -> ScalingDecision:
        """The decision, once it is there."""
        async with asyncio.timeout(30):
            while (
                (found := self.scaler.last(model, revision)) is None
                or found.replicas != replicas
                or reason not in ("", found.reason)
            ):
                await asyncio.sleep(0.01)
        return found

    async def looked(self) -> None:
        """It has looked at everything since: a deployment that is new has its workers."""
        probe = f"probe-{next(_probes)}"
        await self.set(probe, min_replicas=1, max_replicas=1)
        await self.decided(probe, 1)

    async def stored(self, *models: str) -> list[ScalingDecision]:
        """What is on DECISIONS about them, in its order."""
        log = FrameLog(self.bus, "DECISIONS")
        first, last = await log.bounds()
        found = [data async for batch in log.read(first, last, subject="dec.scaling.>") for _, _, data in batch]
        return [one for one in map(ScalingDecision.FromString, found) if one.model in models]


class Broker:
    def __init__(self, server: NatsServer, stack: AsyncExitStack) -> None:
        self.url = server.url
        self._stack = stack

    async def desk(self, name: str = "scheduler", **settings: Any) -> Desk:
        bus = await self._stack.enter_async_context(connect(BusConfig(self.url, name)))
        return await Desk(bus, self._stack).start(name, **settings)


@asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[Broker]:
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # What is set is seen when the call returns, also where all stands still for a while.
        patch.setattr("inferbus_scheduler.seen._SEEN_SECONDS", 30.0)
        server = await stack.enter_async_context(NatsServer(folder / "nats"))
        bus = await stack.enter_async_context(connect(BusConfig(server.url, "admin")))
        await ensure_streams(bus)
        yield Broker(server, stack)

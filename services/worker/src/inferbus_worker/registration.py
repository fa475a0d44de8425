"""The worker's place in the fleet: a record that lives as long as it is renewed.

A worker that could not renew it for nearly its whole time to live must take itself for dead, because others soon do: it
fences itself, which means that it takes no more steps from its engine and publishes nothing until a renewal succeeds.
Frames sent before and not yet acknowledged may still be stored late; a later attempt makes them void for every reader.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.gpu import Gpu
from inferbus_worker.core.lifecycle import WIRE_STATES, State, advance
from inferbus_worker.engine import EngineInfo

log = logging.getLogger(__name__)

# Part of the time to live after which the worker fences itself: before the record can have run out at the server.
_FENCE_PART = 0.9
_RETRY_SECONDS = 0.25


class Registration:
    """``state`` moves by :meth:`move`; ``may_publish`` is cleared while the lease is lost."""

    def __init__(
        self,
        bus: Bus,
        worker: str,
        boot: int,
        info: EngineInfo,
        ttl: timedelta,
        may_publish: asyncio.Event,
        gpus: Sequence[Gpu],
    ) -> None:
        self.state = State.STARTING
        self.record = WorkerRecord(
            worker=worker,
            boot=boot,
            model=info.model,
            revision=info.revision,
            engine=info.engine,
            capacity=info.capacity,
            context_length=info.context_length,
            state=WIRE_STATES[self.state],
            gpus=len(gpus),
            gpu_names=", ".join(sorted({gpu.name for gpu in gpus if gpu.name})),
        )
        self._model = ModelRecord(
            name=info.model,
            revision=info.revision,
            engine=info.engine,
            context_length=info.context_length,
            owned_by="inferbus",
            capabilities=info.capabilities,
            embedding_dimensions=info.embedding_dimensions,
            inference_metadata=info.inference_metadata,
        )
        self._ttl = ttl
        self._may_publish = may_publish
        self._fleet: Registry[WorkerRecord] = Registry(bus, "fleet", WorkerRecord)
        self._models: Registry[ModelRecord] = Registry(bus, "models", ModelRecord)
        self._fence_timer: asyncio.TimerHandle | None = None

    async def start(self, address: str) -> None:
        """Announce the model, then the worker as ACTIVE under its gRPC ``address``. Raises InferBusError."""
        await self._fleet.start()
        await self._models.start()
        await self._announce_model()
        self.record.address = address
        await self.move(State.ACTIVE)

    async def move(self, to: State) -> None:
        """Change state and tell the fleet; if the bus is away, the next renewal tells it."""
        self.state = advance(self.state, to)
        self.record.state = WIRE_STATES[self.state]
        await self._renew()

    async def rest(self, resting: bool) -> None:
        """Take no new work for a while, or take some again; one that leaves meanwhile leaves."""
        if self.state is (State.ACTIVE if resting else State.RESTING):
            await self.move(State.RESTING if resting else State.ACTIVE)

    async def run(self) -> None:
        """Renew three times per time to live, and every quarter of a second while that fails."""
        renewed = True
        while True:
            await asyncio.sleep(self._ttl.total_seconds() / 3 if renewed else _RETRY_SECONDS)
            renewed = await self._renew()

    async def stop(self) -> None:
        """Leave the fleet. From then on there is no lease to lose."""
        if self._fence_timer is not None:
            self._fence_timer.cancel()
        try:
            await self._fleet.delete(self.record.worker)
        except InferBusError as error:
            log.warning("fleet entry not deleted, it will run out", extra={"error": str(error)})
        await self._fleet.stop()
        await self._models.stop()

    async def _renew(self) -> bool:
        loop = asyncio.get_running_loop()
        fence_at = loop.time() + self._ttl.total_seconds() * _FENCE_PART
        try:
            await self._fleet.put(self.record.worker, self.record, self._ttl)
        except InferBusError as error:
            log.warning("fleet lease not renewed", extra={"error": str(error)})
            return False
        if self._fence_timer is not None:
            self._fence_timer.cancel()
        self._fence_timer = loop.call_at(fence_at, self._fence)
        if not self._may_publish.is_set():
            log.warning("fleet lease renewed, publishing again")
            self._may_publish.set()
        return True

    def _fence(self) -> None:
        log.error("fleet lease lost, publishing nothing")
        self._may_publish.clear()

    async def _announce_model(self) -> None:
        """Once, and again when it is no longer what is known: the record stays when the last worker is gone."""
        known = self._models.get(self._model.name)
        self._model.create_time.CopyFrom(known.create_time if known else clock.timestamp(clock.now_us()))
        if known != self._model:
            await self._models.put(self._model.name, self._model)

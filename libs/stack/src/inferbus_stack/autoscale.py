"""The local actuator: as many worker processes as the scheduler says, on one machine what KEDA is in a cluster.

It follows WatchScaling. A worker too few is started in a free slot; of those too many the newest is drained and ends
when nothing runs on it any more, however long that takes: nothing is ever killed here. One that drains cannot be called
back, so if more are wanted meanwhile another slot is used.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.scheduler.v1.deployment_pb2 import (
    GetDeploymentRequest,
    SetDeploymentRequest,
    WatchScalingRequest,
)
from inferbus.scheduler.v1.deployment_pb2_grpc import DeploymentServiceStub
from inferbus.worker.v1.worker_pb2 import DrainRequest, GetStatusRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime.rpc import channel, error_of
from inferbus_runtime.tasks import cancel_all
from inferbus_runtime.tls import TlsFiles

from inferbus_stack.child import ChildError
from inferbus_stack.slots import Slots

_RETRY_SECONDS = 1.0
# After a worker that did not start, so that a fault does not start one after the other.
_PAUSE_SECONDS = 5.0
_DRAIN_SECONDS = 24 * 3600.0
Say = Callable[[str], None]


class Workers(Protocol):
    """Processes of this machine, by the name of the worker."""

    async def start_worker(self, name: str) -> None:
        """Returns when it is ready, and keeps it alive from then on. Raises ChildError."""

    def let_go(self, name: str) -> None:
        """It is not started again when it ends."""

    async def stop_worker(self, name: str) -> None:
        """Returns when it has ended."""


class Autoscaler:
    """``slots``: names of all workers that there may be, those of ``running`` being there. ``schedulers`` and
    ``workers_at``: gRPC addresses."""

    def __init__(
        self,
        *,
        workers: Workers,
        slots: Sequence[str],
        running: Sequence[str],
        schedulers: Sequence[str],
        workers_at: Mapping[str, str],
        token: str,
        identity: TlsFiles | None,
        say: Say,
    ) -> None:
        self._workers = workers
        self._slots = Slots(tuple(slots), running=tuple(running))
        self._schedulers = list(schedulers)
        self._workers_at = workers_at
        self._token = token
        self._identity = identity
        self._say = say
        self._wanted: int | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent = False

    async def run(self) -> None:
        """For ever."""
        try:
            model = await self._patiently(self._model)
            await self._patiently(lambda: self._deployment(model))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(model), name="follow what is decided")
                group.create_task(self._act(), name="start and drain workers")
        finally:
            await cancel_all(self._tasks)

    # --- what is wanted ----------------------------------------------------------------------------------------

    async def _model(self) -> str:
        """Which model the workers of this machine serve, as the first of them says."""
        name = self._slots.running[0]
        async with channel(self._workers_at[name], self._token, self._identity) as at:
            status = await WorkerServiceStub(at).GetStatus(GetStatusRequest())
        return str(status.record.model)

    async def _deployment(self, model: str) -> None:
        """If nobody has said how many workers there may be: from one to all slots."""
        async with self._scheduler() as stub:
            record = DeploymentRecord(model=model)
            try:
                record = (await stub.GetDeployment(GetDeploymentRequest(model=model))).deployment
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
            if record.max_replicas == 0:
                record.min_replicas, record.max_replicas = 1, len(self._slots.names)
                record = (await stub.SetDeployment(SetDeploymentRequest(deployment=record))).deployment
        self._say(f"{model} is scaled from {record.min_replicas} to {record.max_replicas} workers")
        if record.max_replicas > len(self._slots.names):
            self._say(f"this machine starts at most {len(self._slots.names)} of them (--workers)")

    async def _follow(self, model: str) -> None:
        while True:
            await self._patiently(lambda: self._watch(model))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _watch(self, model: str) -> None:
        """Until the scheduler leaves."""
        async with self._scheduler() as stub:
            async for answer in stub.WatchScaling(WatchScalingRequest()):
                self._silent = False
                for decision in answer.decisions:
                    if decision.model == model and decision.replicas != self._wanted:
                        self._wanted = decision.replicas
                        self._say(f"{model}: {decision.replicas} workers are wanted ({decision.reason})")
                        self._changed.set()

    @asynccontextmanager
    async def _scheduler(self) -> Any:
        async with channel(self._schedulers[0], self._token, self._identity) as at:
            yield DeploymentServiceStub(at)

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The answer, however long a scheduler or worker takes to be back; said once."""
        while True:
            try:
                answer = await ask()
            except grpc.aio.AioRpcError as error:
                if not self._silent:
                    self._silent = True
                    self._say(f"the number of workers stays as it is for now: {error_of(error)}")
                # The next one is asked: each of them says what is decided for all.
                self._schedulers.append(self._schedulers.pop(0))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._silent = False
                return answer

    # --- what is done ------------------------------------------------------------------------------------------

    async def _act(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._wanted is None:
                continue
            self._slots, starting, leaving = self._slots.towards(self._wanted)
            for name in starting:
                self._background(self._start(name))
            for name in leaving:
                self._background(self._leave(name))

    async def _start(self, name: str) -> None:
        try:
            await self._workers.start_worker(name)
        except (ChildError, OSError) as error:
            self._say(f"{error}\n{name} is tried again in {_PAUSE_SECONDS:.0f} s")
            self._workers.let_go(name)
            await self._workers.stop_worker(name)
            await asyncio.sleep(_PAUSE_SECONDS)
            self._slots = self._slots.gone(name)
        else:
            self._slots = self._slots.started(name)
        self._changed.set()

    async def _leave(self, name: str) -> None:
        self._say(f"{name} is drained")
        self._workers.let_go(name)
        async with channel(self._workers_at[name], self._token, self._identity) as at:
            try:
                await WorkerServiceStub(at).Drain(DrainRequest(), timeout=_DRAIN_SECONDS)
            except grpc.aio.AioRpcError as error:
                # It died meanwhile: what it had is moved to others, as after any death.
                self._say(f"{name} left by itself: {error_of(error).reason}")
        await self._workers.stop_worker(name)
        self._slots = self._slots.gone(name)
        self._say(f"{name} has left")
        self._changed.set()

    def _background(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

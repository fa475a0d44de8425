"""The local actuator: as many worker processes of each model and revision as the scheduler says, on one machine what
KEDA is in a cluster.

It follows WatchScaling. A worker too few is started in a free slot; of those too many the newest is drained and ends
when nothing runs on it any more, however long that takes: nothing is ever killed here. One that drains cannot be called
back, so if more are wanted meanwhile another slot is used. What does not start is tried again ever more seldom.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
from inferbus.bus.v1.registry_pb2 import DeploymentRecord, WorkerRecord
from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus.scheduler.v1.deployment_pb2 import (
    GetDeploymentRequest,
    SetDeploymentRequest,
    WatchScalingRequest,
)
from inferbus.scheduler.v1.deployment_pb2_grpc import DeploymentServiceStub
from inferbus.worker.v1.worker_pb2 import DrainRequest, GetStatusRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime import clock
from inferbus_runtime.rpc import channel, error_of
from inferbus_runtime.tasks import cancel_all
from inferbus_runtime.tls import TlsFiles

from inferbus_stack.child import ChildError
from inferbus_stack.revisions import settings_of, stable
from inferbus_stack.slots import Slot, Slots, Unit
from inferbus_stack.wanted import BY_REVISION, Wanted

_RETRY_SECONDS = 1.0
# After a worker that did not start, twice as long each time, so that a fault does not start one after the other.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
_DRAIN_SECONDS = 24 * 3600.0
Say = Callable[[str], None]


class Workers(Protocol):
    """Processes of this machine, by the name of the worker."""

    async def start_worker(self, name: str, settings: Mapping[str, str] | None) -> None:
        """Returns when it is ready, and keeps it alive from then on. ``settings``: variables of a registered revision;
        None: the stack's own model. Raises ChildError."""

    def let_go(self, name: str) -> None:
        """It is not started again when it ends."""

    async def stop_worker(self, name: str) -> None:
        """Returns when it has ended."""


@dataclass(slots=True)
class _Fault:
    """Of one that did not start: how often, and when it is tried again (monotonic seconds)."""

    times: int
    again_at: float


class Autoscaler:
    """``slots``: names of all workers that there may be, those of ``running`` being there, with the stack's own model.
    ``revisions``: those that are registered. ``schedulers`` and ``workers_at``: gRPC addresses. ``scales``: the first
    model's workers, if it is to be scaled though nobody says so; 0: it is not."""

    def __init__(
        self,
        *,
        workers: Workers,
        slots: Sequence[str],
        running: Sequence[str],
        revisions: Callable[[], Mapping[str, RevisionRecord]],
        schedulers: Sequence[str],
        workers_at: Mapping[str, str],
        token: str,
        identity: TlsFiles | None,
        scales: int,
        say: Say,
    ) -> None:
        self._workers = workers
        self._slots = Slots(tuple(slots))
        self._running = tuple(running)
        self._revisions = revisions
        self._schedulers = list(schedulers)
        self._workers_at = workers_at
        self._token = token
        self._identity = identity
        self._scales = scales
        self._say = say
        self._model = ""
        self._wanted = Wanted()
        self._faults: dict[Unit, _Fault] = {}
        # What was said of those that cannot be started, so that it is said once.
        self._said: dict[Unit, str] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent = False

    async def run(self) -> None:
        """For ever."""
        try:
            for name in self._running:
                record = await self._patiently(partial(self._record, name))
                self._model = self._model or record.model
                used = (*self._slots.used, Slot(name, record.model, record.revision, "running"))
                self._slots = Slots(self._slots.names, used)
            if self._scales:
                await self._patiently(self._deployment)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="follow what is decided")
                group.create_task(self._act(), name="start and drain workers")
        finally:
            await cancel_all(self._tasks)

    def revisions_changed(self) -> None:
        """What could not be started may be now."""
        self._changed.set()

    # --- what is wanted ----------------------------------------------------------------------------------------

    async def _record(self, name: str) -> WorkerRecord:
        """What a worker says of itself."""
        async with channel(self._workers_at[name], self._token, self._identity) as at:
            status = await WorkerServiceStub(at).GetStatus(GetStatusRequest())
        record: WorkerRecord = status.record
        return record

    async def _deployment(self) -> None:
        """If nobody has said how many workers there may be: from one to as many as there were to be."""
        model = self._model
        async with self._scheduler() as stub:
            record = DeploymentRecord(model=model)
            try:
                record = (await stub.GetDeployment(GetDeploymentRequest(model=model))).deployment
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
            if record.max_replicas == 0:
                record.min_replicas, record.max_replicas = 1, self._scales
                record = (await stub.SetDeployment(SetDeploymentRequest(deployment=record))).deployment
        self._say(f"{model} is scaled from {record.min_replicas} to {record.max_replicas} workers")
        if record.max_replicas > len(self._slots.names):
            self._say(f"this machine starts at most {len(self._slots.names)} of them (--workers, --slots)")

    async def _follow(self) -> None:
        while True:
            await self._patiently(self._watch)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _watch(self) -> None:
        """Until the scheduler leaves."""
        async with self._scheduler() as stub:
            async for answer in stub.WatchScaling(WatchScalingRequest()):
                self._silent = False
                for decision in self._wanted.note(answer.decisions):
                    if decision.reason != BY_REVISION or decision.revision:
                        what = _named((decision.model, decision.revision))
                        self._say(f"{what}: {decision.replicas} workers are wanted ({decision.reason})")
                    # Whoever asks for it anew may have put right what was wrong.
                    self._faults.pop((decision.model, decision.revision), None)
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
            now = clock.monotonic()
            wanted = self._wanted.units()
            held_back = {unit for unit, fault in self._faults.items() if fault.again_at > now}
            held_back |= {unit for unit, count in wanted.items() if count and not self._can_start(unit)}
            step = self._slots.towards(wanted, held_back)
            self._slots = step.slots
            for unit in step.lacking:
                self._say_once(unit, f"{_named(unit)}: there is no slot left for one more worker (--slots)")
            for slot in step.starting:
                self._background(self._start(slot))
            for name in step.leaving:
                self._background(self._leave(name))

    def _can_start(self, unit: Unit) -> bool:
        """The stack's own model needs no registered revision, nor one of it that nobody has registered."""
        model, revision = unit
        if model == self._model or self._record_of(unit) is not None:
            return True
        if any(one.is_of(unit) for one in self._slots.used):
            return True
        which = f"revision {revision} of it" if revision else "stable revision of it"
        self._say_once(unit, f"{model} cannot be started here: no {which} is registered")
        return False

    def _record_of(self, unit: Unit) -> RevisionRecord | None:
        model, revision = unit
        records = self._revisions()
        return records.get(f"{model}/{revision}") if revision else stable(records.values(), model)

    async def _start(self, slot: Slot) -> None:
        unit, record = (slot.model, slot.revision), self._record_of((slot.model, slot.revision))
        try:
            await self._workers.start_worker(slot.name, settings_of(record) if record is not None else None)
            async with asyncio.timeout(_PAUSE_SECONDS):
                served = await self._record(slot.name)
        except (ChildError, OSError, grpc.aio.AioRpcError, TimeoutError) as error:
            await self._failed(slot, str(error))
            return
        self._slots = self._slots.started(slot.name, served.revision)
        if served.model != slot.model or (slot.revision and served.revision != slot.revision):
            # Only the stack's own model comes here: what it is now started with is another revision than that one.
            self._slots = self._slots.leave(slot.name)
            self._put_off(unit, f"{_named(unit)} cannot be started: it is {served.model} {served.revision} here now")
            await self._leave(slot.name)
            return
        self._faults.pop(unit, None)
        self._said.pop(unit, None)
        self._changed.set()

    async def _failed(self, slot: Slot, why: str) -> None:
        self._workers.let_go(slot.name)
        await self._workers.stop_worker(slot.name)
        self._slots = self._slots.gone(slot.name)
        self._put_off((slot.model, slot.revision), why)
        self._changed.set()

    def _put_off(self, unit: Unit, why: str) -> None:
        """It is tried again ever more seldom; the whole story is told once."""
        times = self._faults[unit].times + 1 if unit in self._faults else 1
        pause = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2.0 ** (times - 1))
        self._faults[unit] = _Fault(times, clock.monotonic() + pause)
        again = f"{_named(unit)} is tried again in {pause:.0f} s"
        self._say(f"{why}\n{again}" if times == 1 else f"{_named(unit)} did not start for the {times}. time; {again}")
        asyncio.get_running_loop().call_later(pause, self._changed.set)

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

    def _say_once(self, unit: Unit, text: str) -> None:
        if self._said.get(unit) != text:
            self._said[unit] = text
            self._say(text)

    def _background(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _named(unit: Unit) -> str:
    return " ".join(filter(None, unit))

"""The calls that a model of tensors on Triton is at: each one RPC, and its answer in parts.

What runs when the model dies ends as unavailable, and is not made again by us: it may be what the model died of, and
nothing of it was delivered, so that its caller may ask again. What had to wait is the worker's to submit again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import fault_of
from inferbus_worker.engine import (
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Infer,
    Output,
    Step,
)
from inferbus_worker.engines.runs import Runs
from inferbus_worker.engines.triton_health import Health, HealthLimits, described
from inferbus_worker.engines.triton_tensors import TensorService

log = logging.getLogger(__name__)

CAPABILITIES = ("inference",)
# Of outputs in a step, which is also the largest part.
STEP_BYTES = 1 << 19
# While more waits to be taken, no further call begins.
_BUFFERED_BYTES = 16 << 20
# What running calls may answer, all at their largest, counts with what waits: a call that would pass this waits itself.
_ANSWERING_BYTES = 512 << 20
# Part of the time after which the worker takes the whole engine for dead, and makes all that it was at again.
_PATIENCE = 0.9


@dataclass(slots=True, eq=False)
class _Call:
    """``sent_at``: monotonic seconds."""

    key: bytes
    request: Any
    task: asyncio.Task[None] | None = None
    sent_at: float = 0.0


@dataclass(slots=True)
class _Answer:
    """``at``: bytes of it that were taken, in ``parts`` parts."""

    data: bytes
    at: int = 0
    parts: int = 0


class Calls:
    """From the engine's start to its stop; another start makes another one."""

    def __init__(self, service: TensorService, capacity: int, limits: HealthLimits) -> None:
        self._service = service
        self._runs: Runs[_Call] = Runs(capacity)
        self._answers: dict[bytes, _Answer] = {}
        self._ended: list[Finished] = []
        self._buffered = 0
        self._ready = asyncio.Event()
        self._stopped = False
        self._death = ""
        self._patience = limits.stall * _PATIENCE
        # Each call has a time of its own, so that there is none to be found that stands still.
        self._health = Health(service.probe, lambda: bool(self._runs.running), lambda before: None, limits)
        self._answered_at = self._health.moved()
        self._watching = asyncio.create_task(self._watch(), name="engine-watch")

    @property
    def running(self) -> int:
        return len(self._runs.running)

    @property
    def waiting(self) -> int:
        return len(self._runs.waiting)

    def info(self, model: str) -> EngineInfo:
        """What a worker says of it, as the public ``model``."""
        return EngineInfo(
            engine="triton",
            model=model,
            revision=self._service.revision,
            capacity=self._runs.capacity,
            context_length=0,
            capabilities=CAPABILITIES,
            inference_metadata=self._service.tensors.metadata,
        )

    def submit(self, generation: Generation) -> None:
        try:
            self._runs.waiting.append(_Call(generation.key, self._request_of(generation)))
        except InferBusError as error:
            self._finish(generation.key, Finish.ERROR, error)
        self._admit()

    def _request_of(self, generation: Generation) -> Any:
        """Raises InferBusError for what the server need not be asked."""
        fault = fault_of(generation, CAPABILITIES)
        if fault is not None:
            raise fault
        assert isinstance(generation.input, Infer)  # noqa: S101  (fault_of refuses anything else)
        return self._service.request_of(generation.input.request)

    def close(self, key: bytes) -> None:
        """Also of one whose answer has not been taken to its end: the rest of it is dropped."""
        if (call := self._runs.take(key)) is not None:
            self._end(call, Finish.CANCELLED)
        elif (answer := self._answers.pop(key, None)) is not None:
            self._buffered -= len(answer.data) - answer.at
            self._finish(key, Finish.CANCELLED)

    async def steps(self) -> AsyncIterator[Step]:
        while not self._stopped:
            await self._ready.wait()
            self._ready.clear()
            while self._ended or self._answers:
                yield self._step()
                self._admit()
            if self._death and not self._stopped:
                raise EngineDiedError(self._death)

    async def stop(self) -> None:
        self._stopped = True
        self._ready.set()  # whoever waits for a step sees that there is no server any more
        tasks = [*self._runs.tasks(), self._watching]
        self._answers, self._ended = {}, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._health.stop()
        await self._service.stop()

    # --- one call ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while not self._death and self._has_room() and (call := self._runs.next()) is not None:
            if not self._runs.running:
                self._health.moved()
            call.sent_at = clock.monotonic()
            self._runs.begin(call, self._made(call))

    def _has_room(self) -> bool:
        """For one more answer."""
        answers = (len(self._runs.running) + 1) * self._service.settings.max_answer_bytes
        return self._buffered < _BUFFERED_BYTES and self._buffered + answers <= _ANSWERING_BYTES

    async def _made(self, call: _Call) -> None:
        try:
            async with asyncio.timeout(self._patience):
                answer = await self._service.infer(call.request)
        except TimeoutError:
            self._overdue(call)
        except InferBusError as error:
            self._answered_at = self._health.moved()
            self._end(call, Finish.ERROR, error)
        except grpc.RpcError as error:
            await self._suspected(call, described(error))
        except Exception as error:  # an answer of the server that we do not understand ends this call only
            log.exception("a call failed")
            self._end(call, Finish.ERROR, engine_failed(repr(error)))
        else:
            self._answered_at = self._health.moved()
            self._runs.leave(call)
            self._answers[call.key] = _Answer(answer)
            self._buffered += len(answer)
            self._ready.set()
            self._admit()

    async def _suspected(self, call: _Call, text: str) -> None:
        if await self._health.check():
            self._end(call, Finish.ERROR, engine_failed(text))
        else:
            self._died(self._health.death)

    def _overdue(self, call: _Call) -> None:
        """It alone, if others have had an answer meanwhile; else the model stands still."""
        why = f"no answer for {self._patience:g} s, though one was owed"
        if self._answered_at > call.sent_at:
            self._end(call, Finish.ERROR, engine_failed(why))
        else:
            self._died(why)

    def _end(self, call: _Call, reason: Finish, error: InferBusError | None = None) -> None:
        """The end of a call without an answer. Its task is cancelled, which is the server's cancel."""
        self._runs.leave(call)
        self._finish(call.key, reason, error)
        self._admit()

    def _finish(self, key: bytes, reason: Finish, error: InferBusError | None = None) -> None:
        self._ended.append(Finished(key, reason, 0, error=error))
        self._ready.set()

    def _step(self) -> Step:
        step = Step(clock.now_us(), finished=self._ended)
        self._ended = []
        room = STEP_BYTES
        while self._answers and room > 0:
            key, answer = next(iter(self._answers.items()))
            part = answer.data[answer.at : answer.at + room]
            step.outputs.append(Output(key, answer.parts, part))
            answer.at, answer.parts = answer.at + len(part), answer.parts + 1
            room -= len(part)
            self._buffered -= len(part)
            if answer.at == len(answer.data):
                del self._answers[key]
                step.finished.append(Finished(key, Finish.STOP, 0))
        return step

    # --- its health -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._health.run()
        self._died(self._health.death)

    def _died(self, why: str) -> None:
        self._death = self._death or why
        error = engine_failed(why)
        for call in list(self._runs.running.values()):
            self._end(call, Finish.ERROR, error)
        self._ready.set()

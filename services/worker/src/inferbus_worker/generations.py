"""The running set: what the engine is generating, and the loop that turns its steps into frames."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.frames import FramePublisher
from inferbus_contracts.ids import uuid_text
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.columns import StepFrames
from inferbus_worker.core.ends import deadline_exceeded, engine_failed, is_failure
from inferbus_worker.core.energy import EnergyLedger, input_weight, read_weight
from inferbus_worker.core.load import LoadCount
from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.core.running import Running
from inferbus_worker.core.steps import without
from inferbus_worker.core.wire import generation_of
from inferbus_worker.direct import Direct
from inferbus_worker.engine import Engine, EngineDiedError, EngineInfo, Finish, Finished, Step
from inferbus_worker.fence import Fence

log = logging.getLogger(__name__)

OnEnd = Callable[[Running, FinishReason.ValueType, int], None]
"""(who ended, how, sequence of the frame that says so)."""

_START_RETRY_SECONDS = 0.5
_SWEEP_SECONDS = 0.25
# Longer than any engine gives itself by default.
_STOP_SECONDS = 60.0


class Generations:
    """Owns the engine from its first start on.

    A dead engine is started again and given what was running, from the tokens that are on the log: same worker, same
    order of frames, so the attempt stays the same. More deaths than ``limit`` allows end :meth:`run` with an exception,
    and nothing else: ``failed`` is set, and what runs is for another worker.

    ``steps``: how many there were that the engine itself made; ``starts``: of the engine, the first included. ``up`` is
    cleared while it is dead. While ``fence`` is shut nothing is published, and no step taken.
    """

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        frames: FramePublisher,
        direct: Direct,
        limit: RestartLimit,
        fence: Fence,
        energy: EnergyLedger | None = None,
    ) -> None:
        self.running: dict[bytes, Running] = {}
        self.load = LoadCount()
        self.failed = False
        self.restarts: list[float] = []
        self.output_tokens = 0
        self.steps = 0
        self.starts = 1
        self.up = asyncio.Event()
        self.up.set()
        self._engine = engine
        self._info = info
        self._frames = frames
        self._direct = direct
        self._limit = limit
        self._fence = fence
        self._energy = energy
        # Dropped, and not yet ended by the engine, which knows one generation by a name. What is there: the next
        # attempt, which waits for that.
        self._leaving: dict[bytes, Running | None] = {}
        self._listening = False
        self._replaced: _Replaced | None = None
        self._stopping = asyncio.Lock()
        self._on_begin: list[Callable[[], None]] = []
        self._on_end: list[OnEnd] = []
        self._on_failed: list[Callable[[], None]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._tokens_metric = metrics.OUTPUT_TOKENS.labels(info.model)

    def on_begin(self, callback: Callable[[], None]) -> None:
        self._on_begin.append(callback)

    def on_end(self, callback: OnEnd) -> None:
        self._on_end.append(callback)

    def on_failed(self, callback: Callable[[], None]) -> None:
        """Called when some have failed whose end is not told: another revision is to do them."""
        self._on_failed.append(callback)

    def add(self, running: Running) -> None:
        """Begin, or go on after ``running.ids``. A resumed attempt names its index on the log at once."""
        self._enter(running)
        self._fence.when_open(partial(self._begin, running))

    def refuse(self, running: Running, reason: Finish, error: InferBusError | None = None) -> None:
        """End it without the engine."""
        self._enter(running)
        self._fence.when_open(partial(self._refuse, running, Finished(running.key, reason, 0, error=error)))

    def close(self, key: bytes, verdict: InferBusError | None = None) -> None:
        """The one cancel: client gone (no verdict), deadline. Its end follows as a step; unknown: nothing."""
        running = self.running.get(key)
        if running is None or running.closing:
            return
        running.closing, running.verdict = True, verdict
        if self.up.is_set():
            self._engine.close(key)
        else:
            self.refuse(running, Finish.CANCELLED)

    def drop(self, key: bytes) -> None:
        """It is another worker's now: it ends here, and nothing more is published of it. Unknown: nothing."""
        running = self.running.pop(key, None)
        if running is None:
            return
        if key in self._leaving:
            self._leaving[key] = None
        elif self.up.is_set() and running.started_us:
            self._leaving[key] = None
            self._engine.close(key)
        self.load.ended(running, None)
        if self._energy is not None:
            self._energy.drop((key,), clock.monotonic())
        if not self.running:
            self._idle.set()

    async def idle(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    @property
    def owed(self) -> bool:
        """The engine is up and asked for the next step, and something waits for it."""
        return self._listening and self.up.is_set() and bool(self.running or self._direct.open)

    async def run(self) -> None:
        """Steps into frames, for as long as the engine lives. Raises InferBusError when it died too often."""
        try:
            await self._run()
        except Exception:
            self.failed = True
            raise

    async def _run(self) -> None:
        while True:
            try:
                self._listening = True
                async for step in self._engine.steps():
                    self._listening = False
                    self.steps += says_life(step)
                    await self._fence.wait()
                    self._take(step)
                    await self._frames.room()
                    self._listening = True
                if self._replaced is None:
                    return
                why, fault = self._replaced.why, self._replaced.fault
            except EngineDiedError as error:
                why, fault = str(error), True
            self._replaced = None
            await self._restart(why, fault)

    async def replace_engine(self, why: str, *, fault: bool) -> None:
        """Has :meth:`run` start the engine again, as if it had died; nothing happens if it is dead. ``fault``: it
        counts as a death."""
        if not self.up.is_set():
            return
        self.up.clear()
        self._replaced = _Replaced(why, fault)
        await self._stop()  # which ends the steps

    async def run_deadlines(self) -> None:
        """Closes what has expired, within a quarter of a second."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = clock.now_us()
            for running in list(self.running.values()):
                if running.expire_us and now > running.expire_us:
                    self.close(running.key, deadline_exceeded())

    def _enter(self, running: Running) -> None:
        if self.running.get(running.key) is not running:
            self.running[running.key] = running
            self.load.begun(running)
            for callback in self._on_begin:
                callback()
        self._idle.clear()

    def _begin(self, running: Running) -> None:
        if self.running.get(running.key) is not running:
            return  # dropped while the fence was shut
        if running.closing:
            self.refuse(running, Finish.CANCELLED)
            return
        if running.attempt > 1:
            opening = StepFrames(clock.now_us())
            opening.open_attempt(running)
            self._publish(opening)
        if self.up.is_set():
            self._submit(running)

    def _refuse(self, running: Running, finished: Finished) -> None:
        if self.running.get(running.key) is running:
            self._apply(Step(clock.now_us(), finished=[finished]))

    def _submit(self, running: Running) -> None:
        if running.key in self._leaving:
            self._leaving[running.key] = running
            return
        running.started_us = running.started_us or clock.now_us()
        running.first_started_us = running.first_started_us or (running.started_us if running.attempt == 1 else 0)
        if self._energy is not None:
            self._energy.begin(running.key, input_weight(running.request, len(running.ids)))
        try:
            self._engine.submit(generation_of(running))
        except InferBusError as error:
            self.refuse(running, Finish.ERROR, error)
        except Exception as error:  # whatever it is, it is about this request: left alone it would never end
            log.exception("the engine did not take a request")
            self.refuse(running, Finish.ERROR, engine_failed(repr(error)))

    def _take(self, step: Step) -> None:
        """A step of the engine's: what it says of those that were dropped is nobody's."""
        if not self._leaving:
            self._apply(step)
            return
        left = [one.key for one in step.finished if one.key in self._leaving]
        self._apply(without(step, self._leaving))
        for key in left:
            following = self._leaving.pop(key)
            if following is None or self.running.get(key) is not following:
                continue
            if following.closing:
                self.refuse(following, Finish.CANCELLED)
            else:
                self._submit(following)

    def _apply(self, step: Step) -> None:
        frames = StepFrames(step.time_us)
        total = frames.add_deltas(step, self.running)
        joules = self._joules(step)
        ended: list[tuple[Running, FinishReason.ValueType]] = []
        failed = False
        for finished in step.finished:
            running = self.running.pop(finished.key, None)
            if running is not None and fails_over(running, finished):
                failed = True
                self._fail(running, finished.error)
            elif running is not None:
                close = frames.add_close(running, finished, self._info.engine, joules.get(finished.key))
                ended.append((running, close.finish_reason))
                self.load.ended(running, close.usage.input_tokens)
                self._count_end(close)
        sequence = self._publish(frames)
        self.output_tokens += total
        self._tokens_metric.inc(total)
        for running, reason in ended:
            for callback in self._on_end:
                callback(running, reason, sequence)
        if failed:
            for told in self._on_failed:
                told()
        if (ended or failed) and not self.running:
            self._idle.set()
        self._direct.take(step)

    def _fail(self, running: Running, error: InferBusError | None) -> None:
        self.load.failed(running)
        metrics.GENERATIONS.labels(self._info.model, "failed_over").inc()
        log.error(
            "failed, and another revision is to do it",
            extra={"request_id": uuid_text(running.key), "tokens": len(running.ids), "error": str(error)},
        )

    def _joules(self, step: Step) -> dict[bytes, float]:
        """Of those that end with the step, as far as known."""
        if self._energy is None:
            return {}
        self._energy.got(step.keys, step.counts)
        read = {one.key: read_weight(one) for one in step.finished}
        return self._energy.end(read, clock.monotonic()) if read else {}

    def _publish(self, frames: StepFrames) -> int:
        """The sequence of the last frame; it is stored after all before it."""
        sequence = 0
        for frame in frames.frames():
            sequence = self._frames.publish(frame)
        return sequence

    def _count_end(self, close: Close) -> None:
        name = FinishReason.Name(close.finish_reason).removeprefix("FINISH_REASON_").lower()
        metrics.GENERATIONS.labels(self._info.model, name).inc()
        metrics.INPUT_TOKENS.labels(self._info.model).inc(close.usage.input_tokens)
        metrics.CACHED_INPUT_TOKENS.labels(self._info.model).inc(close.usage.cached_input_tokens)

    async def _restart(self, why: str, fault: bool) -> None:
        self.up.clear()
        log.error("engine died" if fault else "engine is replaced", extra={"error": why, "running": len(self.running)})
        self._direct.fail(engine_failed(why))
        while not await self._start_again(fault):
            await asyncio.sleep(_START_RETRY_SECONDS)
            fault = True
        await self._fence.wait()
        self._leaving.clear()
        self.starts += 1
        self.up.set()
        for running in list(self.running.values()):
            if running.closing:  # it died with the answer to our close
                self.refuse(running, Finish.CANCELLED)
            else:
                self._submit(running)

    async def _start_again(self, fault: bool) -> bool:
        """False if the engine did not start. Raises InferBusError past the limit."""
        now = clock.monotonic()
        if fault and not self._limit.allows(self.restarts, now):
            raise engine_failed("it died too often")
        if fault:
            self.restarts.append(now)
        metrics.ENGINE_RESTARTS.labels(self._info.engine).inc()
        await self._stop()
        try:
            await self._engine.start()
        except (InferBusError, OSError) as error:
            log.error("engine did not start", extra={"error": str(error)})
            return False
        log.warning("engine started again", extra={"running": len(self.running)})
        return True

    async def _stop(self) -> None:
        """One at a time: who starts the engine again must not do so while an earlier stop still frees things. Raises
        InferBusError if it does not stop: then only the end of this process does it."""
        async with self._stopping:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._engine.stop()
            except TimeoutError as error:
                self.failed = True
                raise engine_failed(f"it did not stop in {_STOP_SECONDS:.0f} s") from error


def fails_over(running: Running, finished: Finished) -> bool:
    """Whether its failure is not the caller's business, but a reason to try another revision."""
    return running.fails_over and not running.closing and finished.reason is Finish.ERROR and is_failure(finished.error)


def says_life(step: Step) -> bool:
    """Whether the engine itself moved: what was closed or refused ends without it."""
    if step.keys or step.embeddings or step.outputs or not step.finished:
        return True
    return any(one.reason in (Finish.STOP, Finish.LENGTH) for one in step.finished)


@dataclass(frozen=True, slots=True)
class _Replaced:
    why: str
    fault: bool

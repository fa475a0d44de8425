"""Finds an engine that stands still or leaks, whichever it is, and has it started again.

One that stands still counts as dead. One that leaks is given time first: the fleet sends nothing more here, what runs
may end, then it is given to other workers, and whatever is still here goes on in the new one from its tokens so far.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inferbus_runtime import clock

from inferbus_worker.core.restarts import RestartLimit
from inferbus_worker.core.silence import Silence
from inferbus_worker.engine_memory import engine_memory
from inferbus_worker.generations import Generations

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
# After the grace: so long it may take until what runs has been given to others.
_HAND_OVER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """``bytes`` that the engine's processes may hold. ``grace``: seconds that what runs then has to end. ``limit``: of
    restarts for this; beyond it the engine is left as it is, so that no bound set too low becomes a row of starts."""

    bytes: int
    grace: float
    limit: RestartLimit


class EngineWatch:
    """``stall``: seconds. ``rest`` tells the fleet to send no more work here, and to give what runs after so many
    seconds to others, or (None) to send some again."""

    def __init__(
        self,
        generations: Generations,
        stall: float,
        bound: MemoryBound | None,
        rest: Callable[[float | None], Awaitable[None]],
    ) -> None:
        self.restarts: list[float] = []
        """Monotonic times of those for memory."""
        self._generations = generations
        self._stall = stall
        self._bound = bound
        self._rest = rest
        self._said = -1  # of which start it was said that its memory is left alone

    async def run(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._watch_steps(), name="engine-stall")
            if self._bound is not None:
                both.create_task(self._watch_memory(self._bound), name="engine-memory")

    async def _watch_steps(self) -> None:
        tick = min(_TICK_SECONDS, self._stall / 4)
        silence, before = Silence(self._stall, tick), clock.monotonic()
        while True:
            await asyncio.sleep(tick)
            now = clock.monotonic()
            if silence.too_long(now - before, self._generations.steps, owed=self._generations.owed):
                why = f"it stands still: tokens are owed, and for {silence.seconds:.1f} s there was no step"
                await self._generations.replace_engine(why, fault=True)
            before = now

    async def _watch_memory(self, bound: MemoryBound) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self._generations.up.wait()
            start = self._generations.starts
            used = await asyncio.to_thread(engine_memory)
            if used is None or used <= bound.bytes or start != self._generations.starts or start == self._said:
                continue
            if not bound.limit.allows(self.restarts, clock.monotonic()):
                self._said = start
                log.error(
                    "the engine holds more memory than ENGINE_MAX_MEMORY again; it is left as it is",
                    extra={"bytes": used, "bound": bound.bytes, "restarts": len(self.restarts)},
                )
                continue
            await self._relieve(bound, used)

    async def _relieve(self, bound: MemoryBound, used: int) -> None:
        generations, start = self._generations, self._generations.starts
        running = len(generations.running)
        log.warning(
            "the engine holds more memory than ENGINE_MAX_MEMORY; it is started again when what runs has ended",
            extra={"bytes": used, "bound": bound.bytes, "running": running, "seconds": bound.grace},
        )
        self.restarts.append(clock.monotonic())
        await self._rest(bound.grace)
        try:
            async with asyncio.timeout(bound.grace + _HAND_OVER_SECONDS):
                await generations.idle()
        except TimeoutError:
            log.warning("what runs goes on in a new engine", extra={"running": len(generations.running)})
        if start == generations.starts:  # else it died meanwhile
            await generations.replace_engine(f"it held {used} bytes", fault=False)
        await generations.up.wait()
        fresh = await asyncio.to_thread(engine_memory)
        if fresh is not None and fresh > bound.bytes:
            self._said = generations.starts
            log.error(
                "the engine holds more memory than ENGINE_MAX_MEMORY as soon as it has started; it is left as it is",
                extra={"bytes": fresh, "bound": bound.bytes},
            )
        await self._rest(None)

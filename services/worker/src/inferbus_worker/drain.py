"""Leaving in good order."""

import asyncio
import logging

from inferbus_runtime import clock

from inferbus_worker.core.lifecycle import State
from inferbus_worker.generations import Generations
from inferbus_worker.intake import Intake
from inferbus_worker.registration import Registration
from inferbus_worker.work_source import WorkSource

log = logging.getLogger(__name__)
# What schedulers placed before they heard of it is still taken, if others run here anyway.
_LINGER_SECONDS = 1.0


class Drain:
    """Take nothing new, finish or hand over what runs, then leave. However often it is asked for, it happens once, with
    the shortest grace. What runs is never ended for it: whatever is left is another worker's."""

    def __init__(
        self, registration: Registration, source: WorkSource, generations: Generations, intake: Intake
    ) -> None:
        self._registration = registration
        self._source = source
        self._generations = generations
        self._intake = intake
        self._task: asyncio.Task[None] | None = None
        # It was not finished: what is left is left, and the fleet is not told anything more.
        self._gave_up = False

    async def begin(self, grace: float | None = None) -> None:
        """Returns when the fleet was told. What runs after ``grace`` seconds is given to other workers, by the
        scheduler; None: all of it may end here."""
        await self._registration.drain(None if grace is None else clock.now_us() + round(grace * 1e6))
        if self._task is None:
            self._task = asyncio.create_task(self._finish(), name="drain")

    async def finish(self, grace: float | None = None) -> None:
        """Returns when the last generation has ended and is stored, or is another worker's. A caller that leaves early
        does not stop it."""
        await self.begin(grace)
        if self._task is not None:
            await asyncio.shield(self._task)

    async def leave(self, grace: float, deadline: float) -> None:
        """:meth:`finish`, but after ``deadline`` seconds, or at once if the engine has failed, whatever is left is left
        as it is: when this worker has left the fleet, a scheduler gives it to others."""
        if self._generations.failed:  # not DRAINING: of those that it dies of somebody keeps count
            await self._let_go()
            return
        try:
            async with asyncio.timeout(deadline):
                await self.finish(grace)
        except TimeoutError:
            log.warning("drain deadline", extra={"running": len(self._generations.running)})
            await self._let_go()

    async def _let_go(self) -> None:
        self._gave_up = True
        await self._source.stop()
        self._intake.let_go()

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._generations.idle()
        except TimeoutError:
            pass
        await self._source.stop()
        await self._generations.idle()
        await self._intake.settled()
        if self._gave_up:
            return  # its entry is being deleted, as it is
        # What came too late for this worker need not wait here.
        await self._registration.move(State.DRAINED, clock.now_us())

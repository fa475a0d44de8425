"""Leaving in good order."""

import asyncio
import logging

from inferbus_bus.workqueue import WorkQueue

from inferbus_worker.core.ends import worker_draining
from inferbus_worker.core.lifecycle import State
from inferbus_worker.generations import Generations
from inferbus_worker.intake import Intake
from inferbus_worker.registration import Registration

log = logging.getLogger(__name__)


class Drain:
    """Finish, then leave. However often it is asked for, it happens once."""

    def __init__(self, registration: Registration, queue: WorkQueue, generations: Generations, intake: Intake) -> None:
        self._registration = registration
        self._queue = queue
        self._generations = generations
        self._intake = intake
        self._task: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Takes no new work; returns when the last generation has ended and is stored. A caller that leaves early
        does not stop it."""
        if self._task is None:
            self._task = asyncio.create_task(self._finish(), name="drain")
        await asyncio.shield(self._task)

    async def leave(self, deadline_seconds: float) -> None:
        """:meth:`finish`; what still runs after ``deadline_seconds`` is closed as an error that may be retried."""
        try:
            async with asyncio.timeout(deadline_seconds):
                await self.finish()
        except TimeoutError:
            running = list(self._generations.running)
            log.warning("drain deadline", extra={"running": len(running)})
            for key in running:
                self._generations.close(key, worker_draining())
            await self.finish()

    async def _finish(self) -> None:
        await self._registration.move(State.DRAINING)
        await self._queue.stop()
        await self._generations.idle()
        await self._intake.settled()
        await self._registration.move(State.DRAINED)

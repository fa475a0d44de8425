"""What a scheduler before this one has ended: it may have been killed before it acknowledged that.

Its requests come again then, and would be ended, or even placed, once more. What it has ended is on the log, under its
name.
"""

import asyncio
from collections.abc import Callable

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_contracts.subjects import subject_token
from inferbus_runtime import clock

from inferbus_scheduler.held import names_of

# What was not acknowledged for longer than that was not ended either, but for an outage in which nothing goes on.
_SECONDS = 600.0
# Shards are gained several at a time, and mostly of the same holder.
_FRESH_SECONDS = 1.0


class EndedBefore:
    """``told`` gets the names (:func:`name_of`) of what has ended."""

    def __init__(self, bus: Bus, told: Callable[[bytes], None]) -> None:
        self._log = FrameLog(bus)
        self._told = told
        self._read: dict[str, tuple[float, asyncio.Task[None]]] = {}

    async def look(self, scheduler: str) -> None:
        """Returns when all that ``scheduler`` has ended lately is told. Raises like :meth:`Bus.api`."""
        now = clock.monotonic()
        at, task = self._read.get(scheduler, (0.0, None))
        if task is None or now - at > _FRESH_SECONDS or task.cancelled():
            task = asyncio.create_task(self._all(scheduler), name=f"what {scheduler} ended")
            self._read = {name: each for name, each in self._read.items() if not each[1].done()}
            self._read[scheduler] = now, task
        await asyncio.shield(task)

    async def _all(self, scheduler: str) -> None:
        _, last = await self._log.bounds()
        since_us = clock.now_us() - int(_SECONDS * 1e6)
        subject = f"tok.*.{subject_token(scheduler)}"
        async for batch in self._log.read(1, last, subject=subject, since_us=since_us):
            for _, _, data in batch:
                frame = Frame.FromString(data)
                for close in frame.closes:
                    model = frame.contexts[close.context_index].model
                    for name in names_of(close.request_id, close.attempt, model):
                        self._told(name)

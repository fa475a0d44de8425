"""What happens when a shard of the models becomes ours, and when it ceases to be."""

import asyncio
from collections import defaultdict
from typing import Protocol

from inferbus_scheduler.intake import Intake


class Scan(Protocol):
    """Looks at what is placed already on workers of a shard."""

    async def scan(self, shard: int) -> None: ...


class Holding(Protocol):
    """Holds what came of a shard: in order it leaves it, at once it drops it."""

    async def leave(self, shard: int) -> None: ...

    def drop(self, shard: int) -> None: ...


class Settled(Protocol):
    """Finds what schedulers before this one have placed or ended of a shard."""

    async def look(self, shard: int) -> None: ...


class ShardWork:
    """For :class:`Shards`."""

    def __init__(self, *, intake: Intake, placed: Scan, settled: Settled, queued: Holding) -> None:
        self._intake = intake
        self._settled = settled
        self._placed = placed
        self._queued = queued
        self._closing: set[asyncio.Task[None]] = set()
        # What was lost may be gained again before it is closed.
        self._one_by_one: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def gained(self, shard: int) -> None:
        """What is placed is known, and what has ended, and then what waits comes. Raises what the broker says."""
        async with self._one_by_one[shard]:
            await self._placed.scan(shard)
            await self._settled.look(shard)
            await self._intake.open(shard)

    async def left(self, shard: int) -> None:
        async with self._one_by_one[shard]:
            await self._intake.stop(shard)
            await self._queued.leave(shard)
            await self._intake.close(shard)

    def lost(self, shard: int) -> None:
        task = asyncio.create_task(self._lost(shard), name=f"lost shard {shard}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _lost(self, shard: int) -> None:
        async with self._one_by_one[shard]:
            try:
                # First: what is given back must not come back here.
                await self._intake.stop(shard)
            finally:
                self._queued.drop(shard)
                await self._intake.close(shard)

"""What schedulers before this one have placed or ended: one may have been killed before it acknowledged that.

Its requests come again then, and would be ended while they run, or ended or placed once more. What is placed is on
WORK, and what a scheduler has ended is on the log, under its name. Both are read from where the oldest request that
waits was stored, the log from ten minutes back at most: nothing before that can come again, and where nothing waits
nothing is read. What was placed and has already come to its end is on WORK no more, and a broker that was killed, too,
has forgotten its message id: its worker's Close is on the log. All frames are many, so of these the last minute before
the newest one is read: acknowledgements are lost that were under way.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import Work
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_contracts.subjects import shard_requests, subject_token
from inferbus_runtime import clock

from inferbus_scheduler.placed import PlacedWork, stored

log = logging.getLogger(__name__)
# The broker stores requests, work and frames, maybe on three machines.
_SKEW_US = 2_000_000
# What was not acknowledged for longer than that was not ended either, but for an outage in which nothing goes on.
_ENDED_US = 600_000_000
# Ten microseconds a frame: 0.6 s where a thousand are stored each second.
_FINISHED_US = 60_000_000
# Frames that are read before others get a turn.
_FRAMES_AT_ONCE = 50


class SettledBefore:
    """``told`` gets requests, each with an attempt that is placed or ended. ``schedulers``: the names of all that may
    have ended something, this one included."""

    def __init__(
        self,
        bus: Bus,
        placed: PlacedWork,
        *,
        schedulers: Callable[[], Collection[str]],
        told: Callable[[bytes, int], None],
    ) -> None:
        self._bus = bus
        self._placed = placed
        self._log = FrameLog(bus)
        self._schedulers = schedulers
        self._told = told
        # Since when is to be read (Unix microseconds), by who asks: shards are gained several at a time.
        self._asked: dict[object, int] = {}
        self._reading = asyncio.Lock()

    async def look(self, shard: int) -> None:
        """Returns when all is told that may come again of ``shard``, which is ours by now, so that nobody else settles
        anything of it. Raises InferBusError UNAVAILABLE, StreamApiError."""
        waiting = await stored(self._bus, "REQUESTS", {"batch": 1, "seq": 1, "next_by_subj": shard_requests(shard)})
        if not waiting:
            return
        asker = object()
        self._asked[asker] = waiting[0].stored_us - _SKEW_US
        try:
            async with self._reading:
                if asker not in self._asked:
                    return  # it was read with another's
                asked = dict(self._asked)
                await self._read(min(asked.values()))
                for one in asked:
                    self._asked.pop(one, None)
        finally:
            self._asked.pop(asker, None)

    async def _read(self, since_us: int) -> None:
        _, last = await self._log.bounds()
        ended_since_us = max(since_us, clock.now_us() - _ENDED_US)
        for scheduler in self._schedulers():
            await self._read_log(f"tok.*.{subject_token(scheduler)}", last, ended_since_us)
        newest_us = min(clock.now_us(), await self._log.newest_us())
        await self._read_log("tok.*.*", last, max(ended_since_us, newest_us - _FINISHED_US))
        # Last, since who is told remembers the last ones for sure, and these may run.
        await self._read_work(since_us)

    async def _read_work(self, since_us: int) -> None:
        async for page in self._placed.since(since_us):
            for placed in page:
                try:
                    work = Work.FromString(placed.data)
                except DecodeError:
                    continue  # whoever moves it says so
                self._told(work.request.request_id, work.attempt or 1)
            await asyncio.sleep(0)

    async def _read_log(self, subject: str, last: int, since_us: int) -> None:
        async for batch in self._log.read(1, last, subject=subject, since_us=since_us):
            for number, (sequence, _, data) in enumerate(batch, 1):
                try:
                    frame = Frame.FromString(data)
                except DecodeError:
                    log.error("a frame cannot be read", extra={"sequence": sequence, "bytes": len(data)})
                    continue
                for close in frame.closes:
                    self._told(close.request_id, close.attempt or 1)
                if number % _FRAMES_AT_ONCE == 0:
                    await asyncio.sleep(0)

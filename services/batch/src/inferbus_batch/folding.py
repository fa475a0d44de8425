"""The frames of one shard's jobs, read from the log once for all jobs of it that run here."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.log import FrameLog, Stored
from inferbus_contracts.subjects import edge_tokens, job_edge

log = logging.getLogger(__name__)


class Reader(Protocol):
    """A job that is folded."""

    def take(self, sequence: int, frame: Frame) -> None:
        """One frame, in stream order. Never waits."""
        ...


class ShardLog:
    """Run it; jobs join and leave. ``on_frame``: gets each frame that comes while it runs, once."""

    def __init__(self, frames: FrameLog, shard: int, on_frame: Callable[[Frame], None]) -> None:
        self._log = frames
        self._subject = edge_tokens(job_edge(shard))
        self._on_frame = on_frame
        self._position = 0
        self._begun = asyncio.Event()
        # Up to where each has all already: it joined while this was behind.
        self._readers: dict[Reader, int] = {}

    async def run(self) -> None:
        """For ever."""
        _, self._position = await self._log.bounds()
        self._begun.set()
        async with aclosing(self._log.read(self._position + 1, subject=self._subject)) as batches:
            async for batch in batches:
                for stored in batch:
                    self._position = stored[0]
                    frame = _read(stored)
                    if frame is None:
                        continue
                    self._on_frame(frame)
                    for reader, behind in list(self._readers.items()):
                        if stored[0] > behind:
                            reader.take(stored[0], frame)

    async def join(self, reader: Reader, first: int) -> int:
        """All from stream sequence ``first`` on, first what is stored already. Returns when that has been given, and
        up to where it went. Raises like :meth:`FrameLog.bounds`."""
        await self._begun.wait()
        _, last = await self._log.bounds()
        last = max(last, self._position)
        while True:
            async with aclosing(self._log.read(first, last, subject=self._subject)) as batches:
                async for batch in batches:
                    for stored in batch:
                        frame = _read(stored)
                        if frame is not None:
                            reader.take(stored[0], frame)
            if self._position <= last:
                self._readers[reader] = last
                return last
            first, last = last + 1, self._position

    def leave(self, reader: Reader) -> None:
        self._readers.pop(reader, None)

    async def end(self) -> int:
        """The last stream sequence that is stored. Raises like :meth:`FrameLog.bounds`."""
        return (await self._log.bounds())[1]

    @property
    def position(self) -> int:
        """All frames up to here were given."""
        return self._position

    async def has_more(self, after: int) -> bool:
        """Whether the log has frames behind ``after``: then what was given is not all yet."""
        _, last = await self._log.bounds()
        if last <= after:
            return False
        async with aclosing(self._log.read(after + 1, last, subject=self._subject)) as batches:
            async for _ in batches:
                return True
        return False


def _read(stored: Stored) -> Frame | None:
    try:
        return Frame.FromString(stored[2])
    except DecodeError:
        log.error("a frame cannot be read", extra={"sequence": stored[0], "bytes": len(stored[2])})
        return None

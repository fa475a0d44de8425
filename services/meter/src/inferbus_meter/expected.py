"""A range of TOKENS as an audit and a replay read it: part by part, of which rows are made and compared.

Memory: one part.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from inferbus_bus.log import FrameLog

from inferbus_meter.core.frames import FrameBatch, FrameGather

_PART_ROWS = 400_000
_PART_FRAMES = 200_000
# The ingest runs in this process too: others get a turn after this many frames.
_FRAMES_A_TURN = 64


@dataclass(frozen=True, slots=True)
class Part:
    """Frames ``first`` to ``last`` of the stream, both included. ``frames``: how many were read. Stored times are in
    Unix microseconds."""

    batch: FrameBatch
    first: int
    last: int
    frames: int
    first_stored_us: int
    last_stored_us: int


async def parts(
    frames: FrameLog, first: int, last: int, start_us: int | None = None, end_us: int | None = None
) -> AsyncGenerator[Part, None]:
    """Of the sequences ``first`` to ``last`` those that were stored in [start, end) (None: all), in stream order.
    If there are none, but frames after it: one part without frames, whose place is that of the first of these. Raises
    what the bus raises."""
    gather, count, begun_us, at_us = FrameGather(bordered=False), 0, 0, 0
    is_empty = True
    async with aclosing(frames.read(first, last, since_us=start_us)) as read:
        async for stored in read:
            within = [frame for frame in stored if end_us is None or frame[1] < end_us]
            for number, frame in enumerate(within):
                if number % _FRAMES_A_TURN == 0:
                    await asyncio.sleep(0)
                begun_us, at_us = begun_us or frame[1], frame[1]
                gather.add(*frame)
            count += len(within)
            if is_empty and not within:
                yield Part(gather.finish(), stored[0][0], stored[0][0], 0, stored[0][1], stored[0][1])
            is_empty = False
            is_over = len(within) < len(stored)
            if gather.size >= _PART_ROWS or gather.last - gather.first >= _PART_FRAMES:
                yield Part(gather.finish(), gather.first, gather.last, count, begun_us, at_us)
                gather, count, begun_us = FrameGather(bordered=False), 0, 0
            if is_over:
                break
    if count:
        yield Part(gather.finish(), gather.first, gather.last, count, begun_us, at_us)

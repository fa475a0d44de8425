"""Whether the stream still ends in what was read from it. A broker that lost power, or whose folder was put back, has
lost what was stored last, and goes on to count from there."""

from contextlib import aclosing

from inferbus_bus.log import FrameLog

from inferbus_meter.core.claims import Mark

# That it ends before what was taken from it is believed when it is still so a while later.
_SHRUNK_SECONDS = 1.0
# One that has grown just to where it had ended is found out without another frame.
_MARK_SECONDS = 1.0


class Tail:
    """``now``: seconds of a clock that only goes forward."""

    def __init__(self, frames: FrameLog) -> None:
        self._frames = frames
        self._shrunk_since = 0.0
        self._due = 0.0
        self.left: int | None = None  # of a stream that lost its tail: the last sequence that is what it was

    def is_shrinking(self, last: int, frontier: int, now: float) -> bool:
        """Whether it ends before what was taken from it, since a moment ago only."""
        self._shrunk_since = (self._shrunk_since or now) if last < frontier else 0.0
        return last < frontier and now - self._shrunk_since < _SHRUNK_SECONDS

    def is_doubted(self, last: int, frontier: int, now: float) -> bool:
        return last < frontier or (last == frontier and now >= self._due)

    async def look(self, mark: Mark | None, bounds: tuple[int, int], frontier: int, now: float) -> None:
        """Sets ``left``; None: nothing is known to be lost.

        ``bounds``: the first and the last sequence of the stream, asked for after ``mark`` (a frame that was brought)
        and ``frontier`` (all up to it was there once) were known. Waits while the broker is away.
        """
        oldest, last = bounds
        self._due = now + _MARK_SECONDS
        self.left = last if last < frontier else None
        if mark is not None and oldest <= mark.sequence and await self._is_another(mark, last):
            self.left = await self._last_until(mark.stored_us, oldest, last)

    async def _is_another(self, mark: Mark, last: int) -> bool:
        """Whether there is another frame at its sequence now, or none yet."""
        if last < mark.sequence:
            return True
        async with aclosing(self._frames.read(mark.sequence, mark.sequence, window=1)) as read:
            async for stored in read:
                return stored[0][1] != mark.stored_us
        return False  # it was taken out

    async def _last_until(self, stored_us: int, oldest: int, last: int) -> int:
        """The last sequence that was stored at that time or before."""
        async with aclosing(self._frames.read(oldest, last, since_us=stored_us + 1, window=1)) as read:
            async for stored in read:
                return stored[0][0] - 1
        return last

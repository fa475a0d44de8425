"""Answers that are looked at while they run: each is followed once for all who look, and kept between their looks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from inferbus_edge.following import Following
from inferbus_edge.passes import Opened
from inferbus_edge.streaming import Answer

# Longer than the pause of whoever asks again and again.
_KEPT_SECONDS = 10.0
# Those that nobody looks at now; above it the one that was left first is dropped.
_MAX_KEPT = 256


@dataclass(slots=True, eq=False)
class _Look:
    """``known``: set when all that is on the log has been read, whether there was anything or not."""

    first: bytes
    answer: Answer | None = None
    known: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    lookers: int = 0
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def void(self) -> bool:
        """It ended, and not on the log: whoever looks next reads the log again."""
        return self.answer is not None and self.answer.done.done() and not self.answer.on_log


class Looks:
    """By the request's first id. Whether the caller may see it has been checked before."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._looks: dict[bytes, _Look] = {}
        self._kept: dict[_Look, None] = {}  # those that nobody looks at, in the order in which they were left

    @asynccontextmanager
    async def look(self, first: bytes, opened: Opened, *, wait: bool = False) -> AsyncIterator[Answer | None]:
        """The answer as far as it is on the log; it grows while it is looked at, by whoever else, too: ``opened`` is
        called for the first of them. None: nothing of it is there, unless it is to ``wait`` for that. Raises
        InferBusError."""
        look = self._looks.get(first)
        if look is None or look.void:
            look = self._looks[first] = _Look(first)
            look.task = asyncio.create_task(self._follow(look, opened), name="look")
        self._come(look)
        try:
            await look.known.wait()
            if wait and look.task is not None:
                await asyncio.wait([look.task])
            if look.error is not None:
                raise look.error
            yield look.answer
        finally:
            self._leave(look)

    def offer(self, answer: Answer) -> None:
        """It is made in this process: who looks for it finds it here, without the log."""
        look = self._looks[answer.first] = _Look(answer.first, answer)
        look.known.set()
        self._come(look)
        answer.done.add_done_callback(lambda _: self._leave(look))

    def stop(self) -> None:
        for look in {*self._looks.values(), *self._kept}:
            if look.timer is not None:
                look.timer.cancel()
            if look.task is not None:
                look.task.cancel()

    async def _follow(self, look: _Look, opened: Opened) -> None:
        def absent() -> bool:
            look.known.set()
            return True

        try:
            look.answer = await self._following.join(look.first, opened, absent)
        except Exception as error:  # noqa: BLE001 (whoever looks raises it)
            look.error = error
        finally:
            if look.answer is None:
                self._forget(look)  # nothing follows it
            look.known.set()

    def _come(self, look: _Look) -> None:
        look.lookers += 1
        if look.timer is not None:
            look.timer.cancel()
            look.timer = None
            del self._kept[look]

    def _leave(self, look: _Look) -> None:
        look.lookers -= 1
        if look.lookers:
            return
        look.timer = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._end, look)
        self._kept[look] = None
        if look.void or self._looks.get(look.first) is not look:
            self._end(look)
        elif len(self._kept) > _MAX_KEPT:
            self._end(next(iter(self._kept)))

    def _end(self, look: _Look) -> None:
        del self._kept[look]
        if look.timer is not None:
            look.timer.cancel()
        self._forget(look)
        if look.task is not None:
            look.task.cancel()
        if look.answer is not None:
            self._following.release(look.answer)

    def _forget(self, look: _Look) -> None:
        if self._looks.get(look.first) is look:
            del self._looks[look.first]

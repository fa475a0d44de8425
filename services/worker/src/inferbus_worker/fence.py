"""May this worker publish? Only while nobody can have taken it for dead."""

import asyncio
import logging
import math
from collections.abc import Callable

from inferbus_runtime import clock

log = logging.getLogger(__name__)


class Fence:
    """Open until the moment that :meth:`hold` was told last; then it shuts by itself, and :meth:`hold` opens it again.

    It is the clock that shuts it and no timer: a process that was stopped may wake in the middle of anything.
    """

    def __init__(self) -> None:
        self._until = math.inf
        self._opened = asyncio.Event()
        self._opened.set()
        self._later: list[Callable[[], None]] = []

    @property
    def open(self) -> bool:
        if clock.monotonic() >= self._until:
            self.shut()
        return self._opened.is_set()

    def hold(self, until: float) -> None:
        """The lease holds until then, by the monotonic clock. What waited for it is done before this returns."""
        self._until = until
        if self._opened.is_set():
            return
        log.warning("publishing again")
        self._opened.set()
        later, self._later = self._later, []
        for act in later:
            act()

    def shut(self) -> None:
        if self._opened.is_set():
            log.error("fleet lease lost, publishing nothing")
        self._until = math.inf
        self._opened.clear()

    def when_open(self, act: Callable[[], None]) -> None:
        """Now, or as soon as it is open again."""
        if self.open:
            act()
        else:
            self._later.append(act)

    async def wait(self) -> None:
        """Returns when it is open."""
        while not self.open:
            await self._opened.wait()

"""What the engine's KV cache holds, told to schedulers, so that a request comes to where its beginning has been read.

The subject is not stored: what got lost is noticed by its number, and all is told again soon.
"""

import asyncio
from collections.abc import Callable

from inferbus.bus.v1.control_pb2 import CacheEvents
from inferbus_bus.connection import Bus
from inferbus_contracts.prefixes import packed
from inferbus_runtime import clock

from inferbus_worker.core.prefix_cache import PrefixCache

_INTERVAL_SECONDS = 0.1
_ALL_SECONDS = 10.0


class CacheTeller:
    """Tells what changes, at most ten times a second, and all of it every ten seconds, after each reconnect, and at the
    start of each incarnation. ``boot``: of the one that this worker is now."""

    def __init__(self, bus: Bus, worker: str, boot: Callable[[], int], prefixes: PrefixCache) -> None:
        self._bus = bus
        self._worker = worker
        self._boot = boot
        self._prefixes = prefixes
        self._said = CacheEvents()
        self._all_due = 0.0
        bus.on_reconnect(self._reconnected)

    async def run(self) -> None:
        """For ever. Nothing at all if the engine is told of no prefixes."""
        while self._prefixes.bound:
            self._tell(clock.monotonic())
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _reconnected(self) -> None:
        self._all_due = 0.0

    def _tell(self, now: float) -> None:
        boot = self._boot()
        born = boot != self._said.boot
        stored, removed = self._prefixes.changes()
        # Before all is told, so that all is no news to whoever missed nothing.
        if (stored or removed) and not born:
            self._send(CacheEvents(boot=boot, stored=packed(stored), removed=packed(removed)))
        if born or now >= self._all_due:
            self._all_due = now + _ALL_SECONDS
            self._send(CacheEvents(boot=boot, stored=packed(self._prefixes.all()), all=True))

    def _send(self, message: CacheEvents) -> None:
        message.worker = self._worker
        # Also of what is dropped while the broker is away: the gap says that something is missing.
        message.sequence = self._said.sequence + 1 if message.boot == self._said.boot else 1
        self._said = CacheEvents(boot=message.boot, sequence=message.sequence)
        self._bus.send(message)

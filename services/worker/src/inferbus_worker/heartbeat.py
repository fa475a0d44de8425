"""The load of this worker, told periodically and as soon as there is room again."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus_bus.connection import Bus


class Heartbeats:
    """``current`` builds the message; it is sent on every :meth:`soon`, many of them in one go, and each interval."""

    def __init__(self, bus: Bus, current: Callable[[], Heartbeat], interval: timedelta) -> None:
        self._bus = bus
        self._current = current
        self._interval = interval
        self._due = False

    def soon(self) -> None:
        """Send once what happens now is done."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    async def run(self) -> None:
        while True:
            self.soon()
            await asyncio.sleep(self._interval.total_seconds())

    def _send(self) -> None:
        self._due = False
        self._bus.send(self._current())

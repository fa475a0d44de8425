"""Whose connection is gone: a worker that was killed is noticed long before its lease ends.

A worker that is not heard is sent a request on the subject of its recalls, which nobody answers. Where nobody listens
there, the broker says so at once, and then the worker's connection is closed. One that merely stands still has its
subscription still: for it, as for one that is cut off behind an open connection, the lease decides.
"""

import asyncio
import logging

from inferbus.bus.v1.control_pb2 import Probe
from inferbus_bus.connection import Bus
from inferbus_contracts.subjects import subject_of
from inferbus_runtime import clock
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from inferbus_scheduler.fleet import Fleet

log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05
# Twice, since a connection that is made again is away for a moment.
_AGAIN_SECONDS = 0.1
# "Nobody" comes within a millisecond; who listens is silent.
_ANSWER_SECONDS = 0.25
# Until one is asked again who was there.
_PAUSE_SECONDS = 0.5
_AT_ONCE = 64


class Liveness:
    """Tells ``fleet`` of connections that are gone. The fleet says whom to ask, and nobody in the grace after an outage
    of the broker."""

    def __init__(self, bus: Bus, fleet: Fleet) -> None:
        self._bus = bus
        self._fleet = fleet
        self._asked: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._outages = 0
        bus.on_disconnect(self._disconnected)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if not self._bus.connected:
                    continue
                for worker, boot in self._fleet.silent(clock.monotonic()):
                    if (worker, boot) not in self._asked:
                        self._asked[worker, boot] = group.create_task(self._ask(worker, boot))

    async def _ask(self, worker: str, boot: int) -> None:
        try:
            async with self._slots:
                outages = self._outages
                gone = await self._nobody_hears(worker)
                if gone:
                    await asyncio.sleep(_AGAIN_SECONDS)
                    gone = await self._nobody_hears(worker)
                # Our own connection may be the one that was away.
                if gone and outages == self._outages and self._bus.connected:
                    log.warning("worker's connection is gone", extra={"worker": worker, "boot": boot})
                    self._fleet.connection_gone(worker, boot, clock.monotonic())
                    return
            await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            del self._asked[worker, boot]

    async def _nobody_hears(self, worker: str) -> bool:
        probe = Probe(worker=worker)
        try:
            await self._bus.nc.request(subject_of(probe), probe.SerializeToString(), timeout=_ANSWER_SECONDS)
        except NoRespondersError:
            return True
        except (NatsError, OSError):
            return False
        return False

    def _disconnected(self) -> None:
        self._outages += 1

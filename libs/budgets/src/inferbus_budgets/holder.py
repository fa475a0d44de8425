"""This edge as a holder of grants: it says that it lives, and stops spending before anyone may take it for dead."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

log = logging.getLogger(__name__)
LEASE_SECONDS = 15.0
_RENEW_SECONDS = 4.0
# Until then after it last said so; what it accepts in this time may be on its way for the rest of the lease.
_SPENDS_SECONDS = 9.0
# Nobody can have seen the lease end if it was renewed within this time.
_KNOWN_SECONDS = 13.0


def lease_of(edge: str) -> str:
    return f"budget-{edge}"


class Holder:
    """``boot``: a new one whenever the lease may have ended. ``on_new``: then nothing that was granted is ours."""

    def __init__(self, leases: Registry[WorkerRecord], edge: str, on_new: Callable[[], None]) -> None:
        self._leases = leases
        self.edge = edge
        self.boot = clock.now_us()
        self._on_new = on_new
        self._renewed: float | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def may_spend(self) -> bool:
        return self._renewed is not None and clock.monotonic() < self._renewed + _SPENDS_SECONDS

    @property
    def due(self) -> bool:
        return self._renewed is not None and clock.monotonic() >= self._renewed + _RENEW_SECONDS

    async def renew(self) -> None:
        """Whoever comes while it is being renewed waits for the same. Raises InferBusError UNAVAILABLE."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="lease on grants")
        try:
            await asyncio.shield(self._renewing)
        finally:
            if self._renewing is not None and self._renewing.done():
                self._renewing = None

    async def _renew(self) -> None:
        begun = clock.monotonic()
        if self._renewed is not None and begun > self._renewed + _KNOWN_SECONDS:
            log.warning("this edge was cut off: it takes new grants, and leaves its old ones to the meter")
            self.boot = clock.now_us()
            self._renewed = None
            self._on_new()
        record = WorkerRecord(worker=self.edge, boot=self.boot)
        await self._leases.put(lease_of(self.edge), record, timedelta(seconds=LEASE_SECONDS))
        if self._renewed is not None and clock.monotonic() > self._renewed + _KNOWN_SECONDS:
            return await self._renew()  # it took so long that the lease may have ended before
        self._renewed = begun
        return None

    def rest(self) -> None:
        """Nothing is granted: the lease may end."""
        if self._renewed is not None:
            self._renewed = None
            self.boot = clock.now_us()

    async def give_back(self) -> None:
        if self._renewed is None:
            return
        self._renewed = None
        try:
            await self._leases.delete(lease_of(self.edge))
        except InferBusError as error:
            log.warning("the lease on grants was not given back", extra={"error": str(error)})

"""The register of erasures: bucket ``erasures`` followed, so that what comes from the log is erased on its way in."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from inferbus.bus.v1.registry_pb2 import ErasureRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry

from inferbus_meter.core.erasing import ErasedScopes

_SEEN_SECONDS, _POLL_SECONDS = 2.0, 0.01


class Erasures:
    """Entries are never deleted: whoever is erased stays so, whatever is read from the log again."""

    def __init__(self, registry: Registry[ErasureRecord]) -> None:
        self._registry = registry
        self._scopes = ErasedScopes()
        self.changed = asyncio.Event()

    @property
    def records(self) -> Mapping[str, ErasureRecord]:
        return self._registry.items()

    def is_erased(self, tenant_id: str, end_user: str, accepted_us: int) -> bool:
        """See :meth:`ErasedScopes.is_erased`."""
        return self._scopes.is_erased(tenant_id, end_user, accepted_us)

    async def create(self, record: ErasureRecord) -> None:
        """Raises like :meth:`Registry.create`."""
        await self._registry.create(record.erasure_id, record)
        # Here at once; other meters hear of it by their watch.
        self._scopes.put(record)

    async def update(self, record: ErasureRecord) -> None:
        """Raises like :meth:`Registry.update`: CONFLICT if it was changed meanwhile."""
        name = record.erasure_id
        stored = await self._registry.update(name, record, self._registry.revision(name))
        # Whoever looks next finds it changed.
        with suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._registry.revision(name) < stored.sequence:
                    await asyncio.sleep(_POLL_SECONDS)

    def heard(self, _: str, record: ErasureRecord | None) -> None:
        if record is not None:
            self._scopes.put(record)
        self.changed.set()


@asynccontextmanager
async def follow_erasures(bus: Bus) -> AsyncIterator[Erasures]:
    """Loaded when it is given, then follows every change. Raises like :meth:`Registry.start`."""
    registry = Registry(bus, "erasures", ErasureRecord)
    erasures = Erasures(registry)
    registry.on_change(erasures.heard)
    await registry.start()
    try:
        yield erasures
    finally:
        await registry.stop()

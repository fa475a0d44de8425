"""Changes to the registries, and the record of them: nothing changes here that AUDIT does not tell."""

import asyncio
from collections.abc import Callable
from typing import Generic

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.errors import bus_unavailable
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_contracts.subjects import tenant_audit
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.organization_audit import AuditPage, AuditQuery, Change, event_of
from inferbus_edge.core.organization_rules import conflict
from inferbus_edge.records import OwnedT, Records

# How long a change may take to come back through the watch before it is answered anyhow.
_SEEN_SECONDS = 2.0
_READ_SECONDS = 20.0
_DAY_US = 86_400_000_000
# The log is read back in steps of these days: most pages lie in the last one. The last step is all that is stored.
_WINDOW_DAYS = (1, 8, 64, None)
# An event is stored after it was timed, and clocks differ.
_CLOCK_MARGIN_US = 600_000_000


class Changes(Generic[OwnedT]):
    """The changes of one registry. Each is announced on AUDIT before it is made (a change without its record must not
    exist; a record without its change, because the bus went away or somebody was faster, does no harm), made only if
    the record is still what was decided on, and in this edge's own view when it is answered."""

    def __init__(self, records: Records[OwnedT], publisher: Publisher) -> None:
        self._records = records
        self._registry = records.registry
        self._publisher = publisher
        self._changed = asyncio.Event()
        self._registry.on_change(lambda name, record: self._changed.set())

    async def make(self, name: str, record: OwnedT, revision: int, change: Change) -> None:
        """Store ``record`` if there is room for it. Raises InferBusError CONFLICT if the last change of ``name`` is not
        ``revision``, INVALID_ARGUMENT or RESOURCE_EXHAUSTED if there is no room, UNAVAILABLE if the bus is away."""
        self._records.check_room(name, record)
        await self.end(name, record, revision, change)

    async def end(self, name: str, record: OwnedT, revision: int, change: Change) -> None:
        """:meth:`make` for what only takes away, which the last part of a bucket is kept for."""
        await self.announce(change, revision)
        await self.store(name, record, revision)

    async def store(self, name: str, record: OwnedT, revision: int) -> None:
        """A further record of a change that has been announced. Raises like :meth:`end`."""
        try:
            stored = await self._registry.update(name, record, revision)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            raise conflict("It is being changed by someone else at this moment; retry.", error.reason) from error
        await self._seen(name, stored.sequence)

    async def remove(self, name: str) -> None:
        """Delete a record as a part of an announced change. Raises InferBusError UNAVAILABLE."""
        deleted = await self._registry.delete(name)
        await self._seen(name, deleted.sequence)

    async def announce(self, change: Change, revision: int) -> None:
        event = event_of(change, revision)
        event.event_time.CopyFrom(clock.timestamp(clock.now_us()))
        await self._publisher.publish(event)

    async def _seen(self, name: str, sequence: int) -> None:
        """Wait until this edge's own view has the change, so that who made it can use it at once."""
        try:
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._registry.revision(name) < sequence:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return


class AuditLog:
    """Reads the changes of one tenant back from the stream."""

    def __init__(self, bus: Bus) -> None:
        self._log = FrameLog(bus, "AUDIT")

    async def page(
        self, tenant_id: str, query: AuditQuery, owner_of: Callable[[str], str]
    ) -> tuple[list[AuditEvent], bool]:
        """(events, newest first; whether there is more). ``owner_of``: a key's id to its owner's.

        Raises InferBusError INVALID_ARGUMENT for an unknown cursor, UNAVAILABLE if the bus is away.
        """
        try:
            async with asyncio.timeout(_READ_SECONDS):
                return await self._newest(tenant_id, query, owner_of)
        except TimeoutError:
            # The reader waits for a broker that went away in the middle of it.
            raise bus_unavailable("the audit log was not read in time") from None

    async def _newest(
        self, tenant_id: str, query: AuditQuery, owner_of: Callable[[str], str]
    ) -> tuple[list[AuditEvent], bool]:
        first, last = await self._log.bounds()
        earliest_us = max(0, query.start * 1_000_000 - _CLOCK_MARGIN_US)
        now_us = clock.now_us()
        page = AuditPage(query, owner_of)
        for days in _WINDOW_DAYS:
            since_us = 0 if days is None else now_us - days * _DAY_US
            page = AuditPage(query, owner_of)
            await self._read(tenant_id, page, first, last, max(since_us, earliest_us))
            if page.complete or since_us <= earliest_us:
                break
        return page.result()

    async def _read(self, tenant_id: str, page: AuditPage, first: int, last: int, since_us: int) -> None:
        if last < first:
            return
        batches = self._log.read(first, last, subject=tenant_audit(tenant_id), since_us=since_us or None)
        try:
            async for batch in batches:
                for _, _, data in batch:
                    if not page.take(AuditEvent.FromString(data)):
                        return
        finally:
            await batches.aclose()

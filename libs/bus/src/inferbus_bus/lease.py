"""The right to act alone, for as long as it is renewed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.25


class Lease:
    """``lost`` is set when the lease could not be renewed before it ran out: stop acting at once."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()


@asynccontextmanager
async def hold(bus: Bus, name: str, holder: str, ttl: timedelta) -> AsyncIterator[Lease]:
    """Wait until the lease ``name`` is free, hold it inside the context, give it back at the end.

    A holder that is killed keeps others out until ``ttl`` (whole seconds) has passed.
    """
    registry: Registry[WorkerRecord] = Registry(bus, "leases", WorkerRecord)
    await registry.start()
    record = WorkerRecord(worker=holder, boot=clock.now_us())
    try:
        revision = await _acquire(registry, name, record, ttl)
        lease = Lease()
        renewer = asyncio.create_task(_renew(registry, name, record, revision, ttl, lease), name=f"lease {name}")
        try:
            yield lease
        finally:
            renewer.cancel()
            if not lease.lost.is_set():
                try:
                    await registry.delete(name)
                except InferBusError as error:
                    log.warning("lease not given back", extra={"lease": name, "error": str(error)})
    finally:
        await registry.stop()


async def _acquire(registry: Registry[WorkerRecord], name: str, record: WorkerRecord, ttl: timedelta) -> int:
    said = False
    while True:
        if registry.get(name) is None:
            try:
                return (await registry.create(name, record, ttl)).sequence
            except InferBusError as error:
                log.debug("lease not acquired", extra={"lease": name, "error": str(error)})
        elif not said:
            said = True
            log.info("lease is held by another", extra={"lease": name, "holder": registry.items()[name].worker})
        await asyncio.sleep(_POLL_SECONDS)


async def _renew(
    registry: Registry[WorkerRecord], name: str, record: WorkerRecord, revision: int, ttl: timedelta, lease: Lease
) -> None:
    deadline = clock.monotonic() + ttl.total_seconds()
    while True:
        await asyncio.sleep(ttl.total_seconds() / 3 if clock.monotonic() < deadline else 0)
        asked = clock.monotonic()
        try:
            revision = (await registry.update(name, record, revision, ttl)).sequence
            deadline = asked + ttl.total_seconds()
        except InferBusError as error:
            log.warning("lease not renewed", extra={"lease": name, "error": str(error)})
            if clock.monotonic() >= deadline or error.reason == "changed_meanwhile":
                lease.lost.set()
                return
            await asyncio.sleep(_POLL_SECONDS)

"""What one meter does for all: what edges delivered, sums of hours, how long workers were up. Whoever holds the lease
does it."""

import asyncio
import logging
from datetime import timedelta

from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.lease import hold
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_meter.clickhouse import STORE_ERRORS
from inferbus_meter.deliveries import DeliveryIngest
from inferbus_meter.usage_hours import UsageHours
from inferbus_meter.worker_minutes import WorkerMinutes

log = logging.getLogger(__name__)
LEASE = "meter-deliveries"
_AGAIN_SECONDS = 1.0


async def keep(
    bus: Bus, holder: str, ttl: timedelta, deliveries: DeliveryIngest, hours: UsageHours, workers: WorkerMinutes
) -> None:
    """For ever. All may be done by two meters at once without harm: the lease only saves the work."""
    while True:
        try:
            async with hold(bus, LEASE, holder, ttl) as lease:
                lost = asyncio.create_task(lease.lost.wait(), name="lease lost")
                work = [
                    asyncio.create_task(deliveries.run(), name="deliveries"),
                    asyncio.create_task(hours.run(), name="usage hours"),
                    asyncio.create_task(workers.run(), name="worker minutes"),
                ]
                await _until_one_ends([lost, *work])
        except (InferBusError, StreamApiError, *STORE_ERRORS) as error:
            log.warning("deliveries and sums of hours begin again", extra={"error": repr(error)[:500]})
        await asyncio.sleep(_AGAIN_SECONDS)


async def _until_one_ends(tasks: "list[asyncio.Task[None] | asyncio.Task[bool]]") -> None:
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_all(tasks)

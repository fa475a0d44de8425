"""The tables ``worker_minutes`` and ``watched_minutes``: how long each worker was up, and how long a meter saw to it.

Every meter looks at the fleet; who holds the lease writes what it saw, the last hour's minutes too when it takes over.
Of a minute the row of whoever saw most of it counts, so writing twice changes nothing. A minute that no meter saw has
no row: how long workers were up in it is not known, and not guessed.
"""

import asyncio
import logging
import uuid

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.worker_time import WorkerTime, worker_rows

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_WRITE_SECONDS = 15.0
_AGAIN_SECONDS = 5.0


class WorkerMinutes:
    """:meth:`watch` in every meter, :meth:`run` in one at a time: two would do no harm, but everything twice."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus = bus
        self._store = store
        self._time = WorkerTime()
        self._written: dict[int, int] = {}

    async def watch(self) -> None:
        """For ever. A broker that does not let the fleet be read costs this report, not the meter."""
        while True:
            fleet = Registry(self._bus, "fleet", WorkerRecord)
            try:
                await fleet.start()
                while True:
                    self.look(fleet)
                    await asyncio.sleep(_LOOK_SECONDS)
            except (InferBusError, StreamApiError, TimeoutError) as error:
                log.warning("the fleet is not watched: GPU-hours are not known", extra={"error": repr(error)[:500]})
            finally:
                await fleet.stop()
            await asyncio.sleep(_AGAIN_SECONDS)

    def look(self, fleet: Registry[WorkerRecord]) -> None:
        if self._bus.connected:
            self._time.look(clock.now_us(), list(fleet.items().values()))
        else:
            self._time.look_away()

    async def run(self) -> None:
        """Write for ever. A store that is away is asked again the next time."""
        # What another meter has written meanwhile is not known here.
        self._written.clear()
        while True:
            try:
                await self.write()
            except STORE_ERRORS as error:
                log.warning("GPU-hours are written later", extra={"error": repr(error)[:500]})
            await asyncio.sleep(_WRITE_SECONDS)

    async def write(self) -> None:
        """The minutes of which more was seen than is written. Raises one of STORE_ERRORS."""
        seen = {begin: minute.watched_us for begin, minute in self._time.minutes.items()}
        due = {begin: self._time.minutes[begin] for begin, us in seen.items() if self._written.get(begin, 0) < us}
        for rows in worker_rows(due, self._time.workers):
            # A token of its own each time: what is written twice is one row.
            await self._store.insert(rows.table, rows.data, uuid.uuid4().hex)
        self._written = seen

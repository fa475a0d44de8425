"""Checkpoints of jobs that have ended: whoever ended one died before it could take its checkpoint away, or it was
cancelled in the moment in which it began. What a checkpoint names is kept, so it must not stay."""

import asyncio
import logging
from datetime import timedelta

from inferbus.bus.v1.batch_pb2 import JobCheckpoint
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.job_states import ENDED
from inferbus_batch.jobs import Jobs

log = logging.getLogger(__name__)
EVERY = timedelta(minutes=5)
AFTER = timedelta(minutes=10)
"""Whoever ends a job takes its checkpoint away within that."""


class Leftovers:
    """``checkpoints``: a running registry; ``store``: of the same bucket."""

    def __init__(
        self,
        jobs: Jobs,
        checkpoints: Registry[JobCheckpoint],
        store: Store[JobCheckpoint],
        after: timedelta = AFTER,
    ) -> None:
        self._jobs = jobs
        self._checkpoints = checkpoints
        self._store = store
        self._after = after
        # When each was first seen to have ended, or to have no job, by :func:`clock.monotonic`.
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY.total_seconds())
            try:
                await self.sweep()
            except InferBusError as error:
                log.warning("clearing up was put off", extra={"error": str(error)})

    async def sweep(self) -> None:
        """Once. Raises InferBusError UNAVAILABLE."""
        if not self._jobs.following:
            self._since.clear()
            return
        now = clock.monotonic()
        self._since = {name: self._since.get(name, now) for name in self._checkpoints.items() if self._is_over(name)}
        for name in [one for one, since in self._since.items() if now - since >= self._after.total_seconds()]:
            try:
                await self._store.delete(name, self._checkpoints.revision(name))
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
                continue  # somebody else takes care of it
            log.info("the checkpoint of a job that has ended was removed", extra={"job": name})

    def _is_over(self, name: str) -> bool:
        tenant_id, _, job_id = name.rpartition("/")
        try:
            return self._jobs.find(tenant_id, "", job_id).state in ENDED
        except InferBusError:
            return True  # a record goes long after its end; or is about to be heard of

"""Runs the jobs of the shards that this process holds; several processes share them by leases."""

import asyncio
import logging

from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus_bus.log import FrameLog
from inferbus_runtime.tasks import cancel_all

from inferbus_batch.core.job_states import ENDED
from inferbus_batch.folding import ShardLog
from inferbus_batch.job_run import JobRun
from inferbus_batch.parts import Parts

log = logging.getLogger(__name__)


class _Shard:
    """One that is held: its log, and its jobs."""

    def __init__(self, parts: Parts, frames: FrameLog, shard: int) -> None:
        self._parts = parts
        self._log = ShardLog(frames, shard, parts.budgets.on_frame)
        self._runs: dict[str, JobRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._spawn(self._log.run(), f"log of shard {shard}")
        for record in parts.jobs.of_shard(shard):
            self.see(record)

    def see(self, record: JobRecord) -> None:
        """It is new, or has changed."""
        run = self._runs.get(record.job_id)
        if run is not None:
            run.wake()
        elif record.state not in ENDED:
            run = self._runs[record.job_id] = JobRun(self._parts, record, self._log)
            self._spawn(self._run(record.job_id, run), f"job {record.job_id}")

    async def _run(self, job_id: str, run: JobRun) -> None:
        try:
            await run.run()
        finally:
            del self._runs[job_id]

    def _spawn(self, coroutine, name: str) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        await cancel_all(list(self._tasks))


class Runner:
    """For :class:`inferbus_bus.shards.Shards`. What it leaves goes on elsewhere from the last checkpoint."""

    def __init__(self, parts: Parts, frames: FrameLog) -> None:
        self._parts = parts
        self._frames = frames
        self._shards: dict[int, _Shard] = {}
        self._closing: set[asyncio.Task[None]] = set()
        parts.jobs.on_change(self._changed)

    async def gained(self, shard: int) -> None:
        self._shards[shard] = _Shard(self._parts, self._frames, shard)

    async def left(self, shard: int) -> None:
        held = self._shards.pop(shard, None)
        if held is not None:
            await held.stop()

    def lost(self, shard: int) -> None:
        task = asyncio.create_task(self.left(shard), name=f"lost shard {shard}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """All of it, at the end of the process."""
        await asyncio.gather(*(self.left(shard) for shard in list(self._shards)), *self._closing)

    def _changed(self, record: JobRecord) -> None:
        shard = self._shards.get(record.shard)
        if shard is not None:
            shard.see(record)

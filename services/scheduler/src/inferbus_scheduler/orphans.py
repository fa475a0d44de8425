"""Work that nobody has: placements of incarnations that are not there, found by looking through WORK.

The rule. An entry of the fleet that has ended does not come back: a worker that finds its own gone begins anew, as
another incarnation, and drops all that it had. So whatever is placed on an incarnation that the loaded fleet does not
know is orphaned, whether its worker runs or not. Two looks must agree, a second apart: a replica may be behind, and a
move of another scheduler may be under way. What the fleet still knows, also in its grace after an outage of the broker,
is left to the fleet.
"""

import asyncio
import logging
from collections.abc import Callable

from google.protobuf.message import DecodeError
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.errors import StreamApiError
from inferbus_contracts.subjects import model_shard
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_scheduler.core.request import Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.placed import COPIES, Incarnation, PlacedWork

log = logging.getLogger(__name__)
_AGREE_SECONDS = 1.0
# Of those that nobody told of: a scheduler that died in between, a placement that was stored late.
_LOOK_SECONDS = 60.0
# What a shard that was just gained waits for; the rest is found meanwhile.
_FIRST_SECONDS = 1.0

Describe = Callable[[GenerateRequest], Request]


class Orphans:
    """``orphaned`` is told of each incarnation whose work is to be moved; it may be told again. ``describe``: what the
    scheduler would know of a request if it were to be placed now."""

    def __init__(
        self, placed: PlacedWork, fleet: Fleet, *, describe: Describe, orphaned: Callable[[Incarnation], None]
    ) -> None:
        self._placed = placed
        self._fleet = fleet
        self._describe = describe
        self._orphaned = orphaned
        # Since when (monotonic seconds) an incarnation that has work is not known.
        self._missing: dict[Incarnation, float] = {}
        self._next = 0.0
        self._soon = asyncio.Event()
        self._finding: set[asyncio.Task[None]] = set()

    async def scan(self, shard: int) -> None:
        """At the gain of a shard, once the fleet is loaded: tells the fleet what runs on its workers, and looks for
        orphans at once. Raises InferBusError UNAVAILABLE, StreamApiError."""
        await self._look(clock.monotonic())
        self._soon.set()
        task = asyncio.create_task(self._find(shard), name=f"what runs of shard {shard}")
        self._finding.add(task)
        task.add_done_callback(self._finding.discard)
        await asyncio.wait({task}, timeout=_FIRST_SECONDS)
        if task.done():
            task.result()

    def soon(self) -> None:
        """Something may have been placed on who is gone."""
        self._next = 0.0
        self._soon.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._soon.clear()
            now = clock.monotonic()
            if now >= self._next or self._missing:
                self._next = now + _LOOK_SECONDS
                try:
                    await self._look(now)
                except (InferBusError, StreamApiError) as error:
                    log.warning("orphans not looked for", extra={"error": str(error)})
                    self._next = now + _AGREE_SECONDS
            try:
                async with asyncio.timeout(_AGREE_SECONDS if self._missing else max(0.0, self._next - now)):
                    await self._soon.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_AGREE_SECONDS / 4)  # many at once are one look

    async def _look(self, now: float) -> None:
        missing: dict[Incarnation, float] = {}
        for of in await self._placed.incarnations():
            worker, boot = of
            if boot != COPIES and self._fleet.knows(worker, boot):
                continue
            since = missing[of] = self._missing.get(of, now)
            if now - since >= _AGREE_SECONDS:
                self._orphaned(of)
        self._missing = missing

    async def _find(self, shard: int) -> None:
        """What runs, or waits to, on the living."""
        for worker in list(self._fleet.workers()):
            record = worker.record
            if model_shard(record.model) != shard:
                continue
            of, first = (record.worker, record.boot), 1
            while page := await self._placed.page(of, first):
                now, now_us = clock.monotonic(), clock.now_us()
                for placed in page:
                    view = self._running(of, placed.sequence, placed.data, now, now_us)
                    if view is not None:
                        self._fleet.found(*of, view)
                first = page[-1].sequence + 1
                await asyncio.sleep(0)

    def _running(self, of: Incarnation, sequence: int, data: bytes, now: float, now_us: int) -> RunningView | None:
        try:
            work = Work.FromString(data)
        except DecodeError:
            return None
        request = self._describe(work.request)
        return RunningView(
            request_id=request.request_id,
            attempt=request.attempt,
            tenant=request.tenant,
            project=request.project,
            priority=request.priority,
            model=request.model,
            worker=of[0],
            boot=of[1],
            sequence=sequence,
            input_tokens=request.input_tokens,
            output_tokens=request.resumed_tokens,
            expected_tokens=request.resumed_tokens + request.output_tokens,
            placed_at=now - max(0, now_us - clock.unix_us(work.placed_time)) / 1e6,
            suspect=request.suspect,
            resumed_tokens=request.resumed_tokens,
        )

"""The load of this worker, told periodically and as soon as there is room again."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

from inferbus.bus.v1.control_pb2 import GpuStatus, Heartbeat
from inferbus_bus.connection import Bus
from inferbus_bus.frames import FramePublisher
from inferbus_runtime import clock

from inferbus_worker.engine_report import EngineReport
from inferbus_worker.generations import Generations
from inferbus_worker.intake import Intake

# All that runs is named so often: a heartbeat may be lost.
_RUNNING_SECONDS = 2.0
# What all that runs has got since is counted so often, and who has its first token.
_COUNT_SECONDS = 0.25
_FIRST_SECONDS = 0.005


class Load:
    """Makes the heartbeats. Those that tell of an end come often, and cost no look at what else runs."""

    def __init__(
        self,
        worker: str,
        generations: Generations,
        intake: Intake,
        frames: FramePublisher,
        report: EngineReport,
        gpus: Callable[[], Iterable[GpuStatus]],
        memory: Callable[[], int],
    ) -> None:
        self._worker = worker
        self._generations = generations
        self._intake = intake
        self._frames = frames
        self._report = report
        self._gpus = gpus
        self._memory = memory
        self._boot = 0  # of the last heartbeat
        self._running_at = self._counted_at = -_RUNNING_SECONDS

    def current(self) -> Heartbeat:
        """For sending: what it tells of is not told again."""
        intake, generations = self._intake, self._generations
        beat = Heartbeat(
            worker=self._worker,
            boot=intake.boot,
            active=intake.active,
            work_sequence=intake.work_sequence,
            unacked_frames=self._frames.unacked,
            output_tokens_total=generations.output_tokens,
            gpus=self._gpus(),
            engine=self._report.current(),
            memory_bytes=self._memory(),
        )
        now = clock.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            generations.load.look(generations.running.values())
        generations.load.tell(beat)
        if generations.load.cleared or beat.boot != self._boot or now - self._running_at >= _RUNNING_SECONDS:
            generations.load.cleared = False
            self._boot, self._running_at = beat.boot, now
            self._name_running(beat)
        return beat

    def _name_running(self, beat: Heartbeat) -> None:
        running = self._intake.running()
        beat.running.SetInParent()
        beat.running.request_ids = b"".join([one.key for one in running])
        beat.running.attempts.extend([one.attempt for one in running])
        beat.running.output_tokens.extend([len(one.ids) for one in running])


class Heartbeats:
    """``current`` builds the message; it is sent on every :meth:`soon`, many of them in one go, and each interval."""

    def __init__(
        self, bus: Bus, current: Callable[[], Heartbeat], interval: timedelta, generations: Generations
    ) -> None:
        self._bus = bus
        self._current = current
        self._interval = interval
        self._count = generations.load
        self._due = False
        self._watching = False
        generations.on_begin(self._begun)
        generations.on_end(lambda *_: self.soon())
        generations.on_failed(self.soon)

    def soon(self) -> None:
        """Send once what happens now is done."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send)

    async def run(self) -> None:
        while True:
            self.soon()
            await asyncio.sleep(self._interval.total_seconds())

    def _send(self) -> None:
        self._due = False
        self._bus.send(self._current())

    def _begun(self) -> None:
        """A worker with much to read is given nothing more to read: that there is less is told at once."""
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(_FIRST_SECONDS, self._look)

    def _look(self) -> None:
        self._watching = False
        if self._count.look_at_reading():
            self.soon()
        if self._count.reading:
            self._begun()

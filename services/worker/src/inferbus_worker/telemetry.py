"""The GPUs that this worker computes on: read by a thread of their own, judged and told here.

What is read goes to the fleet (heartbeats), to Prometheus and into the joules of each request. A GPU that is sick makes
its worker drain: what runs ends by itself, and nothing new comes. Where there is no GPU there is nothing of all this.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from inferbus.bus.v1.control_pb2 import GpuStatus
from inferbus_runtime import clock, metrics

from inferbus_worker import telemetry_metrics
from inferbus_worker.core.energy import EnergyLedger, Meter, drawn, power
from inferbus_worker.core.gpu import Gpu, Reading, status_of
from inferbus_worker.core.gpu_health import Fault, GpuHealth

log = logging.getLogger(__name__)

_READ_SECONDS = 1.0
# The energy is read more often: what a request gets after the last time is worked out, not measured.
_METER_SECONDS = 0.2
# A driver in trouble may answer late or never; a reading as old as this is none.
_STALE_SECONDS = 5.0
_OPEN_SECONDS = 10.0


class Probe(Protocol):
    """What asks the GPUs. Every call may block, and all come from one thread; answers are in the order of ``gpus``."""

    gpus: tuple[Gpu, ...]

    def meters(self) -> list[Meter]: ...

    def read(self) -> list[Reading]: ...

    def wait(self, seconds: float) -> list[tuple[Gpu, int]]:
        """The next Xid fault, with each GPU that it is of; none within ``seconds``: nothing."""
        ...

    def close(self) -> None: ...


class Telemetry:
    """Owned by one event loop. ``energy``: whose the joules are."""

    def __init__(
        self, open_probe: Callable[[], Probe | None], *, ignored_xids: Collection[int], hot_for: float
    ) -> None:
        self.energy = EnergyLedger()
        self.gpus: tuple[Gpu, ...] = ()
        self._open = open_probe
        self._ignored_xids, self._hot_for = ignored_xids, hot_for
        self._healths: dict[Gpu, GpuHealth] = {}
        self._readings: list[Reading] = []
        self._read_at = 0.0
        self._told = True
        self._metered: tuple[float, list[Meter]] | None = None
        self._sick = asyncio.Event()
        self._opened = asyncio.Event()
        self._stopping = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, name="gpus", daemon=True)

    async def start(self) -> bool:
        """False: there is no GPU to tell of, or none that answers in time."""
        self._thread.start()
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._opened.wait()
        except TimeoutError:
            log.error("no GPU telemetry: the driver does not answer")
            self._stopping.set()
        return bool(self.gpus)

    async def stop(self) -> None:
        """A thread that hangs in the driver is left behind."""
        self._stopping.set()
        for _ in range(20):
            if not self._thread.is_alive():
                return
            await asyncio.sleep(0.05)

    async def run(self, drain: Callable[[], Awaitable[None]], drain_on: Collection[str]) -> None:
        """Looks after the readings; a GPU with a fault of ``drain_on`` makes it drain, once."""
        while True:
            try:
                async with asyncio.timeout(_READ_SECONDS):
                    await self._sick.wait()
                    self._sick.clear()
            except TimeoutError:
                self._forget_stale()
            if any(health.fault is not None and health.fault.value in drain_on for health in self._healths.values()):
                log.error("the worker drains itself: it takes nothing new and ends what runs; look at its GPU")
                await drain()
                log.error("the worker is drained and stays so until it is started again")
                drain_on = ()

    def statuses(self) -> list[GpuStatus]:
        """What is to be told: each reading once."""
        if self._told:
            return []
        self._told = True
        return [
            status_of(gpu, reading, self._healths[gpu].xids, _word(self._healths[gpu].fault))
            for gpu, reading in zip(self.gpus, self._readings, strict=True)
        ]

    # --- on the loop -------------------------------------------------------------------------------------------

    def _found(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        self._healths = {gpu: GpuHealth(self._ignored_xids, self._hot_for) for gpu in gpus}
        for gpu in gpus:
            log.info("GPU", extra={"gpu": gpu.uuid, "index": gpu.index, "device": gpu.name})
        self._opened.set()

    def _take_meters(self, at: float, meters: list[Meter]) -> None:
        joules = None
        if self._metered is not None:
            before_at, before = self._metered
            joules = drawn(before, meters, at - before_at)
            for gpu, old, new in zip(self.gpus, before, meters, strict=True):
                own = drawn([old], [new], at - before_at)
                if own is not None:
                    metrics.GPU_ENERGY.labels(gpu.uuid).inc(own)
        self._metered = at, meters
        self.energy.reading(at, joules, power(meters))

    def _take_readings(self, at: float, readings: list[Reading]) -> None:
        self._readings, self._read_at, self._told = readings, at, False
        for gpu, reading in zip(self.gpus, readings, strict=True):
            health = self._healths[gpu]
            before = health.fault
            health.read(reading, at)
            self._judged(gpu, before)
            telemetry_metrics.show(gpu, reading, health)

    def _take_xids(self, xids: Sequence[tuple[Gpu, int]]) -> None:
        for gpu, number in xids:
            metrics.GPU_XIDS.labels(gpu.uuid, str(number)).inc()
            log.warning("a GPU's driver reported a fault", extra={"gpu": gpu.uuid, "index": gpu.index, "xid": number})
            health = self._healths[gpu]
            before = health.fault
            health.xid(number)
            self._judged(gpu, before)

    def _judged(self, gpu: Gpu, before: Fault | None) -> None:
        health = self._healths[gpu]
        if health.fault is not before and health.fault is not None:
            log.error(
                "a GPU is sick",
                extra={"gpu": gpu.uuid, "index": gpu.index, "fault": health.fault.value, "detail": health.detail},
            )
            self._sick.set()

    def _forget_stale(self) -> None:
        """Readings that are too old are told as none, once."""
        if self._readings and clock.monotonic() - self._read_at > _STALE_SECONDS:
            nothing = [Reading() for _ in self.gpus]
            if self._readings != nothing:
                log.error("the GPUs do not answer: nothing is told of them until they do")
                self._readings, self._told = nothing, False
                for gpu in self.gpus:
                    telemetry_metrics.show(gpu, Reading(), self._healths[gpu])

    # --- in the thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            probe = self._open()
        except Exception:  # whatever a driver does, the worker goes on without it
            log.exception("the GPUs cannot be read")
            probe = None
        self._post(self._found, probe.gpus if probe is not None else ())
        if probe is None:
            return
        try:
            self._keep_reading(probe)
        except Exception:  # the same; they are told as silent
            log.exception("reading the GPUs ended")
        finally:
            probe.close()

    def _keep_reading(self, probe: Probe) -> None:
        due = clock.monotonic()
        while not self._stopping.is_set():
            meters = probe.meters()
            now = clock.monotonic()
            self._post(self._take_meters, now, meters)
            if now >= due:
                self._post(self._take_readings, now, probe.read())
                due = max(due + _READ_SECONDS, now)
            xids: list[tuple[Gpu, int]] = []
            while not self._stopping.is_set() and (left := now + _METER_SECONDS - clock.monotonic()) > 0:
                # A storm of the same fault is one.
                xids += [hit for hit in probe.wait(left) if hit not in xids]
            if xids:
                self._post(self._take_xids, xids)

    def _post(self, take: Callable[..., None], *arguments: Any) -> None:
        if not self._stopping.is_set():
            self._loop.call_soon_threadsafe(take, *arguments)


def _word(fault: Fault | None) -> str:
    return fault.value if fault is not None else ""


@asynccontextmanager
async def watching(
    open_probe: Callable[[], Probe | None], *, ignored_xids: Collection[int], hot_for: float
) -> AsyncIterator[Telemetry | None]:
    """Reads until it is left; None where there is no GPU to read."""
    telemetry = Telemetry(open_probe, ignored_xids=ignored_xids, hot_for=hot_for)
    try:
        yield telemetry if await telemetry.start() else None
    finally:
        await telemetry.stop()

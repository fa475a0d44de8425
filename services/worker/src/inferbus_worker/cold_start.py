"""How long this worker took until it takes work, and what it was spent on."""

import os
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.registry_pb2 import WorkerStart
from inferbus_runtime import clock, metrics

_STARTED_FIELD = 19  # of /proc/self/stat, counted from behind the name: clock ticks after the machine's start


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not say (not Linux)."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_STARTED_FIELD]
        uptime = Path("/proc/uptime").read_text().split()[0]
    except OSError:
        return 0.0
    return max(0.0, float(uptime) - int(started) / os.sysconf("SC_CLK_TCK"))


class ColdStart:
    """Made when our own code begins; told the parts in their order."""

    def __init__(self) -> None:
        self._process = process_age()
        self._began = self._last = clock.monotonic()
        self._start = WorkerStart()
        self._start.process_duration.FromTimedelta(timedelta(seconds=self._process))
        metrics.WORKER_START_SECONDS.labels("process").set(self._process)

    def artifacts_fetched(self) -> None:
        seconds = self._lap()
        self._start.artifacts_duration.FromTimedelta(timedelta(seconds=seconds))
        metrics.WORKER_START_SECONDS.labels("artifacts").set(seconds)

    def connected(self) -> None:
        """What is between the parts counts for the whole only."""
        self._lap()

    def engine_started(self) -> None:
        seconds = self._lap()
        self._start.engine_duration.FromTimedelta(timedelta(seconds=seconds))
        metrics.WORKER_START_SECONDS.labels("engine").set(seconds)

    def done(self) -> WorkerStart:
        """It takes work from now on."""
        seconds = self._process + clock.monotonic() - self._began
        self._start.total_duration.FromTimedelta(timedelta(seconds=seconds))
        metrics.WORKER_START_SECONDS.labels("total").set(seconds)
        return self._start

    def _lap(self) -> float:
        before, self._last = self._last, clock.monotonic()
        return self._last - before

"""What a deployment is scaled by, over the last minute. Bounded: windows are histograms, not lists."""

import math
from dataclasses import dataclass, field

WINDOW_SECONDS = 60.0
_SLICES = 6
_SLICE_SECONDS = WINDOW_SECONDS / _SLICES
# Each step of a histogram is so much above the one before: a percentile is at most 5 % too high.
_STEP = 1.05
_LOG_STEP = math.log(_STEP)
_LEAST_SECONDS = 1e-5
_STEPS = math.ceil(math.log(3600.0 / _LEAST_SECONDS) / _LOG_STEP)
# Below so many samples a 95th percentile says nothing.
LEAST_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Signals:
    """One deployment now. Rates a second over the window, percentiles of the window; None: not known."""

    workers: int
    """Live ones that take work."""
    leaving: int
    """Live ones that drain: they still hold their GPUs."""
    slots: int
    """Generations that ``workers`` run at once, together."""
    running: int
    queued: int
    kv_used: float | None = None
    oldest_seconds: float | None = None
    arrivals_per_second: float | None = None
    placements_per_second: float | None = None
    ttft_seconds: float | None = None
    itl_seconds: float | None = None
    idle_seconds: float | None = None

    @property
    def slots_used(self) -> float | None:
        return self.running / self.slots if self.slots else None


class Percentiles:
    """Durations of the last minute: a sparse histogram per ten seconds. Times are monotonic seconds, ascending."""

    __slots__ = ("_slices",)

    def __init__(self) -> None:
        # (number of the slice, samples by step)
        self._slices: list[tuple[int, dict[int, int]]] = []

    def add(self, seconds: float, now: float, count: int = 1) -> None:
        current = int(now // _SLICE_SECONDS)
        self._forget(current)
        if not self._slices or self._slices[-1][0] != current:
            self._slices.append((current, {}))
        steps = self._slices[-1][1]
        step = min(_STEPS, max(0, math.ceil(math.log(max(seconds, _LEAST_SECONDS) / _LEAST_SECONDS) / _LOG_STEP)))
        steps[step] = steps.get(step, 0) + count

    def count(self, now: float) -> int:
        self._forget(int(now // _SLICE_SECONDS))
        return sum(sum(steps.values()) for _, steps in self._slices)

    def at(self, share: float, now: float) -> float | None:
        """The duration that ``share`` (0 to 1) of the samples do not exceed; None with too few of them."""
        total = self.count(now)
        if total < LEAST_SAMPLES:
            return None
        merged: dict[int, int] = {}
        for _, steps in self._slices:
            for step, count in steps.items():
                merged[step] = merged.get(step, 0) + count
        wanted, seen = share * total, 0
        for step in sorted(merged):
            seen += merged[step]
            if seen >= wanted:
                return _LEAST_SECONDS * _STEP**step
        return None

    def clear(self) -> None:
        self._slices.clear()

    def _forget(self, current: int) -> None:
        while self._slices and self._slices[0][0] <= current - _SLICES:
            del self._slices[0]


class Rate:
    """Events a second over the last minute, or since the first one if that is less."""

    __slots__ = ("_counts", "_since")

    def __init__(self) -> None:
        self._counts: list[tuple[int, int]] = []
        self._since: float | None = None

    def add(self, count: int, now: float) -> None:
        current = int(now // _SLICE_SECONDS)
        self._forget(current)
        if self._since is None:
            self._since = now
        if self._counts and self._counts[-1][0] == current:
            self._counts[-1] = (current, self._counts[-1][1] + count)
        elif count:
            self._counts.append((current, count))

    def per_second(self, now: float) -> float | None:
        """None before the first event, and within its first second."""
        self._forget(int(now // _SLICE_SECONDS))
        if self._since is None or now - self._since < 1.0:
            return None
        return sum(count for _, count in self._counts) / min(WINDOW_SECONDS, now - self._since)

    def _forget(self, current: int) -> None:
        while self._counts and self._counts[0][0] <= current - _SLICES:
            del self._counts[0]


@dataclass(slots=True)
class Watched:
    """What is remembered of one deployment between two decisions."""

    ttft: Percentiles = field(default_factory=Percentiles)
    itl: Percentiles = field(default_factory=Percentiles)
    started: Rate = field(default_factory=Rate)
    arrived: Rate = field(default_factory=Rate)
    queued_before: int = 0
    started_before: int = 0
    started_total: int = 0
    waiting_since: float | None = None
    busy_at: float | None = None

    def first_tokens(self, ttft_us: list[int], now: float) -> None:
        """Of one heartbeat."""
        for each in ttft_us:
            self.ttft.add(each / 1e6, now)
        self.started.add(len(ttft_us), now)
        self.started_total += len(ttft_us)
        if ttft_us:
            self.busy_at = now

    def step(self, seconds: float, running: int, now: float) -> None:
        """A gap that each of ``running`` generations has just seen."""
        if running and seconds > 0:
            self.itl.add(seconds, now, running)

    def look(self, *, queued: int, running: int, now: float) -> None:
        """Once a second: what waits and what runs. Arrivals are what began and what the queue grew by."""
        began = self.started_total - self.started_before
        self.arrived.add(max(0, began + queued - self.queued_before), now)
        self.queued_before, self.started_before = queued, self.started_total
        if queued == 0:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now
        if queued or running or self.busy_at is None:
            self.busy_at = now

    def idle(self, now: float) -> float | None:
        """Seconds since something ran or waited; None: not known."""
        return None if self.busy_at is None else now - self.busy_at

    def signals(self, *, workers: int, leaving: int, slots: int, running: int, queued: int, kv_used: float | None,
                now: float) -> Signals:  # fmt: skip
        return Signals(
            workers=workers,
            leaving=leaving,
            slots=slots,
            running=running,
            queued=queued,
            kv_used=kv_used,
            oldest_seconds=None if self.waiting_since is None else now - self.waiting_since,
            arrivals_per_second=self.arrived.per_second(now),
            placements_per_second=self.started.per_second(now),
            ttft_seconds=self.ttft.at(0.95, now),
            itl_seconds=self.itl.at(0.95, now),
            idle_seconds=self.idle(now),
        )

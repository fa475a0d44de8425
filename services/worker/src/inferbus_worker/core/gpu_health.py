"""When a GPU is sick: what it says over time, folded into one verdict that stays."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from inferbus_worker.core.gpu import Reading

# Kinds of Xid that are told of one GPU; a driver in trouble repeats the same few.
_XIDS_KEPT = 16


class Fault(Enum):
    """ECC: memory errors that it did not correct became more. XID: the driver reported one that is not a program's
    fault. LOST: it cannot be asked any more, or only after a reset. HOT: at or above its slowdown temperature."""

    ECC = "ecc"
    XID = "xid"
    LOST = "lost"
    HOT = "hot"


@dataclass(slots=True)
class GpuHealth:
    """``ignored_xids``: faults of programs, after which the GPU is as good as before. ``hot_for``: seconds at or above
    the slowdown temperature; a shorter peak is what slowing down is for. ``fault``: the first one, for good: nothing
    that a GPU says of itself later makes it trusted again. ``detail`` says it in words, for the log.
    """

    ignored_xids: Collection[int]
    hot_for: float
    fault: Fault | None = None
    detail: str = ""
    xids: list[int] = field(default_factory=list)
    _ecc: list[int | None] = field(default_factory=lambda: [None, None])
    _hot_since: float | None = None

    def read(self, reading: Reading, now: float) -> None:
        """``now``: monotonic seconds."""
        if reading.lost:
            self._is(Fault.LOST, reading.lost)
        for which, count in enumerate((reading.ecc_volatile, reading.ecc_aggregate)):
            if count is None:
                continue
            before, self._ecc[which] = self._ecc[which], count
            # The first count is of before our time; a smaller one is of a counter that was reset.
            if before is not None and count > before:
                self._is(Fault.ECC, f"{count - before} new uncorrected memory errors")
        self._feel(reading, now)

    def xid(self, number: int) -> None:
        """The driver reported it of this GPU."""
        if number not in self.xids:
            self.xids = [*self.xids, number][-_XIDS_KEPT:]
        if number not in self.ignored_xids:
            self._is(Fault.XID, f"Xid {number}")

    def _feel(self, reading: Reading, now: float) -> None:
        if reading.temperature is None or reading.slowdown is None or reading.temperature < reading.slowdown:
            self._hot_since = None
            return
        if self._hot_since is None:
            self._hot_since = now
        if now - self._hot_since >= self.hot_for:
            self._is(Fault.HOT, f"{reading.temperature:.0f} °C, slows down at {reading.slowdown:.0f} °C")

    def _is(self, fault: Fault, detail: str) -> None:
        if self.fault is None:
            self.fault, self.detail = fault, detail

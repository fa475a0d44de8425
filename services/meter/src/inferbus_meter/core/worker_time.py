"""How long each worker was in the fleet, minute by minute, as one meter saw it. Pure.

The fleet is looked at again and again; who is in it at a look was in it since the look before. Between two looks that
are too far apart nothing is known: the meter or the bus was away.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from inferbus.bus.v1.registry_pb2 import WorkerRecord

from inferbus_meter.core.native import NativeBlock
from inferbus_meter.core.rows import Rows

MINUTE_US = 60_000_000
# Minutes in memory: for what a store that is away does not take, and for the meter that takes over from another.
KEPT_US = 60 * MINUTE_US
# Looks further apart than this do not say what was between them.
GAP_US = 10_000_000

Worker = tuple[str, int]
"""Name and boot."""


@dataclass(slots=True)
class Minute:
    """Microseconds in which the fleet was watched, and of them those in which each worker was in it."""

    watched_us: int = 0
    up_us: dict[Worker, int] = field(default_factory=dict)


class WorkerTime:
    """``minutes`` by their beginning, Unix microseconds; ``workers``: what those in them said of themselves last."""

    def __init__(self) -> None:
        self.minutes: dict[int, Minute] = {}
        self.workers: dict[Worker, WorkerRecord] = {}
        self._looked_us = 0

    def look(self, now_us: int, fleet: Collection[WorkerRecord]) -> None:
        """Who is in the fleet now. The clock may jump: what it leaps over is not known."""
        since, self._looked_us = self._looked_us, now_us
        if not since < now_us <= since + GAP_US:
            return
        self.workers.update(((one.worker, one.boot), one) for one in fleet)
        while since < now_us:
            begin = since // MINUTE_US * MINUTE_US
            until = min(now_us, begin + MINUTE_US)
            minute = self.minutes.setdefault(begin, Minute())
            # A clock that was put back has the same moments again.
            minute.watched_us = min(MINUTE_US, minute.watched_us + until - since)
            for one in fleet:
                key = (one.worker, one.boot)
                minute.up_us[key] = min(MINUTE_US, minute.up_us.get(key, 0) + until - since)
            since = until
        self._forget(now_us - KEPT_US)

    def look_away(self) -> None:
        """The fleet cannot be seen: nothing is known until two looks from now."""
        self._looked_us = 0

    def _forget(self, before_us: int) -> None:
        gone = [begin for begin in self.minutes if begin + MINUTE_US <= before_us]
        if gone:
            for begin in gone:
                del self.minutes[begin]
            present = {key for minute in self.minutes.values() for key in minute.up_us}
            self.workers = {key: record for key, record in self.workers.items() if key in present}


def worker_rows(minutes: Mapping[int, Minute], workers: Mapping[Worker, WorkerRecord]) -> list[Rows]:
    """Rows of ``worker_minutes``, and of ``watched_minutes``: in this order, so that a minute that counts as watched
    has its workers."""
    found = [(begin, workers[key], us) for begin, one in minutes.items() for key, us in one.up_us.items()]
    block = NativeBlock(len(found))
    _put_minutes(block, (begin for begin, _, _ in found))
    for name in ("worker", "model", "revision", "engine", "gpu_names"):
        block.strings(name, [getattr(record, name) for _, record, _ in found])
    block.fixed("boot", "UInt64", np.array([record.boot for _, record, _ in found], np.uint64))
    block.fixed("gpus", "UInt16", np.array([min(record.gpus, 65535) for _, record, _ in found], np.uint16))
    block.fixed("up_us", "UInt32", np.array([us for _, _, us in found], np.uint32))
    watched = NativeBlock(len(minutes))
    _put_minutes(watched, minutes)
    watched.fixed("watched_us", "UInt32", np.array([one.watched_us for one in minutes.values()], np.uint32))
    rows = [Rows("worker_minutes", len(found), block.encode()), Rows("watched_minutes", len(minutes), watched.encode())]
    return [one for one in rows if one.count]


def _put_minutes(block: NativeBlock, begins: Iterable[int]) -> None:
    block.fixed("minute", "DateTime('UTC')", np.array([begin // 1_000_000 for begin in begins], np.uint32))

"""Levels for /metrics, set once a second rather than with every request."""

from collections import Counter

from inferbus.bus.v1.registry_pb2 import WorkerState
from inferbus_runtime import metrics

from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.fleet import Fleet

_STATES = {
    WorkerState.WORKER_STATE_UNSPECIFIED: "unspecified",
    WorkerState.WORKER_STATE_STARTING: "starting",
    WorkerState.WORKER_STATE_ACTIVE: "active",
    WorkerState.WORKER_STATE_DRAINING: "draining",
}


class Gauges:
    """Queue depths and fleet sizes. A series whose level is 0 is removed, so that old names do not pile up."""

    def __init__(self, queues: Queues, fleet: Fleet) -> None:
        self._queues = queues
        self._fleet = fleet
        self._depths: set[tuple[str, str]] = set()
        self._sizes: set[tuple[str, str]] = set()

    def update(self) -> None:
        depths = {(model, priority.name.lower()): count for model, priority, count, _ in self._queues.oldest()}
        sizes = Counter((each.record.model, _STATES.get(each.record.state, "?")) for each in self._fleet.workers())
        for gauge, levels, before in (
            (metrics.QUEUE_DEPTH, depths, self._depths),
            (metrics.FLEET_WORKERS, sizes, self._sizes),
        ):
            for labels in before - levels.keys():
                gauge.remove(*labels)
            for labels, level in levels.items():
                gauge.labels(*labels).set(level)
            before.clear()
            before.update(levels)

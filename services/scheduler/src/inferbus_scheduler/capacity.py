"""What of each model there is for batches, told once a second to whoever paces their lines."""

import asyncio
from collections import Counter
from collections.abc import Callable

from inferbus.bus.v1.control_pb2 import Capacity
from inferbus_bus.connection import Bus

from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.headcount import count

_EVERY_SECONDS = 1.0


class Capacities:
    """``owns``: whether a model is this scheduler's to speak of."""

    def __init__(self, bus: Bus, *, fleet: Fleet, queues: Queues, name: str, owns: Callable[[str], bool]) -> None:
        self._bus = bus
        self._fleet = fleet
        self._queues = queues
        self._name = name
        self._owns = owns

    async def run(self) -> None:
        """For ever."""
        while True:
            self.tell()
            await asyncio.sleep(_EVERY_SECONDS)

    def tell(self) -> None:
        """Of models without a worker nothing is said: whoever paces keeps a few lines waiting for them all the same."""
        waiting: Counter[str] = Counter()
        for model, priority, queued, _ in self._queues.oldest():
            if priority is Priority.BATCH:
                waiting[model] += queued
        for model, workers in count(self._fleet).workers.items():
            if self._owns(model):
                self._bus.send(
                    Capacity(
                        model=model, scheduler=self._name, slots=workers.slots,
                        free_slots=max(0, workers.slots - workers.running), waiting=waiting[model],
                    )
                )  # fmt: skip

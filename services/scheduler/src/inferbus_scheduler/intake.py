"""REQUESTS of the shards that are held here: a consumer each, and one bound on what is held over all."""

import logging
from collections.abc import Callable
from datetime import timedelta

from inferbus_bus.connection import Bus
from inferbus_bus.consumers import delete_consumer
from inferbus_bus.errors import CONSUMER_NOT_FOUND, StreamApiError
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import SHARDS, shard_requests

log = logging.getLogger(__name__)
# Of a shard, whatever the others hold.
_LEAST = 16


class Intake:
    """About ``max_held`` requests are held at once; the rest stays on the stream, unseen.

    One shard cannot take all of it: what holds less than ``floor`` may always have as many. So no more than
    ``max_held + SHARDS * floor`` are held in all.
    """

    def __init__(
        self, bus: Bus, *, on_delivery: Callable[[Delivery], None], max_held: int, ack_wait: timedelta
    ) -> None:
        self._bus = bus
        self._on_delivery = on_delivery
        self._max_held = max_held
        self.floor = max(_LEAST, max_held // (2 * SHARDS))
        self._ack_wait = ack_wait
        self._queues: dict[int, WorkQueue] = {}

    async def open(self, shard: int) -> None:
        """All that waits in the shard comes, also what a scheduler before us held. Raises like :meth:`Bus.api`."""
        try:
            # It alone knows what was delivered to whom: without it, nothing was.
            await delete_consumer(self._bus, "REQUESTS", _durable(shard))
        except StreamApiError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
        queue = self._queues.get(shard)
        if queue is None:
            queue = self._queues[shard] = WorkQueue(
                self._bus, stream="REQUESTS", durable=_durable(shard), subject=shard_requests(shard),
                on_delivery=self._on_delivery, in_flight=max(self._max_held, self.floor), ack_wait=self._ack_wait,
                room=lambda: self._room(shard),
            )  # fmt: skip
        await queue.start()

    async def stop(self, shard: int) -> None:
        """Nothing new comes of the shard; what is held can still be settled."""
        queue = self._queues.get(shard)
        if queue is not None:
            await queue.stop()

    async def close(self, shard: int) -> None:
        """After :meth:`stop`: what is held is no more our business. Whoever opens the shard next gets it."""
        queue = self._queues.get(shard)
        if queue is not None:
            await queue.close()

    @property
    def held(self) -> int:
        return sum(queue.held for queue in self._queues.values())

    def _room(self, shard: int) -> int:
        """What a shard may ask for at once: a part of what is left, so that no idle one has all of it, and no less than
        what it lacks of its floor."""
        left = self._max_held - self.held
        part = max(1, left // (2 * SHARDS)) if left > 0 else 0
        return max(part, self.floor - self._queues[shard].held)


def _durable(shard: int) -> str:
    return f"scheduler-{shard}"

"""WORK in, of one incarnation at a time."""

from collections.abc import Callable
from datetime import timedelta

from inferbus_bus.connection import Bus
from inferbus_bus.consumers import delete_consumer
from inferbus_bus.errors import CONSUMER_NOT_FOUND, StreamApiError
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import subject_token, work_subject

# Short, since a delivery that comes twice to the same process changes nothing.
_ACK_WAIT = timedelta(seconds=3)
# The consumer of a worker that does not come back. Whoever moves its work asks it how far that had gone out.
_INACTIVE = timedelta(hours=1)


class WorkSource:
    """The worker's one durable consumer, made anew for each incarnation: what an earlier one had is not delivered."""

    def __init__(self, bus: Bus, worker: str, on_delivery: Callable[[Delivery], None], in_flight: int) -> None:
        self._bus = bus
        self._worker = worker
        self._on_delivery = on_delivery
        self._in_flight = in_flight
        self._queue: WorkQueue | None = None
        self._stopped = False

    async def start(self, boot: int) -> None:
        """Take the work of this incarnation, and no other's; nothing at all after :meth:`stop`. Raises like
        :meth:`Bus.api`, and may be called again then."""
        await self._close_queue()
        if self._stopped:
            return
        durable = subject_token(self._worker)
        try:
            await delete_consumer(self._bus, "WORK", durable)
        except StreamApiError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
        queue = WorkQueue(
            self._bus,
            stream="WORK",
            durable=durable,
            subject=work_subject(self._worker, boot),
            on_delivery=self._on_delivery,
            in_flight=self._in_flight,
            ack_wait=_ACK_WAIT,
            changes=False,
            inactive=_INACTIVE,
        )
        await queue.start()
        self._queue = queue

    async def stop(self) -> None:
        """Take no more; what is held is kept alive until it is settled."""
        self._stopped = True
        if self._queue is not None:
            await self._queue.stop()

    async def close(self) -> None:
        self._stopped = True
        await self._close_queue()

    async def _close_queue(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            await queue.stop()
            await queue.close()

"""What this edge has handed to its clients, told to the stream DELIVERIES: a message a second for all that ended.

Nothing happens for a token: an answer's parts know how far they are, and that is read once, at the answer's end. An
edge that is killed takes the last second with it; of these answers the audit says that their delivery is not known.
"""

import asyncio
import logging
from collections import deque
from functools import partial

from inferbus.bus.v1.delivery_pb2 import Deliveries, DeliveryEnd
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.streaming import Answer
from inferbus_edge.wire import CLIENT_GONE, SLOW_CLIENT

log = logging.getLogger(__name__)

_EVERY_SECONDS = 1.0
_LARGEST = 8192  # entries of a message: a quarter of a megabyte
# Messages that wait while the broker is away; above it the oldest go, and their deliveries are not known.
_MAX_WAITING = 64
_ENDS = {
    "": DeliveryEnd.DELIVERY_END_COMPLETE,
    CLIENT_GONE: DeliveryEnd.DELIVERY_END_CLIENT_GONE,
    SLOW_CLIENT: DeliveryEnd.DELIVERY_END_SLOW_CLIENT,
    "draining": DeliveryEnd.DELIVERY_END_EDGE_STOPPED,
}


class DeliveryLog:
    """Notes how each answer ended here. :meth:`run` publishes, :meth:`flush` at the end."""

    def __init__(self, edge: str, publisher: Publisher) -> None:
        self._edge = edge
        self._boot = clock.now_us()
        self._publisher = publisher
        self._sequence = 0
        # Not yet in a message: the columns of one.
        self._contexts: dict[tuple[str, str, str], int] = {}
        self._ids = bytearray()
        self._columns: tuple[list[int], list[int], list[DeliveryEnd.ValueType], list[int]] = ([], [], [], [])
        self._waiting: deque[Deliveries] = deque()

    def follow(self, answer: Answer, key: KeyRecord, *, stored: bool = False) -> None:
        """Tell what becomes of ``answer``, which ``key`` asked for. ``stored``: it goes to the store, to no client."""
        answer.delivered = partial(self._note, (key.tenant_id, key.project_id, key.key_id), stored)

    def _note(self, to: tuple[str, str, str], stored: bool, answer: Answer, why: str) -> None:
        end = _ENDS.get(why, DeliveryEnd.DELIVERY_END_FAILED)
        whole = end == DeliveryEnd.DELIVERY_END_COMPLETE
        # An answer in one piece goes out at its end, or not at all.
        begun = whole or answer.sink.started
        context = self._contexts.setdefault(to, len(self._contexts))
        contexts, tokens, ends, times = self._columns
        now_us = clock.now_us()
        for part in answer.parts:
            self._ids += part.request_id
            contexts.append(context)
            tokens.append(part.index if begun else 0)
            ends.append(DeliveryEnd.DELIVERY_END_STORED if stored and whole else end)
            times.append(now_us)
        if len(tokens) >= _LARGEST:
            self._seal()

    def _seal(self) -> None:
        """What is noted becomes a message, which stays the same however often it is published."""
        contexts, tokens, ends, times = self._columns
        if not tokens:
            return
        self._sequence += 1
        sealed = Deliveries(
            edge=self._edge,
            boot=self._boot,
            sequence=self._sequence,
            contexts=[
                RequestContext(tenant_id=one, project_id=two, key_id=three) for one, two, three in self._contexts
            ],
            request_ids=bytes(self._ids),
            context_index=contexts,
            tokens=tokens,
            end=ends,
            time_us=times,
        )
        self._contexts, self._ids, self._columns = {}, bytearray(), ([], [], [], [])
        if len(self._waiting) == _MAX_WAITING:
            lost = self._waiting.popleft()
            log.error("deliveries are not told: the broker was away for too long", extra={"answers": len(lost.tokens)})
        self._waiting.append(sealed)

    async def run(self) -> None:
        """A message a second while there is something to tell, for ever."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Publish all that is noted. What the broker does not take now waits for the next time."""
        self._seal()
        while self._waiting:
            oldest = self._waiting[0]
            try:
                await self._publisher.publish(oldest)
            except InferBusError as error:
                log.warning("deliveries are told later", extra={"reason": error.reason})
                return
            if self._waiting and self._waiting[0] is oldest:
                self._waiting.popleft()

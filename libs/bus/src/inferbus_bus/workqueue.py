"""Durable hand-overs: one long-lived pull, refilled at half, explicit acks.

It carries late binding and back-pressure (ask only for what there is room for), and costs half of a fetch loop
(measured). What is held and not settled is kept alive here, so a slow holder is not taken for a dead one; when the
process dies, the server delivers again after ``ack_wait``.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from inferbus_runtime import clock
from nats.aio.msg import Msg

from inferbus_bus.connection import Bus, send_now
from inferbus_bus.consumers import create_consumer, nanoseconds, position, pull_ended, pull_request

log = logging.getLogger(__name__)
_PULL_EXPIRES = timedelta(seconds=30)
_PULL_LOST_SECONDS = _PULL_EXPIRES.total_seconds() + 5
_RETRY_SECONDS = 0.2


class Delivery:
    """One message held by us until :meth:`ack` or :meth:`nak`; both are safe twice. ``stored_us``: Unix microseconds,
    by the broker's clock."""

    __slots__ = ("_queue", "_reply", "data", "deliveries", "headers", "sequence", "stored_us", "subject")

    def __init__(self, queue: "WorkQueue", msg: Msg) -> None:
        at = position(msg.reply)
        self._queue: WorkQueue | None = queue
        self._reply = msg.reply
        self.subject: str = msg.subject
        self.data: bytes = msg.data
        self.headers: Mapping[str, str] = msg.headers or {}
        self.sequence = at.stream_sequence
        self.deliveries = at.deliveries
        self.stored_us = at.time_us

    def ack(self) -> None:
        """Done: never deliver again. Not durable across a broker kill, so a redelivery must be harmless."""
        self._settle(b"+ACK")

    def nak(self, delay: float = 0.0) -> None:
        """Deliver again, after ``delay`` seconds."""
        self._settle(b"-NAK" + (json.dumps({"delay": int(delay * 1e9)}).encode() if delay else b""))

    def in_progress(self) -> None:
        """Still held; the queue says so by itself every third of ack_wait."""
        if self._queue is not None:
            self._queue._say(self._reply, b"+WPI")

    def _settle(self, word: bytes) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue._settled(self, word)


class WorkQueue:
    """A durable consumer of a work-queue stream.

    At most ``in_flight`` deliveries are asked for or held. ``on_delivery`` is called from the connection's own task: it
    must not block and must not raise. What was held when the broker went away is delivered again as a new
    :class:`Delivery` with the same sequence; from then on only the newest settles it, and the old one does nothing.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        stream: str,
        durable: str,
        subject: str,
        on_delivery: Callable[[Delivery], None],
        in_flight: int,
        ack_wait: timedelta = timedelta(seconds=10),
        room: Callable[[], int] | None = None,
        changes: bool = True,
        inactive: timedelta | None = None,
    ) -> None:
        """``room``: how many may be asked for at once now, where several queues share what one process holds.
        ``changes``: of a durable of this name; without it one with other settings is left alone, as another's.
        ``inactive``: the broker forgets the consumer, and what it knows of deliveries, when nobody has asked it for so
        long; None: never.
        """
        self._bus = bus
        self._stream = stream
        self._durable = durable
        self._subject = subject
        self._on_delivery = on_delivery
        self._in_flight = in_flight
        self._ack_wait = ack_wait
        self._room = room
        self._changes = changes
        self._inactive = inactive
        self._inbox = bus.inbox("wq") + "."
        self._next_pull = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._pulls: dict[str, tuple[int, float]] = {}
        self._pull_count = 0
        self._held: dict[int, Delivery] = {}  # by stream sequence: a redelivery takes the place of the old handle
        self._unsubscribe: Callable[[], Awaitable[None]] | None = None
        self._open = False
        self._alive_at = 0.0  # when held deliveries were last kept alive
        self._keeper: asyncio.Task[None] | None = None
        bus.on_disconnect(self._disconnected)

    @property
    def held(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        """Make or bind the durable consumer and begin to pull. Raises like :meth:`Bus.api`."""
        await self._bind()
        self._unsubscribe = await self._bus.listen(self._inbox + "*", self._received)
        self._open = True
        self._refill()
        self._keeper = asyncio.create_task(self._keep(), name=f"work queue {self._subject}")

    async def stop(self) -> None:
        """Take no more; what is held stays held until it is settled. What was on its way is given back."""
        self._open = False
        self._pulls.clear()
        if self._unsubscribe is not None:
            # Without the inbox the server ends our open pull; else it would give a nak straight back to us.
            unsubscribe, self._unsubscribe = self._unsubscribe, None
            await unsubscribe()

    async def close(self) -> None:
        """After :meth:`stop`: keep nothing alive any more. It may be started again, and then knows of nothing."""
        self._open = False
        self._held.clear()
        if self._keeper is not None:
            self._keeper.cancel()

    async def _bind(self) -> None:
        await create_consumer(
            self._bus, self._stream, self._durable,
            {
                "durable_name": self._durable, "filter_subject": self._subject, "ack_policy": "explicit",
                "deliver_policy": "all", "ack_wait": nanoseconds(self._ack_wait), "max_deliver": -1,
                "max_ack_pending": 2 * self._in_flight + 64, "max_waiting": 64,
                **({} if self._inactive is None else {"inactive_threshold": nanoseconds(self._inactive)}),
            },
            changes=self._changes,
        )  # fmt: skip

    def _refill(self) -> None:
        if not self._open or not self._bus.connected:
            return
        asked = sum(count for count, _ in self._pulls.values())
        room, most = self._in_flight - len(self._held) - asked, self._in_flight
        if self._room is not None:
            most = self._room()
            room = min(room, most - asked)
        # At half: small refills would cost a message each, a late one would starve the queue.
        if room <= 0 or (asked and room < (most + 1) // 2):
            return
        self._pull_count += 1
        inbox = f"{self._inbox}{self._pull_count}"
        self._pulls[inbox] = (room, clock.monotonic() + _PULL_LOST_SECONDS)
        send_now(self._bus.nc.publish(self._next_pull, pull_request(room, _PULL_EXPIRES), inbox))

    async def _received(self, msg: Msg) -> None:
        if msg.headers and "Status" in msg.headers and not msg.data:
            # Else the consumer has changed or is gone (409), or JetStream is not back yet (503).
            if msg.headers["Status"] != "100":
                self._pulls.pop(msg.subject, None)
                if pull_ended(msg.headers):
                    self._refill()
            return
        self._count_down()
        delivery = Delivery(self, msg)
        if not self._open:
            delivery.nak()
            return
        old = self._held.pop(delivery.sequence, None)
        if old is not None:
            old._queue = None
        self._held[delivery.sequence] = delivery
        self._on_delivery(delivery)
        self._refill()

    def _count_down(self) -> None:
        """A delivery keeps its original subject, so it does not name its pull: the server serves the oldest first."""
        for inbox, (count, deadline) in self._pulls.items():
            if count > 1:
                self._pulls[inbox] = (count - 1, deadline)
            else:
                del self._pulls[inbox]
            return

    def _settled(self, delivery: Delivery, word: bytes) -> None:
        self._held.pop(delivery.sequence, None)
        self._say(delivery._reply, word)
        self._refill()

    def _say(self, reply: str, word: bytes) -> None:
        if self._bus.connected:
            send_now(self._bus.nc.publish(reply, word))

    def _disconnected(self) -> None:
        self._pulls.clear()

    async def _keep(self) -> None:
        """Keep held deliveries alive, and ask again after outages."""
        while True:
            await asyncio.sleep(min(_RETRY_SECONDS if not self._pulls else 1.0, self._ack_wait.total_seconds() / 3))
            if not self._bus.connected:
                continue
            try:
                await self._tend(clock.monotonic())
            except Exception as error:  # noqa: BLE001 (this task must outlive whatever the client raises)
                log.warning("work queue waits", extra={"stream": self._stream, "error": repr(error)})

    async def _tend(self, now: float) -> None:
        self._keep_alive(now)
        for inbox in [inbox for inbox, (_, deadline) in self._pulls.items() if deadline < now]:
            del self._pulls[inbox]
        if self._open and not self._pulls and self._has_room():
            await self._bind()
            self._refill()

    def _has_room(self) -> bool:
        return len(self._held) < self._in_flight and (self._room is None or self._room() > 0)

    def _keep_alive(self, now: float) -> None:
        if now - self._alive_at < self._ack_wait.total_seconds() / 3:
            return
        self._alive_at = now
        for delivery in list(self._held.values()):
            delivery.in_progress()

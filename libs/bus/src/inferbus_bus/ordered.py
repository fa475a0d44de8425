"""Everything of a stream from a sequence on, in order, each message once: an ordered push consumer of our own.

nats-py's ordered consumer starts again at sequence 1 when its consumer is lost before the first message (measured),
and an in-memory consumer is always lost with a broker restart. This one holds the position itself: whatever happens,
it goes on at the last seen sequence + 1.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from nats.aio.msg import Msg

from inferbus_bus.connection import Bus, send_now
from inferbus_bus.consumers import Position, create_consumer, delete_consumer, nanoseconds, position
from inferbus_bus.errors import StreamApiError

log = logging.getLogger(__name__)
_HEARTBEAT = timedelta(seconds=2)
_SILENCE_SECONDS = 3 * _HEARTBEAT.total_seconds()
_RETRY_SECONDS = 0.2


class OrderedReader:
    """Calls ``on_message(msg, position)`` from the connection's own task: it must not block and must not raise."""

    def __init__(
        self,
        bus: Bus,
        *,
        stream: str,
        subject: str,
        on_message: Callable[[Msg, Position], None],
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._on_message = on_message
        self.last_sequence = 0
        self._expected = 1
        self._heard = 0.0
        self._name = ""
        self._unsubscribe: Callable[[], Awaitable[None]] | None = None
        self._broken = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._stopped = False

    async def start(self, start: dict[str, Any], last_sequence: int) -> int:
        """Begin with the delivery policy ``start``; ``last_sequence`` is the position before the first message.

        Returns how many messages are waiting. Raises like :meth:`Bus.api`.
        """
        self.last_sequence = last_sequence
        pending = await self._create(start)
        self._bus.on_reconnect(self._mark_broken)
        self._keeper = asyncio.create_task(self._keep(), name=f"ordered {self._subject}")
        return pending

    async def stop(self) -> None:
        self._stopped = True
        if self._keeper is not None:
            self._keeper.cancel()
        await self._drop()

    async def _create(self, start: dict[str, Any]) -> int:
        await self._drop()
        inbox = self._bus.inbox("ord")
        # The inbox is unique on this connection; the time makes the name unique over restarts of the service, whose
        # old consumer lives on for a moment.
        self._name = f"{inbox.replace('.', '-')}-{clock.now_us()}"
        self._expected = 1
        self._heard = clock.monotonic()
        self._unsubscribe = await self._bus.listen(inbox, self._received)
        info = await create_consumer(
            self._bus, self._stream, self._name,
            {
                "deliver_subject": inbox, "filter_subject": self._subject, "ack_policy": "none", "max_deliver": 1,
                "mem_storage": True, "num_replicas": 1, "flow_control": True,
                "idle_heartbeat": nanoseconds(_HEARTBEAT),
                "inactive_threshold": nanoseconds(10 * _HEARTBEAT), **start,
            },
        )  # fmt: skip
        return int(info.get("num_pending", 0))

    async def _drop(self) -> None:
        if self._unsubscribe is not None:
            unsubscribe, self._unsubscribe = self._unsubscribe, None
            await unsubscribe()
            if self._bus.connected:
                # Gone already, or it goes by its inactive threshold.
                with suppress(StreamApiError, InferBusError):
                    await delete_consumer(self._bus, self._stream, self._name)

    async def _received(self, msg: Msg) -> None:
        self._heard = clock.monotonic()
        if msg.headers and "Status" in msg.headers:
            self._control(msg)
            return
        at = position(msg.reply)
        if at.consumer_sequence != self._expected:
            self._broken.set()
            return
        self._expected += 1
        self.last_sequence = at.stream_sequence
        self._on_message(msg, at)

    def _control(self, msg: Msg) -> None:
        """Idle heartbeats and flow control (ADR-15): a heartbeat says what was sent last, so a lost tail shows."""
        headers = msg.headers or {}
        if headers["Status"] != "100":
            self._broken.set()
            return
        reply = msg.reply or headers.get("Nats-Consumer-Stalled", "")
        if reply:
            send_now(self._bus.nc.publish(reply))
        elif int(headers.get("Nats-Last-Consumer", self._expected - 1)) != self._expected - 1:
            self._broken.set()

    async def _mark_broken(self) -> None:
        self._broken.set()

    async def _keep(self) -> None:
        """Make the consumer again at the next sequence whenever it is lost."""
        while not self._stopped:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS / 2):
                    await self._broken.wait()
            except TimeoutError:
                if clock.monotonic() - self._heard < _SILENCE_SECONDS:
                    continue
            if not self._bus.connected:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._broken.clear()
            try:
                await self._create({"deliver_policy": "by_start_sequence", "opt_start_seq": self.last_sequence + 1})
                log.info("ordered reader goes on", extra={"stream": self._stream, "sequence": self.last_sequence + 1})
            except Exception as error:  # noqa: BLE001 (this task must outlive whatever the client raises)
                log.warning("ordered reader retries", extra={"stream": self._stream, "error": repr(error)})
                self._broken.set()
                await asyncio.sleep(_RETRY_SECONDS)

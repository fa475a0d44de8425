"""The log itself: frames of TOKENS by stream sequence, for whoever keeps the position (meter, audit, recovery)."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

from inferbus_contracts.subjects import name_of_token
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from nats.aio.msg import Msg

from inferbus_bus.connection import Bus, send_now
from inferbus_bus.consumers import create_consumer, delete_consumer, nanoseconds, position, pull_ended, pull_request
from inferbus_bus.errors import StreamApiError

log = logging.getLogger(__name__)
_WINDOW = 1000
_EXPIRES = timedelta(seconds=5)
_INACTIVE = timedelta(seconds=60)
_RETRY_SECONDS = 0.2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Stored = tuple[int, int, bytes]
"""(stream sequence, Unix microseconds when it was stored, data)."""


class FrameLog:
    """Reads by position; nothing is acknowledged, since the reader's own store knows how far it is."""

    def __init__(self, bus: Bus, stream: str = "TOKENS") -> None:
        self._bus = bus
        self._stream = stream

    async def bounds(self) -> tuple[int, int]:
        """(first, last) stream sequence that is stored; last < first if there is none. Raises like :meth:`Bus.api`."""
        first, last, _ = await self.state()
        return first, last

    async def state(self) -> tuple[int, int, int]:
        """The bounds, and when the stream was made, in Unix microseconds: by that it differs from one before it."""
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        return int(info["state"]["first_seq"]), int(info["state"]["last_seq"]), _unix_us(info["created"])

    async def newest_us(self) -> int:
        """When the last one was stored, in Unix microseconds, by the broker's clock; 0: there is none. Raises like
        :meth:`Bus.api`."""
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        return max(0, _unix_us(info["state"]["last_ts"]))

    async def edges(self) -> list[str]:
        """Whose frames are stored: the edges named in the subjects of TOKENS. Raises like :meth:`Bus.api`."""
        info = await self._bus.api(f"STREAM.INFO.{self._stream}", {"subjects_filter": "tok.>"})
        subjects: dict[str, int] = info["state"].get("subjects") or {}
        return sorted({name_of_token(subject.split(".")[1]) for subject in subjects})

    async def read(
        self,
        first: int,
        last: int | None = None,
        *,
        subject: str = "tok.>",
        since_us: int | None = None,
        window: int = _WINDOW,
    ) -> AsyncGenerator[list[Stored], None]:
        """Batches in stream order from sequence ``first`` (or, if it is given, of what was stored from ``since_us`` on,
        by the broker's clock).

        With ``last`` it ends once everything up to and including it was given; without, it goes on for ever. A batch is
        what is there, at least one message. ``window``: that many messages are on the way or wait here, at most, or of
        large ones 16 MiB; what else this connection brings comes behind them. Survives broker restarts.
        """
        cursor = _Cursor(self._bus, self._stream, subject, window)
        try:
            start: dict[str, Any] = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(first, 1)}
            if since_us is not None:
                start = {"deliver_policy": "by_start_time", "opt_start_time": rfc3339(since_us)}
            await cursor.open(start, first - 1)
            while True:
                batch = await cursor.take(last)
                if last is not None:
                    batch = [stored for stored in batch if stored[0] <= last]
                if batch:
                    yield batch
                if last is not None and cursor.reached(last):
                    return
        finally:
            await cursor.close()


def _unix_us(said: str) -> int:
    return (datetime.fromisoformat(said) - _EPOCH) // timedelta(microseconds=1)


class _Cursor:
    """One ephemeral ack-none pull consumer, made again at the next sequence when it is lost."""

    def __init__(self, bus: Bus, stream: str, subject: str, window: int) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self._window = window
        self._ready: list[Stored] = []
        self._asked = 0
        self._wake = asyncio.Event()
        self._position = 0
        self._pending = 1
        self._start: dict[str, Any] = {}
        self._name = ""
        self._stop: Any = None
        self._lost = False
        self._expected = 1

    async def open(self, start: dict[str, Any], position_before: int) -> None:
        self._start, self._position = start, position_before
        while True:
            try:
                await self._create()
                return
            except (StreamApiError, InferBusError) as error:
                log.warning("log reader waits", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_SECONDS)

    async def _create(self) -> None:
        await self.close()
        self._lost, self._asked, self._expected = False, 0, 1
        inbox = self._bus.inbox("log")
        self._name = f"{inbox.replace('.', '-')}-{clock.now_us()}"
        self._inbox = inbox
        self._stop = await self._bus.listen(inbox, self._received)
        info = await create_consumer(
            self._bus, self._stream, self._name,
            {
                "filter_subject": self._subject, "ack_policy": "none", "mem_storage": True, "num_replicas": 1,
                "inactive_threshold": nanoseconds(_INACTIVE), **self._start,
            },
        )  # fmt: skip
        self._pending = int(info.get("num_pending", 0))

    def reached(self, last: int) -> bool:
        return self._position >= last or (self._pending == 0 and not self._ready)

    async def take(self, last: int | None) -> list[Stored]:
        """What is there; waits for at least one message, unless ``last`` is known to be behind us."""
        while not self._ready:
            if last is not None and self.reached(last):
                return []
            if self._lost or not self._bus.connected:
                await self._again()
                continue
            self._pull(last)
            self._wake.clear()
            try:
                async with asyncio.timeout(_EXPIRES.total_seconds() + 2):
                    await self._wake.wait()
            except TimeoutError:
                self._lost = True
        batch, self._ready = self._ready, []
        self._position = batch[-1][0]
        if self._asked <= self._window // 2 and not self._lost:
            self._pull(last)
        return batch

    async def _again(self) -> None:
        if self._ready:
            self._position = self._ready[-1][0]
        if self._position > 0:
            self._start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._position + 1}
        await asyncio.sleep(_RETRY_SECONDS)
        if self._bus.connected:
            await self.open(self._start, self._position)

    def _pull(self, last: int | None) -> None:
        want = self._window - self._asked - len(self._ready)
        if last is not None:  # not what lies behind it
            want = min(want, last - (self._ready[-1][0] if self._ready else self._position) - self._asked)
        if want <= 0 or not self._bus.connected:
            return
        self._asked += want
        request = pull_request(want, _EXPIRES)
        send_now(self._bus.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", request, self._inbox))

    async def _received(self, msg: Msg) -> None:
        if msg.headers and "Status" in msg.headers and not msg.data:
            if pull_ended(msg.headers):  # how much of it was left, it says
                self._asked = max(0, self._asked - int(msg.headers.get("Nats-Pending-Messages", self._asked)))
                if msg.headers["Status"] == "408" and self._pending and not self._ready:
                    self._lost = True  # what was to come was purged: a new consumer says what is left
            elif msg.headers["Status"] != "100":
                self._lost = True
            self._wake.set()
            return
        at = position(msg.reply)
        if self._lost or at.consumer_sequence != self._expected:
            self._lost = True  # something was lost on the way: all from there on is asked for again
            self._wake.set()
            return
        self._expected += 1
        self._asked -= 1
        self._pending = at.pending
        self._ready.append((at.stream_sequence, at.time_us, msg.data))
        self._wake.set()

    async def close(self) -> None:
        if self._stop is None:
            return
        stop, self._stop = self._stop, None
        await stop()
        if self._bus.connected:
            try:
                await delete_consumer(self._bus, self._stream, self._name)
            except (StreamApiError, InferBusError) as error:
                log.debug("consumer gone already", extra={"error": str(error)})


def rfc3339(unix_us: int) -> str:
    """A time as JetStream's API wants it."""
    return datetime.fromtimestamp(unix_us / 1e6, UTC).isoformat().replace("+00:00", "Z")

"""Registries: small maps that every process holds whole, from a KV bucket's watch. Reads never touch the network."""

import asyncio
import heapq
import logging
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from inferbus_contracts.subjects import name_of_token, subject_token
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from inferbus_bus.connection import Bus
from inferbus_bus.consumers import Position
from inferbus_bus.ordered import OrderedReader
from inferbus_bus.publish import PubAck, Publisher
from inferbus_bus.store import Record, Store

log = logging.getLogger(__name__)
_EVERYTHING = {"deliver_policy": "last_per_subject"}
# How long a deletion is told. Watches hear of it at once, and read everything when they begin anew; so it is long only
# against the time for which one that goes on may lag behind.
_MARKER_TTL = "120s"
# After its time the broker drops a marker; we forget it later than that, never sooner.
_FORGET_SECONDS = 60.0
# "Nothing is pending" may be said a moment too soon of an entry that is being overwritten (measured).
_SETTLE_SECONDS = 1.0
# What takes so many times as long is held up by somebody.
_QUIET = 1.25
_UNITS = {"h": 3600, "m": 60, "s": 1}


T = TypeVar("T", bound=Record)


class _Watch(OrderedReader):
    """An ordered reader that begins anew with the whole bucket, not where it was: meanwhile entries may have been
    deleted, and the markers of that have had their time."""

    def __init__(
        self,
        bus: Bus,
        *,
        stream: str,
        subject: str,
        on_message: Callable[[Msg, Position], None],
        on_begin: Callable[[], None],
        on_idle: Callable[[], None],
    ) -> None:
        """``on_begin``: all that is there comes now. ``on_idle``: all that is there has come."""
        super().__init__(bus, stream=stream, subject=subject, on_message=on_message)
        self._on_begin = on_begin
        self._on_idle = on_idle

    @property
    def following(self) -> bool:
        """Whether nothing is known to have been missed."""
        return self._bus.connected and not self._broken.is_set()

    async def _create(self, start: dict[str, Any]) -> int:
        await self._drop()
        self._on_begin()
        pending = await super()._create(_EVERYTHING)
        if pending == 0:
            self._on_idle()
        return pending

    def _control(self, msg: Msg) -> None:
        super()._control(msg)
        headers = msg.headers or {}
        # An idle heartbeat: not one that says that it waits for our answer.
        if "Nats-Last-Consumer" in headers and "Nats-Consumer-Stalled" not in headers and self.following:
            self._on_idle()


class Registry(Generic[T]):
    """One bucket. After a broker restart the last known content stays readable until the present one is here."""

    def __init__(self, bus: Bus, bucket: str, record: type[T]) -> None:
        self._bus = bus
        self._record = record
        self._prefix = f"$KV.{bucket}."
        self._records: dict[str, T] = {}
        # The last stream sequence of each name, of those just deleted too: what a create or an update must expect.
        self._revisions: dict[str, int] = {}
        # (when to forget it, name, revision) of those deleted, the next one first.
        self._deleted: list[tuple[float, str, int]] = []
        # While the whole bucket is being read: the names known before that have not come yet.
        self._missing: set[str] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[str, T | None], None]] = []
        self._loaded = asyncio.Event()
        self._publisher = Publisher(bus)
        self._entries = Store(bus, bucket, record, self._publisher)
        self._reader = _Watch(
            bus, stream=f"KV_{bucket}", subject=f"{self._prefix}>", on_message=self._received,
            on_begin=self._begun, on_idle=self._idle,
        )  # fmt: skip

    async def start(self) -> None:
        """Returns when the present content is here. Raises like :meth:`Bus.api`, TimeoutError after 10 s."""
        await self._publisher.start()
        await self._reader.start(_EVERYTHING, 0)
        async with asyncio.timeout(10):
            await self._loaded.wait()

    async def stop(self) -> None:
        self._cancel_sweep()
        await self._reader.stop()

    @property
    def loaded(self) -> bool:
        return self._loaded.is_set()

    @property
    def following(self) -> bool:
        """Whether the broker tells it what changes: without that what is here may be old."""
        return self._loaded.is_set() and self._reader.following

    def get(self, name: str) -> T | None:
        return self._records.get(name)

    def items(self) -> Mapping[str, T]:
        return MappingProxyType(self._records)

    def revision(self, name: str) -> int:
        """The sequence of the name's last change, 0 if it never was."""
        return self._revisions.get(name, 0)

    async def last_revision(self, name: str) -> int:
        """The same as the broker has it now, which may not have come here yet. Raises InferBusError UNAVAILABLE."""
        _, revision = await self._entries.last(name)
        return revision

    def on_change(self, callback: Callable[[str, T | None], None]) -> None:
        """Called with (name, record), or (name, None) when it is deleted or its lease has ended."""
        self._callbacks.append(callback)

    async def put(self, name: str, record: T, ttl: timedelta | None = None) -> PubAck:
        """Store whatever was there before. ``ttl`` (whole seconds) ends the entry by itself."""
        return await self._store(name, record.SerializeToString(), _lifetime(ttl))

    async def create(self, name: str, record: T, ttl: timedelta | None = None) -> PubAck:
        """Store if nothing is there. Raises InferBusError CONFLICT if there is, or if it has just changed."""
        revision = 0 if name in self._records else self.revision(name)
        return await self.update(name, record, revision, ttl)

    async def update(self, name: str, record: T, revision: int, ttl: timedelta | None = None) -> PubAck:
        """Store if the name's last change is still ``revision``. Raises InferBusError CONFLICT if not."""
        try:
            return await self._store_after(revision, name, record, ttl)
        except InferBusError as error:
            was_deletion = name not in self._records and self._revisions.get(name) == revision
            if error.reason != "changed_meanwhile" or not was_deletion:
                raise
        # The broker forgets a deletion before we do: then it is still the last change if nothing at all is there.
        return await self._store_after(0, name, record, ttl)

    async def delete(self, name: str, revision: int | None = None) -> PubAck:
        """With ``revision`` only if that is still the name's last change. Raises InferBusError CONFLICT if not."""
        headers = {"KV-Operation": "DEL", "Nats-TTL": _MARKER_TTL}
        if revision is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        return await self._store(name, b"", headers)

    async def _store_after(self, revision: int, name: str, record: T, ttl: timedelta | None) -> PubAck:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision), **_lifetime(ttl)}
        return await self._store(name, record.SerializeToString(), headers)

    async def _store(self, name: str, data: bytes, headers: dict[str, str]) -> PubAck:
        return await self._publisher.publish_raw(self._prefix + subject_token(name), data, headers)

    def _begun(self) -> None:
        self._cancel_sweep()
        self._missing = set(self._revisions)

    def _idle(self) -> None:
        self._loaded.set()
        if self._missing and self._sweeper is None:
            self._sweeper = asyncio.create_task(self._settle(), name="what is not in the bucket any more")

    async def _settle(self) -> None:
        """What is sent in that time is read. Where the broker or this process stands still meanwhile, it was none: then
        it begins anew."""
        began, settled = clock.monotonic(), False
        while not settled:
            await asyncio.sleep(_SETTLE_SECONDS)
            try:
                await self._bus.nc.flush()
            except NatsError:
                self._sweeper = None  # it is said again that all has come
                return
            before, began = began, clock.monotonic()
            settled = began - before < _QUIET * _SETTLE_SECONDS
        self._sweeper = None
        self._sweep()

    def _sweep(self) -> None:
        """The whole bucket has been read: what has not come was deleted."""
        if not self._reader.following:
            return  # it will begin anew
        missing, self._missing = self._missing, set()
        for name in missing:
            self._revisions.pop(name, None)
            if self._records.pop(name, None) is not None:
                self._tell(name, None)

    def _cancel_sweep(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _received(self, msg: Msg, at: Position) -> None:
        name = name_of_token(msg.subject.removeprefix(self._prefix))
        headers = msg.headers or {}
        self._missing.discard(name)
        before, revision = self._records.get(name), self._revisions.get(name)
        self._revisions[name] = at.stream_sequence
        # KV-Operation: deleted by a client; Nats-Marker-Reason: ended by its time to live (MaxAge).
        record: T | None = None
        if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
            self._records.pop(name, None)
            if revision != at.stream_sequence:
                self._forget_later(name, at.stream_sequence, headers.get("Nats-TTL", ""))
        else:
            record = self._records[name] = self._record.FromString(msg.data)  # type: ignore[assignment]
        # A broker that lost its last changes in a crash gives their revisions again, to other ones.
        if revision != at.stream_sequence or before != record:
            self._tell(name, record)
        if at.pending == 0:
            self._idle()

    def _forget_later(self, name: str, revision: int, ttl: str) -> None:
        """Deletions must not add up in memory: forget this one after its time, and now those that have had theirs."""
        now = clock.monotonic()
        if seconds := sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([hms])", ttl)):
            heapq.heappush(self._deleted, (now + seconds + _FORGET_SECONDS, name, revision))
        while self._deleted and self._deleted[0][0] <= now:
            _, old, last = heapq.heappop(self._deleted)
            if self._revisions.get(old) == last and old not in self._records:
                del self._revisions[old]

    def _tell(self, name: str, record: T | None) -> None:
        for callback in self._callbacks:
            callback(name, record)


def _lifetime(ttl: timedelta | None) -> dict[str, str]:
    return {} if ttl is None else {"Nats-TTL": f"{max(1, round(ttl.total_seconds()))}s"}

"""Registries: small maps that every process holds whole, from a KV bucket's watch. Reads never touch the network."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from inferbus_contracts.subjects import name_of_token, subject_token
from nats.aio.msg import Msg

from inferbus_bus.connection import Bus
from inferbus_bus.consumers import Position
from inferbus_bus.ordered import OrderedReader
from inferbus_bus.publish import PubAck, Publisher

log = logging.getLogger(__name__)


class Record(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 (protobuf's name)

    @classmethod
    def FromString(cls, data: bytes) -> "Record": ...  # noqa: N802 (protobuf's name)


T = TypeVar("T", bound=Record)


class Registry(Generic[T]):
    """One bucket. After a broker restart the last known content stays readable and the watch goes on where it was."""

    def __init__(self, bus: Bus, bucket: str, record: type[T]) -> None:
        self._bus = bus
        self._record = record
        self._prefix = f"$KV.{bucket}."
        self._records: dict[str, T] = {}
        # The last stream sequence of each name, deleted ones included: what a create or an update must expect.
        self._revisions: dict[str, int] = {}
        self._callbacks: list[Callable[[str, T | None], None]] = []
        self._loaded = asyncio.Event()
        self._publisher = Publisher(bus)
        self._reader = OrderedReader(bus, stream=f"KV_{bucket}", subject=f"{self._prefix}>", on_message=self._received)

    async def start(self) -> None:
        """Returns when the present content is here. Raises like :meth:`Bus.api`, TimeoutError after 10 s."""
        await self._publisher.start()
        pending = await self._reader.start({"deliver_policy": "last_per_subject"}, 0)
        if pending:
            async with asyncio.timeout(10):
                await self._loaded.wait()
        self._loaded.set()

    async def stop(self) -> None:
        await self._reader.stop()

    @property
    def loaded(self) -> bool:
        return self._loaded.is_set()

    def get(self, name: str) -> T | None:
        return self._records.get(name)

    def items(self) -> Mapping[str, T]:
        return MappingProxyType(self._records)

    def revision(self, name: str) -> int:
        """The sequence of the name's last change, 0 if it never was."""
        return self._revisions.get(name, 0)

    def on_change(self, callback: Callable[[str, T | None], None]) -> None:
        """Called with (name, record), or (name, None) when it is deleted or its lease has ended."""
        self._callbacks.append(callback)

    async def put(self, name: str, record: T, ttl: timedelta | None = None) -> PubAck:
        """Store whatever was there before. ``ttl`` (whole seconds) ends the entry by itself."""
        return await self._store(name, record.SerializeToString(), ttl, {})

    async def create(self, name: str, record: T, ttl: timedelta | None = None) -> PubAck:
        """Store if nothing is there. Raises InferBusError CONFLICT if there is, or if it has just changed."""
        revision = 0 if name in self._records else self.revision(name)
        return await self.update(name, record, revision, ttl)

    async def update(self, name: str, record: T, revision: int, ttl: timedelta | None = None) -> PubAck:
        """Store if the name's last change is still ``revision``. Raises InferBusError CONFLICT if not."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        return await self._store(name, record.SerializeToString(), ttl, headers)

    async def delete(self, name: str) -> PubAck:
        return await self._store(name, b"", None, {"KV-Operation": "DEL"})

    async def _store(self, name: str, data: bytes, ttl: timedelta | None, headers: dict[str, str]) -> PubAck:
        if ttl is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl.total_seconds()))}s"
        return await self._publisher.publish_raw(self._prefix + subject_token(name), data, headers)

    def _received(self, msg: Msg, at: Position) -> None:
        name = name_of_token(msg.subject.removeprefix(self._prefix))
        headers = msg.headers or {}
        self._revisions[name] = at.stream_sequence
        # KV-Operation: deleted by a client; Nats-Marker-Reason: ended by its time to live (MaxAge).
        if "KV-Operation" in headers or "Nats-Marker-Reason" in headers:
            self._records.pop(name, None)
            self._tell(name, None)
        else:
            record = self._record.FromString(msg.data)
            self._records[name] = record  # type: ignore[assignment]
            self._tell(name, record)  # type: ignore[arg-type]
        if at.pending == 0:
            self._loaded.set()

    def _tell(self, name: str, record: T | None) -> None:
        for callback in self._callbacks:
            callback(name, record)

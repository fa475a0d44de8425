"""Single entries of a KV bucket, asked for by name: for buckets too large to be held whole (see :mod:`.registry`)."""

from datetime import timedelta
from typing import Generic, Protocol, TypeVar

from inferbus_contracts.subjects import subject_token
from inferbus_runtime.errors import InferBusError, unavailable
from nats.errors import Error as NatsError

from inferbus_bus.connection import Bus
from inferbus_bus.errors import RETRY_AFTER
from inferbus_bus.publish import PubAck, Publisher


class Record(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 (protobuf's name)

    @classmethod
    def FromString(cls, data: bytes) -> "Record": ...  # noqa: N802 (protobuf's name)


T = TypeVar("T", bound=Record)
_MARKERS = ("KV-Operation", "Nats-Marker-Reason")
# How long a deletion is told to whoever reads; after that nothing of the entry is left.
_MARKER_TTL = "300s"


class Store(Generic[T]):
    """One bucket. Each call is a round trip to the broker."""

    def __init__(self, bus: Bus, bucket: str, record: type[T], publisher: Publisher) -> None:
        self._bus = bus
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._record = record
        self._publisher = publisher

    async def get(self, name: str) -> tuple[T, int] | None:
        """The record and its revision; None if there is none. Raises InferBusError UNAVAILABLE."""
        found, revision = await self.last(name)
        return None if found is None else (found, revision)

    async def last(self, name: str) -> tuple[T | None, int]:
        """(record or None, revision of the last change; 0: there never was one). Raises InferBusError UNAVAILABLE."""
        try:
            reply = await self._bus.nc.request(
                f"$JS.API.DIRECT.GET.{self._stream}.{self._subject(name)}", b"", timeout=5.0
            )
        except (NatsError, OSError) as error:
            raise unavailable(
                "bus_unavailable", "The service is restarting; retry.", retry_after=RETRY_AFTER,
                diagnostic=f"direct get from {self._stream}: {error!r}",
            ) from error  # fmt: skip
        headers = reply.headers or {}
        if headers.get("Status") == "404":
            return None, 0
        if "Status" in headers:
            raise unavailable(
                "bus_unavailable", "The service is restarting; retry.", retry_after=RETRY_AFTER,
                diagnostic=f"direct get from {self._stream}: {headers}",
            )  # fmt: skip
        revision = int(headers["Nats-Sequence"])
        if any(marker in headers for marker in _MARKERS):
            return None, revision
        return self._record.FromString(reply.data), revision  # type: ignore[return-value]

    async def create(self, name: str, record: T, ttl: timedelta | None = None) -> PubAck:
        """Store if nothing is there. Raises InferBusError CONFLICT if there is, UNAVAILABLE, RESOURCE_EXHAUSTED."""
        try:
            return await self.update(name, record, 0, ttl)
        except InferBusError as error:
            # What was deleted or has run out leaves a marker with a revision of its own.
            found, revision = await self.last(name)
            if found is not None or revision == 0:
                raise error from None
        return await self.update(name, record, revision, ttl)

    async def update(self, name: str, record: T, revision: int, ttl: timedelta | None = None) -> PubAck:
        """Store if the name's last change is still ``revision``. Raises like :meth:`create`. ``ttl``: whole seconds."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        if ttl is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl.total_seconds()))}s"
        return await self._publisher.publish_raw(self._subject(name), record.SerializeToString(), headers)

    async def delete(self, name: str, revision: int | None = None) -> PubAck:
        """With ``revision`` only if that is still the name's last change. Raises like :meth:`create`."""
        headers = {"KV-Operation": "DEL", "Nats-TTL": _MARKER_TTL}
        if revision is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(revision)
        return await self._publisher.publish_raw(self._subject(name), b"", headers)

    def _subject(self, name: str) -> str:
        return self._prefix + subject_token(name)

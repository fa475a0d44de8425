"""The object store of the bus: large values in chunks on a stream (ADR-20), readable by ``nats object get``.

nats-py's own reads a whole object into memory, at 3 to 21 MiB a second (measured); this one streams in both directions,
and holds a few chunks at a time.
"""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.subjects import OBJECTS
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable
from nats.errors import Error as NatsError

from inferbus_bus.connection import Bus
from inferbus_bus.errors import RETRY_AFTER, StreamApiError
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher

CHUNK_BYTES = 512 << 10
# On their way to the broker at once.
_IN_FLIGHT = 8
# On their way from it.
_READ_WINDOW = 8
_TIMEOUT_SECONDS = 30.0
# For chunks on their way when the rest has failed.
_SETTLE_SECONDS = 5.0
_ROLLUP = {"Nats-Rollup": "sub"}


class ObjectInfo(NamedTuple):
    """``digest``: SHA-256. ``chunks``: where in the bucket they are; ``first`` and ``last``: of their stream sequences,
    0 if there are none."""

    name: str
    size: int
    digest: bytes
    chunks: str
    first: int
    last: int


class Objects:
    """One bucket. ``publisher``: a running one."""

    def __init__(self, bus: Bus, publisher: Publisher, bucket: str = OBJECTS) -> None:
        self._bus = bus
        self._publisher = publisher
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._log = FrameLog(bus, self._stream)

    async def put(self, name: str, content: AsyncIterable[bytes]) -> ObjectInfo:
        """Stores all of ``content``, in place of what had the name. Returns when it is stored: until then, and if it
        fails, what had the name is as it was.

        Raises InferBusError UNAVAILABLE, RESOURCE_EXHAUSTED ``stream_full``, and whatever ``content`` raises.
        """
        before = await self.info(name)
        chunks = f"{clock.now_us():x}{os.urandom(8).hex()}"
        try:
            info = await self._put_chunks(name, chunks, content)
            await self._publisher.publish_raw(
                self._meta_subject(name), _described(info, self._bucket), _ROLLUP, _TIMEOUT_SECONDS
            )
        except BaseException:
            with suppress(InferBusError, StreamApiError):  # what is left is found by whoever clears up
                await asyncio.shield(self._purge(chunks))
            raise
        if before is not None:
            await self._purge(before.chunks)
        return info

    async def info(self, name: str) -> ObjectInfo | None:
        """None if there is none. Raises InferBusError UNAVAILABLE."""
        subject = f"$JS.API.DIRECT.GET.{self._stream}.{self._meta_subject(name)}"
        try:
            reply = await self._bus.nc.request(subject, b"", timeout=5.0)
        except (NatsError, OSError) as error:
            raise _away(f"object {name}: {error!r}") from error
        status = (reply.headers or {}).get("Status")
        if status == "404":
            return None
        if status is not None:
            raise _away(f"object {name}: status {status}")
        said = json.loads(reply.data)
        return None if said.get("deleted") else _info_of(said)

    async def read(self, name: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from ``offset`` on, at most ``length``, in parts. Chunks before it are read and left out.

        Raises InferBusError NOT_FOUND ``no_such_object``; INTERNAL ``broken_object`` if some of its bytes are gone.
        """
        info = await self.info(name)
        if info is None:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "no_such_object", "It is not there any more.")
        end = info.size if length is None else min(info.size, offset + length)
        if offset >= end:
            return
        at = 0
        chunks = self._log.read(info.first, info.last, subject=self._chunk_subject(info.chunks), window=_READ_WINDOW)
        async with aclosing(chunks):
            async for batch in chunks:
                for _, _, data in batch:
                    begin, at = at, at + len(data)
                    if at > offset and begin < end:
                        yield data[max(0, offset - begin) : end - begin]
                if at >= end:
                    return
        raise InferBusError(
            ErrorClass.ERROR_CLASS_INTERNAL, "broken_object", "The server had an error; retry.",
            diagnostic=f"object {name} has {at} bytes of {info.size}",
        )  # fmt: skip

    async def delete(self, name: str) -> bool:
        """False if there was none. Raises InferBusError UNAVAILABLE."""
        info = await self.info(name)
        if info is None:
            return False
        gone = {**json.loads(_described(info, self._bucket)), "size": 0, "chunks": 0, "digest": "", "deleted": True}
        headers = {**_ROLLUP, "Nats-TTL": "300s"}
        await self._publisher.publish_raw(
            self._meta_subject(name), json.dumps(gone).encode(), headers, _TIMEOUT_SECONDS
        )
        await self._purge(info.chunks)
        return True

    async def names(self) -> list[str]:
        """Of all that is there, what was deleted within five minutes included. For whoever clears up."""
        prefix, found, offset = f"$O.{self._bucket}.M.", [], 0
        while True:
            asked = {"subjects_filter": f"{prefix}>", "offset": offset}
            answer = await self._bus.api(f"STREAM.INFO.{self._stream}", asked)
            subjects: dict[str, int] = answer["state"].get("subjects") or {}
            found += [base64.urlsafe_b64decode(subject.removeprefix(prefix)).decode() for subject in subjects]
            offset += len(subjects)
            if not subjects or offset >= int(answer.get("total", 0)):
                return sorted(found)

    async def _put_chunks(self, name: str, chunks: str, content: AsyncIterable[bytes]) -> ObjectInfo:
        subject, digest, size = self._chunk_subject(chunks), hashlib.sha256(), 0
        sequences: list[int] = []
        waiting: set[asyncio.Task[Any]] = set()

        async def store(data: bytes) -> None:
            sequences.append((await self._publisher.publish_raw(subject, data, {}, _TIMEOUT_SECONDS)).sequence)

        held = bytearray()
        try:
            async for part in content:
                held += part
                while len(held) >= CHUNK_BYTES:
                    chunk = bytes(held[:CHUNK_BYTES])
                    del held[:CHUNK_BYTES]
                    digest.update(chunk)
                    size += len(chunk)
                    waiting.add(asyncio.create_task(store(chunk), name="chunk"))
                    if len(waiting) >= _IN_FLIGHT:
                        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                        for one in done:
                            one.result()
            if held:
                digest.update(held)
                size += len(held)
                waiting.add(asyncio.create_task(store(bytes(held)), name="chunk"))
            for one in list(waiting):
                await one
        finally:
            if waiting:  # what was on its way when it is purged would stand there after that
                await asyncio.wait(waiting, timeout=_SETTLE_SECONDS)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        first, last = (min(sequences), max(sequences)) if sequences else (0, 0)
        return ObjectInfo(name, size, digest.digest(), chunks, first, last)

    async def _purge(self, chunks: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{self._stream}", {"filter": self._chunk_subject(chunks)}, timeout=30.0)

    def _chunk_subject(self, chunks: str) -> str:
        return f"$O.{self._bucket}.C.{chunks}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _described(info: ObjectInfo, bucket: str) -> bytes:
    """As ADR-20 wants it; where the chunks are on the stream stands in its free metadata."""
    said = {
        "name": info.name, "bucket": bucket, "nuid": info.chunks, "size": info.size,
        "chunks": -(-info.size // CHUNK_BYTES), "mtime": datetime.fromtimestamp(clock.now_us() / 1e6, UTC).isoformat(),
        "digest": f"SHA-256={base64.urlsafe_b64encode(info.digest).decode()}",
        "options": {"max_chunk_size": CHUNK_BYTES},
        "metadata": {"first": str(info.first), "last": str(info.last)},
    }  # fmt: skip
    return json.dumps(said).encode()


def _info_of(said: Mapping[str, Any]) -> ObjectInfo:
    digest = base64.urlsafe_b64decode(said["digest"].removeprefix("SHA-256="))
    places = said["metadata"]
    return ObjectInfo(said["name"], said["size"], digest, said["nuid"], int(places["first"]), int(places["last"]))


def _away(diagnostic: str) -> InferBusError:
    return unavailable(
        "bus_unavailable", "The service is restarting; retry.", retry_after=RETRY_AFTER, diagnostic=diagnostic
    )

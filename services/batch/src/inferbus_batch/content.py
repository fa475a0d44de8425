"""A file's content: written and read as segments, each an object of the store, a few chunks of it in memory at once."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from inferbus.bus.v1.batch_pb2 import Segment
from inferbus_objects.store import ObjectStore
from inferbus_runtime.errors import InferBusError

from inferbus_batch.core.segments import pieces

log = logging.getLogger(__name__)
SEGMENT_BYTES = 8 << 20
"""At most; what is read of a range before its first byte."""


async def write(store: ObjectStore, prefix: str, content: AsyncIterable[bytes]) -> list[Segment]:
    """``content`` as segments named ``<prefix>/<number>``; none if there is nothing. If it fails nothing is left of it.
    Raises like :meth:`ObjectStore.put`, and whatever ``content`` raises."""
    source = _Source(content)
    segments: list[Segment] = []
    try:
        while await source.more():
            name = f"{prefix}/{len(segments):05}"
            stored = await store.put(name, source.take(SEGMENT_BYTES))
            segments.append(Segment(object=name, size_bytes=stored.size, digest=stored.digest))
    except BaseException:
        await asyncio.shield(remove(store, segments))
        raise
    return segments


async def read(
    store: ObjectStore, segments: Sequence[Segment], offset: int = 0, length: int | None = None
) -> AsyncGenerator[bytes, None]:
    """The bytes from ``offset`` on, at most ``length``, in parts. Raises like :meth:`ObjectStore.get`."""
    sizes = [one.size_bytes for one in segments]
    for piece in pieces(sizes, offset, sum(sizes) if length is None else length):
        async with aclosing(store.get(segments[piece.segment].object, piece.offset, piece.length)) as parts:
            async for part in parts:
                yield part


async def remove(store: ObjectStore, segments: Iterable[Segment]) -> None:
    """What cannot be removed now is found by whoever clears up: nothing names it any more."""
    for segment in segments:
        try:
            await store.delete(segment.object)
        except InferBusError as error:
            log.warning("a segment was not removed", extra={"object": segment.object, "error": str(error)})


class _Source:
    """A stream that is taken in stretches."""

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._parts: AsyncIterator[bytes] = aiter(content)
        self._held = b""

    async def more(self) -> bool:
        """Whether there is anything left; waits for it."""
        while not self._held:
            try:
                self._held = await anext(self._parts)
            except StopAsyncIteration:
                return False
        return True

    async def take(self, size: int) -> AsyncGenerator[bytes, None]:
        """The next ``size`` bytes, or what there is."""
        while size and await self.more():
            part, self._held = self._held[:size], self._held[size:]
            size -= len(part)
            yield part

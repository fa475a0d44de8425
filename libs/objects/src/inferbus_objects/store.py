"""Where large content is kept: one interface, whatever is behind it."""

from collections.abc import AsyncGenerator, AsyncIterable
from typing import NamedTuple, Protocol

from inferbus_bus.objects import Objects


class Stored(NamedTuple):
    """``digest``: SHA-256."""

    size: int
    digest: bytes


class ObjectStore(Protocol):
    """Objects by name. All of its methods raise InferBusError UNAVAILABLE while what is behind it is away."""

    async def put(self, name: str, content: AsyncIterable[bytes]) -> Stored:
        """Returns when all of it is stored, in place of what had the name. If it fails, also because ``content``
        raises, what had the name is as it was. RESOURCE_EXHAUSTED if there is no room."""
        ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from ``offset`` on, at most ``length``, in parts. NOT_FOUND ``no_such_object``."""
        ...

    async def size(self, name: str) -> int | None:
        """In bytes; None if there is none."""
        ...

    async def delete(self, name: str) -> bool:
        """False if there was none."""
        ...

    async def names(self, prefix: str) -> list[str]:
        """Of all whose names begin so, in order; what was deleted a moment ago may still be named."""
        ...


class BusStore:
    """A bucket of the bus' object store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def put(self, name: str, content: AsyncIterable[bytes]) -> Stored:
        info = await self._objects.put(name, content)
        return Stored(info.size, info.digest)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        return self._objects.read(name, offset, length)

    async def size(self, name: str) -> int | None:
        info = await self._objects.info(name)
        return None if info is None else info.size

    async def delete(self, name: str) -> bool:
        return await self._objects.delete(name)

    async def names(self, prefix: str) -> list[str]:
        return [name for name in await self._objects.names() if name.startswith(prefix)]

"""Whole answers that are on their way to clients, by tenant: what is not read is memory of all."""

import asyncio
import weakref
from collections import Counter
from datetime import timedelta

from aiohttp import web
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError

from inferbus_edge.answers import WholeResponse

# Of a tenant's, beside what its running calls may answer; with more it asks for nothing else.
MAX_BYTES = 64 << 20
_RETRY_AFTER = timedelta(seconds=1)
_LOOK_SECONDS = 0.05


class Unread:
    """Bytes of answers with tensors."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()

    def bytes_of(self, tenant: str) -> int:
        return self._bytes.get(tenant, 0)

    def check(self, tenant: str) -> None:
        """Raises InferBusError RESOURCE_EXHAUSTED if the tenant leaves too much unread."""
        if self.bytes_of(tenant) > MAX_BYTES:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
                "answers_unread",
                "Answers that were made for you wait to be read; read them before you ask for more.",
                retry_after=_RETRY_AFTER,
            )

    def keep(self, tenant: str, response: web.StreamResponse) -> web.StreamResponse:
        """Counts ``response`` until it is written, or dropped."""
        if isinstance(response, WholeResponse) and isinstance(response.body, bytes):
            size = len(response.body)
            self._bytes[tenant] += size
            response.written = weakref.finalize(response, self._written, tenant, size)
        return response

    async def idle(self) -> None:
        """Returns when all are written."""
        while self._bytes:
            await asyncio.sleep(_LOOK_SECONDS)

    def _written(self, tenant: str, size: int) -> None:
        self._bytes[tenant] -= size
        if not self._bytes[tenant]:
            del self._bytes[tenant]

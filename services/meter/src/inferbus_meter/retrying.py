"""Steps that are tried again until they are done: store and broker may be away for as long as they like."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from inferbus_bus.errors import StreamApiError
from inferbus_runtime import metrics
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS

log = logging.getLogger(__name__)
T = TypeVar("T")
_RETRIED = (*STORE_ERRORS, InferBusError, StreamApiError)
_BACKOFF_SECONDS = (0.1, 2.0)


class StoppedError(Exception):
    """Told to stop while store or broker is away: what is not inserted now is inserted after the next start."""


class Retrying:
    """``stopping``: set when nothing is to be tried again any more."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    async def until_done(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """``call`` again and again, with growing pauses. Its result. Raises StoppedError."""
        pause, most = _BACKOFF_SECONDS
        while True:
            try:
                return await call()
            except _RETRIED as error:
                metrics.INGEST_RETRIES.labels(type(error).__name__).inc()
                log.warning("not done; trying again", extra={"step": what, "error": repr(error)[:500]})
            if self._stopping.is_set():
                raise StoppedError
            await asyncio.sleep(pause)
            pause = min(most, pause * 2)

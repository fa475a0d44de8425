"""How many statements run and wait, per profile, so that analysts never keep the writer out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferbus_stack.clickhouse.errors import TOO_MANY_SIMULTANEOUS_QUERIES, ClickHouseError
from inferbus_stack.clickhouse.profiles import Profile

_LONGEST_WAIT_SECONDS = 30.0


class Gate:
    """Lets `running` statements of a profile through; `waiting` more wait their turn, half a minute at most.

    At either bound: TOO_MANY_SIMULTANEOUS_QUERIES (202), HTTP 503, which clickhouse-connect retries.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._slots = asyncio.Semaphore(profile.running)
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    async def _wait(self) -> None:
        if self._waiting >= self._profile.waiting:
            raise self._full()
        self._waiting += 1
        try:
            async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise self._full() from None
        finally:
            self._waiting -= 1

    def _full(self) -> ClickHouseError:
        return ClickHouseError(
            TOO_MANY_SIMULTANEOUS_QUERIES,
            f"Too many simultaneous queries. Maximum: {self._profile.running} running, {self._profile.waiting} waiting "
            f"for profile {self._profile.name}.",
        )

"""The stream DELIVERIES into the table of that name, each row once in effect.

The table itself says how far it is: its highest stream sequence, since an insert is whole or is not and goes in the
order of the stream. A meter that dies goes on from there; a row that comes twice all the same is one by its name (see
migration 0014).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from inferbus_bus.errors import StreamApiError
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.deliveries import by_month, received

log = logging.getLogger(__name__)
T = TypeVar("T")
STREAM = "DELIVERIES"
_SUBJECT = "dlv.>"
_EVERY_SECONDS = 1.0
_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 2.0


class DeliveryIngest:
    """:meth:`run` in one meter at a time: two would do no harm, but everything twice."""

    def __init__(self, messages: FrameLog, store: Store) -> None:
        self._messages = messages
        self._store = store
        self._position = 0

    @property
    def position(self) -> int:
        """Everything up to this sequence of DELIVERIES is in the table, as far as this meter knows."""
        return self._position

    async def run(self) -> None:
        """Until the stream is made anew, when it is to begin again. Waits out a store that is away. Raises what the bus
        raises when it is away at the start."""
        _, last, made_us = await self._messages.state()
        at = await self._until_done(lambda: position(self._store, made_us))
        # The broker's folder was put back to an earlier day: what is in it by now is not in the table.
        self._position = at if at <= last else 0
        tasks = [
            asyncio.create_task(self._read(made_us), name="read deliveries"),
            asyncio.create_task(self._until_made_anew(made_us), name="watch deliveries"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(tasks)
        for task in done:
            task.result()

    async def _read(self, made_us: int) -> None:
        async with aclosing(self._messages.read(self._position + 1, subject=_SUBJECT)) as read:
            async for stored in read:
                begun = clock.monotonic()
                messages = [received(*one) for one in stored]
                if None in messages:
                    log.error("what is no Deliveries is left out", extra={"messages": messages.count(None)})
                first, last = stored[0][0], stored[-1][0]
                for number, rows in enumerate(by_month([one for one in messages if one is not None])):
                    # A stream that is made anew has the same sequences again.
                    token = f"{STREAM}-{made_us}-{first}-{last}-{number}"
                    await self._until_done(lambda: self._store.insert(rows.table, rows.data, token))  # noqa: B023
                self._position = last
                # An insert costs the store the same whatever its size.
                await asyncio.sleep(max(0.0, _EVERY_SECONDS - (clock.monotonic() - begun)))

    async def _until_made_anew(self, made_us: int) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                _, _, now_us = await self._messages.state()
            except (InferBusError, StreamApiError) as error:
                log.debug("the stream of deliveries does not answer", extra={"error": str(error)})
                continue
            if now_us != made_us:
                log.warning("the stream of deliveries was made anew")
                return

    async def _until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except STORE_ERRORS as error:
                log.warning("deliveries wait for the store", extra={"error": repr(error)[:500]})
                await asyncio.sleep(_PAUSE_SECONDS)


async def position(store: Store, made_us: int) -> int:
    """The last sequence in the table of the stream DELIVERIES that was made at ``made_us`` (Unix microseconds); 0 for
    none. Raises one of STORE_ERRORS."""
    # By the broker's clock, by which the stream was made, too.
    query = "SELECT max(stream_seq) FROM deliveries WHERE stored_time >= fromUnixTimestamp64Micro({made:Int64})"
    return int((await store.rows(query, {"made": made_us}))[0][0])

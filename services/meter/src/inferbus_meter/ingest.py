"""TOKENS into ClickHouse, each frame exactly once.

    0  on start: take the last intent from the table, read exactly its frames again and do steps 2 and 3 with them.
       Killed in 1: no intent, so the frames come in the next batch. Killed in 2 or 3: what was written is recognised by
       its token and dropped, what was not is written now, in tables and views. Frames that have aged out of the stream
       meanwhile are named in the log; the audit shows whether they had been written.
    1  write the intent (first, last) of the next batch, and read it back. Another meter's intent for the same frames
       was there first: its token made the store drop ours, so this meter has lost its place and stops.
    2  insert the tokens      } one block in one partition each, with the token TOKENS-<table>-<first>-<last>.
    3  insert the requests    } A bill never precedes its tokens.
    4  only now the position moves on, and the next batch begins at last + 1.

A step that fails is tried again with the very same rows and token, for ever: serving goes on, frames wait in the
stream, and here waits at most one batch being inserted, one gathered and what the log reader holds (1,000 frames).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock, metrics

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.frames import FrameBatch, FrameGather
from inferbus_meter.core.native import NativeBlock
from inferbus_meter.core.rating import Rate
from inferbus_meter.core.rows import TIME, Rows, request_rows, token_rows

log = logging.getLogger(__name__)
T = TypeVar("T")
STREAM = "TOKENS"
_BACKOFF_SECONDS = (0.1, 2.0)
# Parsing holds the event loop; after this many frames others get a turn.
_FRAMES_A_TURN = 64


class NotAloneError(Exception):
    """Another meter has written the intent for these frames: this one must stop."""


class StreamResetError(Exception):
    """The stream ends before what was already inserted from it: it was made anew. A restart begins a new epoch."""


class _StoppedError(Exception):
    """Told to stop while the store is away: what is not inserted now is inserted after the next start."""


@dataclass(frozen=True, slots=True)
class FlushLimits:
    """A batch ends at ``tokens``, or ``interval`` after its first frame."""

    tokens: int
    interval: timedelta


@dataclass(frozen=True, slots=True)
class Intent:
    """The batch that was begun last: stream sequences, both included. ``epoch`` counts the streams there have been."""

    epoch: int
    first: int
    last: int


class Ingest:
    """The one writer of the tables. :meth:`run` until it raises or is stopped."""

    def __init__(
        self, frames: FrameLog, store: Store, rates: Callable[[], Mapping[str, Rate]], limits: FlushLimits, holder: str
    ) -> None:
        self._frames = frames
        self._store = store
        self._rates = rates
        self._limits = limits
        self._holder = holder
        self._epoch = 0
        self._position = 0
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._gather = FrameGather()
        self._begun = 0.0
        self._has_some, self._is_full, self._has_room = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.running = False

    @property
    def position(self) -> int:
        """Everything up to this stream sequence is in the tables."""
        return self._position

    @property
    def waiting_tokens(self) -> int:
        """Tokens gathered here for the next batch."""
        return self._gather.tokens

    async def reached(self, sequence: int, timeout: float) -> bool:
        """Wait until :attr:`position` is at ``sequence``; False if it is not after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._position < sequence:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """:meth:`run` returns after the batch that is being inserted."""
        self._stopping.set()
        self._has_some.set()
        self._is_full.set()

    async def run(self) -> None:
        """Ingest until :meth:`stop`; may be run again after it raised. The store being away it waits out.

        Raises NotAloneError, and what the bus raises when it is away at the start.
        """
        self._gather, self._begun = FrameGather(), 0.0
        for event in (self._has_some, self._is_full, self._has_room):
            event.clear()
        with suppress(_StoppedError):
            await self._resume()
            await self._run()

    async def _run(self) -> None:
        self.running = True
        reader = asyncio.create_task(self._read(), name="frames")
        reader.add_done_callback(lambda _: self._has_some.set())
        try:
            while not self.stopped:
                batch = await self._next_batch(reader)
                if batch is not None:
                    await self._ingest(batch)
        finally:
            self.running = False
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def check_stream(self) -> int:
        """Frames not inserted yet. Raises StreamResetError, and like :meth:`FrameLog.bounds`."""
        _, last = await self._frames.bounds()
        if last < self._position:
            raise StreamResetError(f"{STREAM} ends at {last}, but was read up to {self._position}")
        lag = last - self._position
        metrics.INGEST_LAG_FRAMES.set(lag)
        return lag

    # --- step 0 ---

    async def _resume(self) -> None:
        intent = await self._until_done("read the last intent", self._last_intent)
        first, last = await self._frames.bounds()
        if intent is None:
            self._position = max(0, first - 1)
            return
        self._epoch, self._position = intent.epoch, intent.last
        if last < intent.last:
            self._epoch, self._position = intent.epoch + 1, max(0, first - 1)
            log.error(
                "the stream was made anew: what was in the old one and not inserted is lost",
                extra={"stream_last": last, "inserted_last": intent.last, "epoch": self._epoch},
            )
            return
        if first > intent.first:
            log.error(
                "frames aged out before it was certain that they had been inserted; audit shows whether they were",
                extra={"first_sequence": intent.first, "last_sequence": min(first - 1, intent.last)},
            )
        batch = FrameGather(bordered=False)
        if first <= intent.last:
            async for stored in self._frames.read(intent.first, intent.last):
                for frame in stored:
                    batch.add(*frame)
        log.info("doing the last batch again", extra={"first_sequence": intent.first, "last_sequence": intent.last})
        await self._write(batch.finish(), intent)
        self._advance(intent.last)

    async def _last_intent(self) -> Intent | None:
        rows = await self._store.rows(
            "SELECT epoch, first_seq, last_seq FROM ingest_batches WHERE stream = {stream:String} "
            "ORDER BY epoch DESC, last_seq DESC LIMIT 1",
            {"stream": STREAM},
        )
        return Intent(*map(int, rows[0])) if rows else None

    # --- gathering ---

    async def _read(self) -> None:
        async for stored in self._frames.read(self._position + 1):
            for count, frame in enumerate(stored):
                if count % _FRAMES_A_TURN == 0:
                    await asyncio.sleep(0)
                while not self._gather.add(*frame):
                    await self._hand_over()
                if not self._begun:
                    self._begun = clock.monotonic()
                self._has_some.set()
                if self._gather.tokens >= self._limits.tokens:
                    await self._hand_over()

    async def _hand_over(self) -> None:
        """The batch is complete: wait until it was taken. This is what bounds the memory while the store is away."""
        self._has_room.clear()
        self._is_full.set()
        await self._has_room.wait()

    async def _next_batch(self, reader: "asyncio.Task[None]") -> FrameBatch | None:
        await self._has_some.wait()
        if reader.done():
            reader.result()
            raise RuntimeError("the log reader ended")
        wait = self._begun + self._limits.interval.total_seconds() - clock.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait)):
                await self._is_full.wait()
        if self.stopped:
            return None
        gathered, self._gather, self._begun = self._gather, FrameGather(), 0.0
        self._has_some.clear()
        self._is_full.clear()
        self._has_room.set()
        return gathered.finish()

    # --- steps 1 to 4 ---

    async def _ingest(self, batch: FrameBatch) -> None:
        intent = Intent(self._epoch, batch.first_sequence, batch.last_sequence)
        metrics.INGEST_MALFORMED.inc(len(batch.malformed))
        for fault in batch.malformed:
            log.error("a malformed frame is left out", extra={"sequence": fault.sequence, "fault": fault.detail})
        await self._intend(intent, batch)
        await self._write(batch, intent)
        self._advance(intent.last)

    async def _intend(self, intent: Intent, batch: FrameBatch) -> None:
        rows = intent_rows(intent, batch, self._holder)
        token = f"{STREAM}-intent-{intent.epoch}-{intent.first}"
        await self._until_done("write the intent", lambda: self._store.insert(rows.table, rows.data, token))

        async def owner() -> object:
            found = await self._store.rows(
                "SELECT holder, last_seq FROM ingest_batches "
                "WHERE stream = {stream:String} AND epoch = {epoch:UInt32} AND last_seq >= {first:UInt64} "
                "ORDER BY last_seq",
                {"stream": STREAM, "epoch": intent.epoch, "first": intent.first},
            )
            return [(str(holder), int(last)) for holder, last in found]

        found = await self._until_done("read the intent back", owner)
        if found != [(self._holder, intent.last)]:
            raise NotAloneError(f"frames from {intent.first} on are taken by {found}")

    async def _write(self, batch: FrameBatch, intent: Intent) -> None:
        if len(batch.token_id):
            await self._insert(await asyncio.to_thread(token_rows, batch), intent)
        if batch.closes:
            await self._insert(await asyncio.to_thread(request_rows, batch, self._rates()), intent)

    async def _insert(self, rows: Rows, intent: Intent) -> None:
        token = insert_token(rows.table, intent)
        begun = clock.monotonic()
        await self._until_done(f"insert {rows.table}", lambda: self._store.insert(rows.table, rows.data, token))
        metrics.INGEST_INSERT_SECONDS.labels(rows.table).observe(clock.monotonic() - begun)
        metrics.INGEST_ROWS.labels(rows.table).inc(rows.count)

    def _advance(self, last: int) -> None:
        self._position = last
        self._moved.set()

    async def _until_done(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """``call`` again and again, with growing pauses. Its result."""
        pause, most = _BACKOFF_SECONDS
        while True:
            try:
                return await call()
            except STORE_ERRORS as error:
                metrics.INGEST_RETRIES.labels(type(error).__name__).inc()
                log.warning("the store refused; trying again", extra={"step": what, "error": repr(error)[:500]})
            if self.stopped:
                raise _StoppedError
            await asyncio.sleep(pause)
            pause = min(most, pause * 2)


def insert_token(table: str, intent: Intent) -> str:
    """By which the store knows a batch again; the first stream needs no epoch in it."""
    epoch = f"{intent.epoch}-" if intent.epoch else ""
    return f"{STREAM}-{table}-{epoch}{intent.first}-{intent.last}"


def intent_rows(intent: Intent, batch: FrameBatch, holder: str) -> Rows:
    """The row of ``ingest_batches`` that says: this batch is being inserted."""
    block = NativeBlock(1)
    block.strings("stream", [STREAM])
    block.fixed("epoch", "UInt32", np.array([intent.epoch], np.uint32))
    block.fixed("first_seq", "UInt64", np.array([intent.first], np.uint64))
    block.fixed("last_seq", "UInt64", np.array([intent.last], np.uint64))
    block.fixed("tokens", "UInt32", np.array([len(batch.token_id)], np.uint32))
    block.fixed("requests", "UInt32", np.array([len(batch.closes)], np.uint32))
    block.strings("holder", [holder])
    block.fixed("intent_time", TIME, np.array([clock.now_us()], np.int64))
    return Rows("ingest_batches", 1, block.encode())

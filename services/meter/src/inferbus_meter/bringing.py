"""What was claimed into the tables: its frames, block by block. Steps 2 and 3 of :mod:`.ingest`."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from inferbus_bus.log import FrameLog
from inferbus_rating import PriceBook
from inferbus_runtime import clock, metrics

from inferbus_meter.claims import STREAM, Brought, Claims
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.captures import capture_rows
from inferbus_meter.core.claims import Claim
from inferbus_meter.core.epochs import UNKNOWN, Epoch
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.frames import FrameBatch, FrameGather
from inferbus_meter.core.replay import TIMES
from inferbus_meter.core.rows import IsErased, Rows, request_rows, token_rows
from inferbus_meter.retrying import Retrying

log = logging.getLogger(__name__)
# Parsing holds the event loop; after this many frames others get a turn.
_FRAMES_A_TURN = 64
# Of the first claim, before any frame has been seen.
_TOKENS_A_FRAME = 64.0


@dataclass(frozen=True, slots=True)
class Privacy:
    """``is_erased``: whose labels and text do not go in. ``captures``: the store as the user who inserts captured text;
    None: none of it is kept."""

    is_erased: IsErased = nobody_erased
    captures: Store | None = None


NOTHING_PRIVATE = Privacy()


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences ``first`` to ``last`` of a claim, one insert a table. ``cut``: it would have gone on in what the stream
    has lost, and nobody knows to where."""

    claim: Claim
    first: int
    last: int
    cut: bool = False


class GoneError(Exception):
    """What was claimed cannot be read to its end."""


class Bringing:
    """Calls wait for as long as store or broker is away, and raise StoppedError when ``retrying`` is told to stop."""

    def __init__(
        self,
        frames: FrameLog,
        store: Store,
        claims: Claims,
        book: Callable[[], PriceBook],
        lease: timedelta,
        retrying: Retrying,
        privacy: Privacy,
    ) -> None:
        self._frames = frames
        self._store = store
        self._claims = claims
        self._book = book
        self._lease = lease
        self._retrying = retrying
        self._privacy = privacy
        self._gathers: set[FrameGather] = set()
        self.tokens_a_frame = _TOKENS_A_FRAME  # by those that were last seen

    @property
    def waiting_tokens(self) -> int:
        """Tokens gathered here that are not in the tables yet."""
        return sum(gather.tokens for gather in self._gathers)

    async def bring(self, claim: Claim, kept: int | None = None) -> Brought:
        """Read and insert all of the claim. Raises GoneError. ``kept``: the stream has lost its tail, and what it has
        after this sequence is not what was claimed."""
        last = claim.last if kept is None else min(claim.last, kept)
        if last < claim.first:
            return Brought()
        oldest = await self._oldest(claim, last)
        if oldest > claim.first and (claim.first > 1 or claim.attempt > 1):
            log.error(
                "frames aged out before it was certain that they had been inserted; audit shows whether they were",
                extra={"first_sequence": claim.first, "last_sequence": min(oldest - 1, last)},
            )
        bordered = claim.block_tokens > 0
        begin, seen, stored_us, frames, tokens, requests = claim.first, 0, 0, 0, 0, 0
        gather = self._begin_block(None, bordered)
        try:
            async with aclosing(self._frames.read(claim.first, last)) as read:
                async for stored in read:
                    for count, frame in enumerate(stored):
                        if count % _FRAMES_A_TURN == 0:
                            await asyncio.sleep(0)
                        while (bordered and gather.size >= claim.block_tokens) or not gather.add(*frame):
                            await self._insert(Block(claim, begin, gather.last), gather.finish())
                            tokens, requests = tokens + gather.tokens, requests + gather.ends
                            begin = gather.last + 1
                            gather = self._begin_block(gather, bordered)
                    seen, stored_us, frames = stored[-1][0], stored[-1][1], frames + len(stored)
            if seen < last and await self._oldest(claim, last) <= last:
                raise GoneError(f"read up to {seen}, and not to {last}")
            await self._insert(Block(claim, begin, last, cut=last < claim.last), gather.finish())
        finally:
            self._gathers.discard(gather)
        metrics.INGEST_FRAMES.inc(frames)
        tokens, requests = tokens + gather.tokens, requests + gather.ends
        if frames:
            self.tokens_a_frame += (tokens / frames - self.tokens_a_frame) / 2
        return Brought(tokens, requests, stored_us if seen == claim.last else 0)

    async def _oldest(self, claim: Claim, last: int) -> int:
        """The first sequence that the stream still has. Raises GoneError if it does not go on to ``last``, or is not
        the claim's stream."""
        oldest, end, made_us = await self._retrying.until_done("ask where the stream begins", self._frames.state)
        if end < last or claim.stream_us not in (0, made_us):
            raise GoneError(f"the stream ends at {end}")
        return oldest

    def _begin_block(self, before: FrameGather | None, bordered: bool) -> FrameGather:
        gather = FrameGather(bordered=bordered, captures=True)
        if before is not None:
            self._gathers.discard(before)
        self._gathers.add(gather)
        return gather

    async def _insert(self, block: Block, batch: FrameBatch) -> None:
        """Its tokens, requests, captured text."""
        claim, is_erased = block.claim, self._privacy.is_erased
        if await self._retrying.until_done("read the claims", lambda: self._is_done(claim)):
            return
        metrics.INGEST_MALFORMED.inc(len(batch.malformed))
        for fault in batch.malformed:
            log.error("a malformed frame is left out", extra={"sequence": fault.sequence, "fault": fault.detail})
        epoch = Epoch(claim.epoch, claim.stream_us)
        if len(batch.token_id):
            await self._insert_rows(await asyncio.to_thread(token_rows, batch, epoch), block)
        if batch.closes:
            rows = await asyncio.to_thread(request_rows, batch, self._book(), is_erased=is_erased, epoch=epoch)
            await self._insert_rows(rows, block)
        if batch.captured and self._privacy.captures is not None:
            for day, rows in capture_rows(batch.captured, is_erased):
                await self._insert_rows(rows, block, self._privacy.captures, f"-{day}")

    async def _insert_rows(self, rows: Rows, block: Block, store: Store | None = None, part: str = "") -> None:
        """``part``: which partition, if the block has rows for several."""
        into, token = store or self._store, insert_token(rows.table, block.claim.epoch, block.first, block.last) + part
        if block.cut and await self._retrying.until_done("see what is there", lambda: self._has(rows.table, block)):
            return
        begun = clock.monotonic()

        async def insert() -> bool:
            """Also after a failure: cut off from the store for long, this meter may be taken for dead."""
            if await self._is_done(block.claim):
                return False
            await into.insert(rows.table, rows.data, token)
            return True

        if await self._retrying.until_done(f"insert {rows.table}", insert):
            metrics.INGEST_INSERT_SECONDS.labels(rows.table).observe(clock.monotonic() - begun)
            metrics.INGEST_ROWS.labels(rows.table).inc(rows.count)

    async def _is_done(self, claim: Claim) -> bool:
        """Whether another has done the claim meanwhile: had this process been stopped or cut off for long, the store
        might not remember its tokens any more. Raises one of STORE_ERRORS."""
        if clock.now_us() - self._claims.read_us > self._lease // timedelta(microseconds=1):
            await self._claims.read()
        return self._claims.ledger.is_done(claim)

    async def _has(self, table: str, block: Block) -> bool:
        """Whether the block was inserted as it was before it was cut. An insert is whole or is not."""
        if table not in TIMES:
            return False
        ((number,),) = await self._store.rows(
            f"SELECT count() FROM {table} WHERE stream_epoch IN ({{epoch:UInt32}}, {UNKNOWN}) "  # noqa: S608 - ours
            "AND stream_seq BETWEEN {first:UInt64} AND {last:UInt64}",
            {"epoch": Epoch(block.claim.epoch, 0).written, "first": block.first, "last": block.claim.last},
        )
        return bool(number)


def insert_token(table: str, epoch: int, first: int, last: int) -> str:
    """By which the store knows a block again; the first stream needs no epoch in it."""
    return f"{STREAM}-{table}-{f'{epoch}-' if epoch else ''}{first}-{last}"

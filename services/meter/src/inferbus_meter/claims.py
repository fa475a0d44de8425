"""Claims in the store: rows of ``ingest_batches``.

They stand where the data stands, and not in the broker's KV: what decides which frames an insert token covers must not
be lost without the data, nor go back in time without it. Of two claims that begin at the same sequence, written by two
meters at the same moment, the store keeps the first, by the insert token; each reads back which one that is.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from inferbus_runtime import clock

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.claims import Claim, Ledger, Mark, Sightings
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.native import NativeBlock
from inferbus_meter.core.rows import TIME, Rows

STREAM = "TOKENS"


class Claims:
    """What this meter knows of all claims. Every call that reaches the store raises one of STORE_ERRORS."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded = False
        self._reading = asyncio.Lock()
        self._bases: dict[int, int] = {}  # by epoch: see Epoch
        self.read_us = 0  # Unix microseconds: nothing before it is unknown to the ledger
        self.ledger = Ledger()
        self.sightings = Sightings()

    async def read(self) -> None:
        """Read what is new. ``ledger`` is another object afterwards if a new epoch has begun."""
        async with self._reading:
            asked_us = clock.now_us()
            try:
                rows = await self._rows()
                newest = max((int(row[0]) for row in rows), default=0)
                if newest > self.ledger.epoch:
                    self._bases = await self._read_bases()
                    self.ledger = Ledger(newest, self._bases.get(newest, 0))
            except STORE_ERRORS:
                self.sightings.forget()
                raise
        for row in rows:
            self.ledger.add(_claim(row), done=bool(row[-2]), stored_us=int(row[-1]))
        self.read_us = asked_us
        self.sightings.look(self.ledger.open, clock.monotonic())

    async def _rows(self) -> Sequence[Sequence[Any]]:
        if not self._loaded:
            self.ledger = await self._beginning()
            self._bases = await self._read_bases()
            self._loaded = True
        return await self._store.rows(
            "SELECT epoch, toUnixTimestamp64Micro(stream_time), first_seq, last_seq, attempt, holder, block_tokens, "
            "done, toUnixTimestamp64Micro(last_time) FROM ingest_batches "
            "WHERE stream = {stream:String} AND epoch >= {epoch:UInt32} "
            "AND (epoch > {epoch:UInt32} OR last_seq > {position:UInt64})",
            {"stream": STREAM, "epoch": self.ledger.epoch, "position": self.ledger.position},
        )

    async def _beginning(self) -> Ledger:
        """From the newest row: of a single meter's times it is the one that may not be done, and all before it are."""
        rows = await self._store.rows(
            "SELECT epoch, first_seq, block_tokens, mark_seq FROM ingest_batches WHERE stream = {stream:String} "
            "ORDER BY epoch DESC, last_seq DESC LIMIT 1",
            {"stream": STREAM},
        )
        if not rows:
            return Ledger()
        epoch, first, block_tokens, mark = map(int, rows[0])
        known = await self._store.rows(
            "SELECT last_seq, toUnixTimestamp64Micro(last_time) FROM ingest_batches WHERE stream = {stream:String} "
            "AND epoch = {epoch:UInt32} AND done AND last_time > 0 ORDER BY last_seq DESC LIMIT 1",
            {"stream": STREAM, "epoch": epoch},
        )
        brought = Mark(*map(int, known[0])) if known else None
        return Ledger(epoch, mark if block_tokens else first - 1, brought)

    async def _read_bases(self) -> dict[int, int]:
        rows = await self._store.rows(
            "SELECT epoch, max(base_seq) FROM ingest_batches WHERE stream = {stream:String} GROUP BY epoch",
            {"stream": STREAM},
        )
        return {int(epoch): int(base) for epoch, base in rows}

    def epoch(self, made_us: int) -> Epoch:
        """The one of the ledger, with those before it of whose frames the stream still has some."""
        number, found = self.ledger.epoch, None
        begins = number
        while self._bases.get(begins, 0) and begins:
            begins -= 1
        for one in range(begins, number + 1):
            found = Epoch(one, made_us, self._bases.get(one, 0), found)
        return found or Epoch(number, made_us)

    async def begin_epoch(self, of: Claim) -> None:
        """From the next :meth:`read` on claims begin where ``of``, which is empty, says. Of several meters' beginnings
        of an epoch one is kept."""
        rows = claim_rows(of, of.first - 1, of.first - 1, Brought(), done=True)
        await self._store.insert(rows.table, rows.data, f"{STREAM}-begin-{of.epoch}")

    async def write(self, claim: Claim) -> None:
        """Take the claim, if nobody has: :meth:`read` says who got it."""
        attempt = f"-{claim.attempt}" if claim.attempt > 1 else ""
        await self._insert(claim, f"intent-{claim.epoch}-{claim.first}{attempt}", Brought(), done=False)

    async def finish(self, claim: Claim, brought: "Brought") -> None:
        """All rows of the claim are in the tables."""
        await self._insert(claim, f"done-{claim.epoch}-{claim.first}", brought, done=True)
        self.ledger.add(claim, done=True, stored_us=brought.stored_us)

    async def _insert(self, claim: Claim, token: str, brought: "Brought", *, done: bool) -> None:
        mark = self.ledger.position if self.ledger.epoch == claim.epoch else 0
        rows = claim_rows(claim, self._bases.get(claim.epoch, 0), mark, brought, done=done)
        await self._store.insert(rows.table, rows.data, f"{STREAM}-{token}")


@dataclass(frozen=True, slots=True)
class Brought:
    """What a claim held. ``stored_us``: when its last frame was stored, Unix microseconds; 0: not known."""

    tokens: int = 0
    requests: int = 0
    stored_us: int = 0


def claim_rows(claim: Claim, base: int, mark: int, brought: Brought, *, done: bool) -> Rows:
    """One row of ``ingest_batches``. ``base``: of its epoch. ``mark``: everything up to it is in the tables."""
    block = NativeBlock(1)
    block.strings("stream", [STREAM])
    block.fixed("epoch", "UInt32", np.array([claim.epoch], np.uint32))
    block.fixed("base_seq", "UInt64", np.array([base], np.uint64))
    block.fixed("stream_time", TIME, np.array([claim.stream_us], np.int64))
    block.fixed("first_seq", "UInt64", np.array([claim.first], np.uint64))
    block.fixed("last_seq", "UInt64", np.array([claim.last], np.uint64))
    block.fixed("last_time", TIME, np.array([brought.stored_us], np.int64))
    block.fixed("attempt", "UInt32", np.array([claim.attempt], np.uint32))
    block.fixed("done", "Bool", np.array([done], np.uint8))
    block.fixed("block_tokens", "UInt32", np.array([claim.block_tokens], np.uint32))
    block.fixed("mark_seq", "UInt64", np.array([mark], np.uint64))
    block.fixed("tokens", "UInt32", np.array([brought.tokens], np.uint32))
    block.fixed("requests", "UInt32", np.array([brought.requests], np.uint32))
    block.strings("holder", [claim.holder])
    block.fixed("intent_time", TIME, np.array([clock.now_us()], np.int64))
    return Rows("ingest_batches", 1, block.encode())


def _claim(row: Sequence[Any]) -> Claim:
    epoch, stream_us, first, last, attempt, holder, block_tokens, *_ = row
    return Claim(int(epoch), int(stream_us), int(first), int(last), int(attempt), str(holder), int(block_tokens))

"""A replay: the rows of a range of TOKENS made from the stream again, and the tables made equal to them.

    1  the range [start, end) by stored time, as far as the stream holds it; what it does not hold is not touched
    2  chunk by chunk: wait until the ingest has passed it; its rows are made beside the tables, and compared
    3  frames and requests that differ are taken out and put in; all that agrees stays as it is
    4  rollups of minutes and hours that do not agree with their rows any more are worked out anew

Safe beside a running ingest, since nobody else writes rows of sequences below the low-water mark: what was inserted
once is never inserted again, not even by a meter that does a claim once more (the store knows its token). Killed
anywhere it is run again, and does what is left. A request is charged by the rate that its row holds, whatever the price
book says by now; one whose row is gone by the version before its first correction, else by the price book. Corrections
(``adjustments``) are kept. Who was erased stays so. Captured text is not made again. Rows of an earlier stream, which
may have the same sequences, are not touched.

Memory: one chunk.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from uuid import UUID

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.replay_pb2 import ReplayCharge, ReplayProgress, ReplayResponse, ReplaySummary
from inferbus_bus.log import FrameLog
from inferbus_rating import PriceBook, Rate
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_meter.clickhouse import RETRY_AFTER, STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.frames import ClosedRequest
from inferbus_meter.core.replay import Chunk
from inferbus_meter.core.rows import IsErased, rate_named, request_rows, token_rows
from inferbus_meter.expected import Part, parts
from inferbus_meter.ingest import Ingest
from inferbus_meter.replay_tables import ReplayTables
from inferbus_meter.rollups import MINUTE_US, OPEN_US, Rollups
from inferbus_meter.usage_hours import UsageHours

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayRange:
    """[start, end) in Unix microseconds of the stored time; None: from the first frame, until now.

    ``timeout``: seconds to wait for the ingest.
    """

    start_us: int | None
    end_us: int | None
    dry_run: bool
    timeout: float


class Replay:
    """One run. Iterate :meth:`run` once. ``store``: as a user who may create, delete and attach."""

    def __init__(
        self,
        wanted: ReplayRange,
        frames: FrameLog,
        store: Store,
        ingest: Ingest,
        book: PriceBook,
        is_erased: IsErased = nobody_erased,
    ) -> None:
        self._wanted = wanted
        self._frames = frames
        self._store = store
        self._tables = ReplayTables(store)
        self._ingest = ingest
        self._book = book
        self._is_erased = is_erased
        self._summary = ReplaySummary(dry_run=wanted.dry_run)
        self._charges: dict[str, tuple[Decimal, Decimal]] = {}
        self._times: tuple[int, int] | None = None  # of the frames, by the workers' clocks: first, last
        self._whole = True  # nothing before the range has aged out
        self._made_us = 0  # when the stream was made that is read

    async def run(self) -> AsyncGenerator[ReplayResponse, None]:
        """Progress, and at the end the summary.

        Raises InferBusError DEADLINE_EXCEEDED if the ingest does not get there, UNAVAILABLE without store or bus.
        """
        try:
            async with self._tables_made(), aclosing(self._chunks()) as chunks:
                async for progress in chunks:
                    yield ReplayResponse(progress=progress)
            if self._times is not None:
                await self._mend_rollups(*self._times)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        for currency, (before, after) in sorted(self._charges.items()):
            charge = ReplayCharge(currency=currency, before=decimal_text(before), after=decimal_text(after))
            self._summary.charges.append(charge)
        yield ReplayResponse(summary=self._summary)

    @asynccontextmanager
    async def _tables_made(self) -> AsyncIterator[None]:
        await self._tables.create()
        try:
            yield
        finally:
            await self._tables.drop()

    # --- 1, 2 ---

    async def _chunks(self) -> AsyncGenerator[ReplayProgress, None]:
        wanted, summary = self._wanted, self._summary
        oldest, last, self._made_us = await self._frames.state()
        if last < max(1, oldest):
            summary.not_held = "the stream is empty: nothing was touched"
            return
        read = 0
        async with aclosing(parts(self._frames, oldest, last, wanted.start_us, wanted.end_us)) as range_of_log:
            async for part in range_of_log:
                if not summary.first_sequence:
                    summary.first_sequence = part.first
                    self._say_what_is_not_held(oldest, part.first, part.first_stored_us)
                if part.frames:
                    await self._do(part)
                read += part.frames
                yield ReplayProgress(frames_read=read, frames_total=last - summary.first_sequence + 1)
        yield ReplayProgress(frames_read=read, frames_total=read)

    def _say_what_is_not_held(self, oldest: int, first: int, stored_us: int) -> None:
        start = self._wanted.start_us
        if oldest <= 1 or first > oldest:
            return  # it begins where it was asked to
        self._whole = False
        if start is None or start < stored_us:
            at = datetime.fromtimestamp(stored_us / 1e6, UTC)
            self._summary.not_held = (
                f"the stream begins at sequence {oldest}, stored {at:%Y-%m-%d %H:%M:%S} UTC: what is older cannot be "
                "made again, and was not touched"
            )

    async def _do(self, part: Part) -> None:
        batch = part.batch
        self._summary.last_sequence = part.last
        await self._wait_for_ingest(part.last)
        epoch = await self._same_stream()
        chunk = Chunk(epoch, part.first, part.last)
        await self._tables.clear()
        if len(batch.token_id):
            await self._tables.stage(await asyncio.to_thread(token_rows, batch, epoch))
        if batch.closes:
            charged = await self._charged_by(chunk, batch.closes)
            made = partial(request_rows, batch, self._book, charged, self._is_erased, epoch)
            await self._tables.stage(await asyncio.to_thread(made))
        if len(batch.frame_time_us):
            first, last = int(batch.frame_time_us.min()), int(batch.frame_time_us.max())
            known = self._times or (first, last)
            self._times = min(known[0], first), max(known[1], last)
        await self._mend(chunk)

    async def _same_stream(self) -> Epoch:
        """Whose frames were read, and whose rows are compared."""
        epoch = self._ingest.epoch
        _, _, made_us = await self._frames.state()
        if epoch.made_us != self._made_us or made_us != self._made_us:
            raise unavailable(
                "stream_made_anew",
                "The stream was made anew meanwhile; run the replay again.",
                retry_after=RETRY_AFTER,
            )
        return epoch

    async def _charged_by(self, chunk: Chunk, closes: Sequence[ClosedRequest]) -> dict[bytes, Rate]:
        """Of those that were charged before, as far as it is known by what."""
        known = await self._tables.charged_by(chunk, [item.close.request_id for item in closes])
        rates = known.rates
        for item in closes:
            request_id = item.close.request_id
            version = None if request_id in rates else known.versions.get(request_id)
            if version is None:
                continue
            rate = rate_named(item, self._book, version)
            if rate is None:
                log.error(
                    "the price that a lost request was charged by is gone: it is charged by the one in force",
                    extra={"request": str(UUID(bytes=request_id)), "rate_version": version},
                )
            else:
                rates[request_id] = rate
        return rates

    async def _wait_for_ingest(self, sequence: int) -> None:
        if await self._ingest.reached(sequence, self._wanted.timeout):
            return
        raise InferBusError(
            ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
            "ingest_behind",
            f"The ingest is at frame {self._ingest.position} and the range goes on to {sequence} at least; wait "
            "longer, or ask for an earlier range.",
        )

    # --- 3 ---

    async def _mend(self, chunk: Chunk) -> None:
        summary = self._summary
        frames = await self._tables.unlike_frames(chunk)
        summary.tokens_before += frames.before
        summary.tokens_after += frames.after
        if frames.condition and not self._wanted.dry_run:
            await self._tables.put_tokens(frames)
        if not self._wanted.dry_run:
            await self._tables.merge_doubled(chunk)
        requests = await self._tables.unlike_requests(chunk)
        summary.requests_before += requests.before
        summary.requests_after += requests.after
        if not requests.condition:
            return
        for currency, before, after in await self._tables.charges(requests):
            known = self._charges.get(currency, (Decimal(0), Decimal(0)))
            self._charges[currency] = known[0] + before, known[1] + after
        if not self._wanted.dry_run:
            await self._tables.put_requests(requests)

    # --- 4 ---

    async def _mend_rollups(self, first_us: int, last_us: int) -> None:
        now_us, rollups, summary = clock.now_us(), Rollups(self._store), self._summary
        begin, end = first_us // MINUTE_US * MINUTE_US, (last_us // MINUTE_US + 1) * MINUTE_US
        # If something has aged out, the stream has only a part of the first minute; the tables may have no more.
        low = begin if self._whole else begin + MINUTE_US
        high = min(end, (now_us - OPEN_US) // MINUTE_US * MINUTE_US)
        left = (end - begin - max(0, high - low)) // MINUTE_US
        unlike = await rollups.unlike(low, high) if low < high else {}
        summary.minutes = len({minute for minutes in unlike.values() for minute in minutes})
        summary.minutes_left = left
        if self._wanted.dry_run:
            return
        for target, minutes in unlike.items():
            await rollups.make(target, list(minutes))
        summary.hours = len(await UsageHours(self._store).roll(first_us, last_us + 1))

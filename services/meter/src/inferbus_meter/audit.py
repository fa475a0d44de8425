"""The audit: reads a time range of TOKENS again and compares every request in it with the tables.

    1  the range [start, end) by stored time is read chunk by chunk; once the ingest has passed a chunk, all rows that
       came of it are compared with it, column by column
    2  requests that had begun before the range are read from their beginning on, as far as the stream still has it
    3  the store is asked what counts of these requests, and that is compared by the laws of the log; and with what
       edges say they delivered
    4  the minutes and hours of the range are compared with the sums that are kept of them

Memory: one chunk, and one small record a request of the range, on both sides; never a token.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.meter_pb2 import AuditDifference, AuditProgress, AuditResponse, AuditSummary
from inferbus_bus.log import FrameLog
from inferbus_rating import PriceBook
from inferbus_runtime.errors import InferBusError

from inferbus_meter.audit_chunk import ChunkCheck
from inferbus_meter.audit_rows import Range, deliveries
from inferbus_meter.audit_sums import Span, sums_unlike
from inferbus_meter.clickhouse import STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.audit import Delivery, Difference, Tally, compare, fold, is_open
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.replay import Chunk
from inferbus_meter.core.rows import IsErased
from inferbus_meter.expected import Part, parts
from inferbus_meter.ingest import Ingest

# Clocks of edges (request ids) and of the broker (stored times) may differ by this much.
_CLOCK_SKEW_US = 60 * 1_000_000
# A client that comes back for the rest later than this after the range is not looked for.
_RESUME_US = 24 * 3600 * 1_000_000
# The ingest runs in this process too: others get a turn after this many requests.
_REQUESTS_A_TURN = 500


@dataclass(frozen=True, slots=True)
class AuditRange:
    """[start, end) in Unix microseconds of the stored time; None: from the first frame, until now.

    ``timeout``: seconds to wait for the ingest.
    """

    start_us: int | None
    end_us: int | None
    timeout: float


class Audit:
    """One run. Iterate :meth:`run` once. ``is_erased``: whose labels may have gone."""

    def __init__(
        self,
        wanted: AuditRange,
        frames: FrameLog,
        store: Store,
        ingest: Ingest,
        book: PriceBook,
        is_erased: IsErased = nobody_erased,
    ) -> None:
        self._wanted = wanted
        self._frames = frames
        self._store = store
        self._ingest = ingest
        self._tallies: dict[bytes, Tally] = {}
        self._chunks = ChunkCheck(store, book, is_erased, self._tallies)
        self._span = Span()
        self._differences = 0
        self._read = 0
        self._total = 0
        self._first = 0
        self._last = 0
        self._first_stored_us = 0
        self._last_stored_us = 0
        self._from = 0
        self._aged: list[bytes] = []

    async def run(self) -> AsyncGenerator[AuditResponse, None]:
        """Progress, differences, and at the end the summary.

        Raises InferBusError DEADLINE_EXCEEDED if the ingest does not get there, UNAVAILABLE without store or bus.
        """
        self._stream_first, self._stream_last = await self._frames.bounds()
        try:
            async for event in self._read_range():
                yield event
            unproven: list[Difference] = []
            async for event in self._read_history(unproven):
                yield event
            summary = AuditSummary(first_sequence=self._first, last_sequence=self._last)
            found = [
                *unproven,
                *await self._compare(summary),
                *await sums_unlike(self._store, self._span, self._ingest.epoch),
            ]
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        for difference in found:
            yield self._told(difference)
        summary.differences = self._differences
        yield AuditResponse(summary=summary)

    def _told(self, difference: Difference) -> AuditResponse:
        self._differences += 1
        return AuditResponse(difference=_proto(difference))

    # --- 1, 2: the stream ---

    async def _read_range(self) -> AsyncIterator[AuditResponse]:
        first, last, wanted = self._stream_first, self._stream_last, self._wanted
        self._total = max(0, last - first + 1)
        if last < first:
            return
        async with aclosing(parts(self._frames, first, last, wanted.start_us, wanted.end_us)) as range_of_log:
            async for part in range_of_log:
                if not self._first:
                    self._first, self._first_stored_us = part.first, part.first_stored_us
                    self._total = last - self._first + 1
                if part.frames:
                    for difference in await self._part(part):
                        yield self._told(difference)
                yield self._progress()
        self._total = self._read

    async def _part(self, part: Part) -> list[Difference]:
        self._last, self._last_stored_us = part.last, part.last_stored_us
        await self._fold(part, self._tallies, None)
        self._span.add(part)
        await self._wait_for_ingest(part.last)
        malformed = [
            Difference(b"", "malformed_frame", detail=f"sequence {fault.sequence}: {fault.detail}")
            for fault in part.batch.malformed
        ]
        return malformed + await self._chunks.run(Chunk(self._ingest.epoch, part.first, part.last), part.batch)

    async def _fold(self, part: Part, tallies: dict[bytes, Tally], only: frozenset[bytes] | None) -> None:
        """In a thread: it takes tens of milliseconds."""
        await asyncio.to_thread(fold, tallies, part.batch, only)
        self._read += part.frames

    async def _read_history(self, unproven: list[Difference]) -> AsyncIterator[AuditResponse]:
        """Complete the requests that had begun before the range; what cannot be completed is taken out and named."""
        self._from = self._first
        for begin_us in self._history_begins():
            partial = frozenset(request_id for request_id, tally in self._tallies.items() if not tally.whole())
            if not partial or self._first <= self._stream_first:
                break
            earlier: dict[bytes, Tally] = {}
            self._total += self._first - self._stream_first
            begun = 0
            async with aclosing(parts(self._frames, self._stream_first, self._first - 1, begin_us)) as history:
                async for part in history:
                    begun = begun or part.first
                    await self._fold(part, earlier, partial)
                    yield self._progress()
            self._total = self._read
            self._from = begun or self._first
            for request_id, tally in earlier.items():
                merged = self._tallies[request_id].after(tally)
                if merged.whole() or begin_us is None:
                    self._tallies[request_id] = merged
        if self._stream_first > 1:
            unproven += self._take_out_aged()
        if self._first:
            yield self._progress()

    def _history_begins(self) -> list[int | None]:
        """Where to begin: first by the oldest request id (UUIDv7 carries its time), then at the stream's beginning."""
        oldest = min(
            (int.from_bytes(request_id[:6], "big") * 1000 for request_id, tally in self._tallies.items()
             if not tally.whole()),
            default=0,
        )  # fmt: skip
        guess = oldest - _CLOCK_SKEW_US
        return [guess, None] if 0 < guess < self._first_stored_us else [None]

    def _take_out_aged(self) -> list[Difference]:
        """Requests whose beginning the stream no longer has. Without a start time nobody asked for them."""
        self._aged = [request_id for request_id, tally in self._tallies.items() if not tally.whole()]
        for request_id in self._aged:
            del self._tallies[request_id]
        start = self._wanted.start_us
        if start is None:
            return []
        detail = f"its beginning, before sequence {self._stream_first}, has aged out of the stream"
        found = [Difference(request_id, "not_proven", detail=detail) for request_id in self._aged]
        if self._first == self._stream_first and start < self._first_stored_us:
            detail = f"frames before sequence {self._stream_first} have aged out of the stream"
            found.insert(0, Difference(b"", "not_proven", detail=detail))
        return found

    def _progress(self) -> AuditResponse:
        total = max(self._total, self._read)
        return AuditResponse(progress=AuditProgress(frames_read=self._read, frames_total=total))

    async def _wait_for_ingest(self, sequence: int) -> None:
        if await self._ingest.reached(sequence, self._wanted.timeout):
            return
        raise InferBusError(
            ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
            "ingest_behind",
            f"The ingest is at frame {self._ingest.position} and the range goes on to {sequence} at least; wait "
            "longer, or ask for an earlier range.",
        )

    # --- 3: the store ---

    async def _compare(self, summary: AuditSummary) -> list[Difference]:
        rows_of = Range(self._store, self._ingest.epoch, self._from, self._first, self._last)
        stored = await rows_of.stored(self._tallies.keys())
        bills = await rows_of.bills(self._tallies)
        delivered = await self._deliveries()
        later = range(self._last + 1, (await self._frames.bounds())[1] + 1)
        for request_id in self._aged:
            stored.pop(request_id, None)
            bills.pop(request_id, None)
        found = []
        for number, (request_id, tally) in enumerate(self._tallies.items()):
            if number % _REQUESTS_A_TURN == 0:
                await asyncio.sleep(0)
            reading = tally.reading()
            rows, bill = stored.pop(request_id, None), bills.pop(request_id, None)
            delivery = delivered.get(request_id)
            summary.requests += 1
            summary.open_requests += is_open(tally, reading)
            if not is_open(tally, reading):
                _count_delivery(summary, reading.tokens, delivery)
            summary.stream_tokens += reading.tokens
            summary.stored_tokens += rows.valid if rows else 0
            summary.billed_tokens += bill.output_tokens if bill else 0
            found += compare(request_id, tally, rows, bill, delivery, later)
            end = tally.end()
            if len(tally.ends) > 1 or (bill is not None and end is not None and bill.sequence != end.sequence):
                self._span.leave_out(one.time_us for one in tally.ends)
        for request_id in stored.keys() | bills.keys():
            rows, bill = stored.get(request_id), bills.get(request_id)
            found.append(
                Difference(
                    request_id, "unknown_request", 0, rows.valid if rows else 0, bill.output_tokens if bill else 0,
                    "in the tables for this range, but not on the stream",
                )
            )  # fmt: skip
        return found

    async def _deliveries(self) -> dict[bytes, Delivery]:
        if not self._first:
            return {}
        low, high = self._first_stored_us - _CLOCK_SKEW_US, self._last_stored_us + _RESUME_US
        return await deliveries(self._store, low, high, self._tallies.keys())


def _count_delivery(summary: AuditSummary, tokens: int, delivery: Delivery | None) -> None:
    if delivery is None:
        summary.unknown_deliveries += 1
        return
    summary.delivered_tokens += delivery.tokens
    if delivery.wholes is None:
        summary.undelivered_requests += 1
        summary.undelivered_tokens += max(0, tokens - delivery.tokens)


def _proto(difference: Difference) -> AuditDifference:
    return AuditDifference(
        request_id=difference.request_id,
        reason=difference.reason,
        stream_tokens=difference.stream_tokens,
        stored_tokens=difference.stored_tokens,
        billed_tokens=difference.billed_tokens,
        detail=difference.detail,
        delivered_tokens=difference.delivered_tokens,
    )

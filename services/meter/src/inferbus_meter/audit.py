"""The audit: reads a time range of TOKENS again and compares every request in it with the tables.

    1  the range [start, end) by stored time becomes a range of stream sequences
    2  wait until the ingest has passed its end
    3  read it; requests that had begun before it are read from their beginning on, as far as the stream still has it
    4  ask the store for the same sequences, and compare request by request

Memory: one small record a request of the range, on both sides; never a token.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.meter_pb2 import AuditDifference, AuditProgress, AuditResponse, AuditSummary
from inferbus_bus.log import FrameLog
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.audit import CHECKSUM_SQL, Bill, Difference, Stored, Tally, compare, fold, is_open
from inferbus_meter.core.frames import FrameGather, Malformed
from inferbus_meter.core.laws import read
from inferbus_meter.core.rating import Rate
from inferbus_meter.ingest import Ingest

# Clocks of edges (request ids) and of the broker (stored times) may differ by this much.
_CLOCK_SKEW_US = 60 * 1_000_000
_IDS_A_QUERY = 1000
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
    """One run. Iterate :meth:`run` once."""

    def __init__(
        self, wanted: AuditRange, frames: FrameLog, store: Store, ingest: Ingest, book: Mapping[str, Rate]
    ) -> None:
        self._wanted = wanted
        self._frames = frames
        self._store = store
        self._ingest = ingest
        self._book = book
        self._tallies: dict[bytes, Tally] = {}
        self._malformed: list[Malformed] = []
        self._read = 0
        self._total = 0
        self._first = 0
        self._last = 0
        self._first_stored_us = 0
        self._from = 0
        self._aged: list[bytes] = []

    async def run(self) -> AsyncIterator[AuditResponse]:
        """Progress, differences, and at the end the summary.

        Raises InferBusError DEADLINE_EXCEEDED if the ingest does not get there, UNAVAILABLE without store or bus.
        """
        self._stream_first, self._stream_last = await self._frames.bounds()
        async for progress in self._read_range():
            yield progress
        await self._wait_for_ingest()
        unproven: list[Difference] = []
        async for event in self._read_history(unproven):
            yield event
        summary = AuditSummary(first_sequence=self._first, last_sequence=self._last)
        unproven += [
            Difference(b"", "malformed_frame", detail=f"sequence {fault.sequence}: {fault.detail}")
            for fault in self._malformed
        ]
        try:
            found = [*unproven, *await self._compare(summary)]
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        for difference in found:
            yield AuditResponse(difference=_proto(difference))
        summary.differences = len(found)
        yield AuditResponse(summary=summary)

    # --- 1, 3: the stream ---

    async def _read_range(self) -> AsyncIterator[AuditResponse]:
        first, last, wanted = self._stream_first, self._stream_last, self._wanted
        self._total = max(0, last - first + 1)
        if last < first:
            return
        async for stored in self._frames.read(first, last, since_us=wanted.start_us):
            if not self._first:
                self._first, self._first_stored_us = stored[0][0], stored[0][1]
                self._total = last - self._first + 1
            within = [frame for frame in stored if wanted.end_us is None or frame[1] < wanted.end_us]
            if within:
                self._last = within[-1][0]
                self._malformed += await asyncio.to_thread(self._fold, within, self._tallies, None)
            if len(within) < len(stored):
                self._total = self._read
            yield self._progress()
            if len(within) < len(stored):
                return

    def _fold(
        self, stored: list[tuple[int, int, bytes]], tallies: dict[bytes, Tally], only: frozenset[bytes] | None
    ) -> Iterable[Malformed]:
        """In a thread: it takes tens of milliseconds."""
        gather = FrameGather(bordered=False)
        for frame in stored:
            gather.add(*frame)
        batch = gather.finish()
        fold(tallies, batch, only)
        self._read += len(stored)
        return batch.malformed

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
            async for stored in self._frames.read(self._stream_first, self._first - 1, since_us=begin_us):
                begun = begun or stored[0][0]
                await asyncio.to_thread(self._fold, stored, earlier, partial)
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

    # --- 2 ---

    async def _wait_for_ingest(self) -> None:
        if await self._ingest.reached(self._last, self._wanted.timeout):
            return
        why = (
            "wait longer, or ask for an earlier range"
            if self._ingest.running
            else "another meter ingests now: ask that"
        )
        raise InferBusError(
            ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
            "ingest_behind",
            f"The ingest is at frame {self._ingest.position} and the range ends at {self._last}; {why}.",
        )

    # --- 4: the store ---

    async def _compare(self, summary: AuditSummary) -> list[Difference]:
        stored = await self._stored()
        bills = await self._bills()
        for request_id in self._aged:
            stored.pop(request_id, None)
            bills.pop(request_id, None)
        found = []
        for number, (request_id, tally) in enumerate(self._tallies.items()):
            if number % _REQUESTS_A_TURN == 0:
                await asyncio.sleep(0)
            reading = read(tally.runs)
            rows, bill = stored.pop(request_id, None), bills.pop(request_id, None)
            summary.requests += 1
            summary.open_requests += is_open(tally, reading)
            summary.stream_tokens += reading.tokens
            summary.stored_tokens += rows.valid if rows else 0
            summary.billed_tokens += bill.output_tokens if bill else 0
            found += compare(request_id, tally, rows, bill, self._book)
        for request_id in stored.keys() | bills.keys():
            rows, bill = stored.get(request_id), bills.get(request_id)
            found.append(
                Difference(
                    request_id, "unknown_request", 0, rows.valid if rows else 0, bill.output_tokens if bill else 0,
                    "in the tables for this range, but not on the stream",
                )
            )  # fmt: skip
        return found

    async def _stored(self) -> dict[bytes, Stored]:
        """By request, for the sequences read. Of requests that ended before the range nothing is asked."""
        rows = await self._store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), count(), "  # noqa: S608 - a constant of ours
            f"{CHECKSUM_SQL}, max(stream_seq) FROM token_events "
            "WHERE stream_seq BETWEEN {low:UInt64} AND {high:UInt64} GROUP BY request_id",
            self._span(),
        )
        valid = await self._store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), count() FROM tokens "
            "WHERE stream_seq BETWEEN {low:UInt64} AND {high:UInt64} GROUP BY request_id",
            self._span(),
        )
        counts = {_id(request_id): int(count) for request_id, count in valid}
        return {
            _id(request_id): Stored(int(count), int(checksum), counts.get(_id(request_id), 0))
            for request_id, count, checksum, last in rows
            if last >= self._first or _id(request_id) in self._tallies
        }

    async def _bills(self) -> dict[bytes, Bill]:
        query = (
            "SELECT UUIDStringToNum(toString(request_id)), count(), any(attempt), any(output_tokens), any(cost), "
            "any(rate_version), any(currency), any(input_per_million), any(cached_input_per_million), "
            "any(output_per_million), any(stream_seq) FROM bills WHERE %s GROUP BY request_id"
        )
        rows = await self._store.rows(query % "stream_seq BETWEEN {low:UInt64} AND {high:UInt64}", self._span())
        bills = {_id(row[0]): _bill(row) for row in rows if row[-1] >= self._first or _id(row[0]) in self._tallies}
        # A Close after the range may have replaced the row of one inside it.
        gone = [
            request_id.hex() for request_id, tally in self._tallies.items() if tally.ends and request_id not in bills
        ]
        for begin in range(0, len(gone), _IDS_A_QUERY):
            ids = gone[begin : begin + _IDS_A_QUERY]
            rows = await self._store.rows(query % "hex(UUIDStringToNum(toString(request_id))) IN {ids:Array(String)}",
                                          {"ids": [text.upper() for text in ids]})  # fmt: skip
            bills |= {_id(row[0]): _bill(row) for row in rows}
        return bills

    def _span(self) -> dict[str, int]:
        return {"low": self._from, "high": self._last}


def _id(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(value)


def _bill(row: Any) -> Bill:
    _, rows, attempt, output_tokens, cost, version, currency, per_input, per_cached, per_output, _ = row
    return Bill(
        int(rows), int(attempt), int(output_tokens), cost, Rate(version, currency, per_input, per_cached, per_output)
    )


def _proto(difference: Difference) -> AuditDifference:
    return AuditDifference(
        request_id=difference.request_id,
        reason=difference.reason,
        stream_tokens=difference.stream_tokens,
        stored_tokens=difference.stored_tokens,
        billed_tokens=difference.billed_tokens,
        detail=difference.detail,
    )

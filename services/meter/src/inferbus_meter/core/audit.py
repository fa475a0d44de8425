"""The proof, as values: what the stream says of each request against what the tables say.

Three counts must agree for each request: tokens on the log that count by the laws, rows in ``token_events``, tokens
billed. The log is the truth; the tables are what is checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

import numpy as np
from inferbus.common.v1.usage_pb2 import Usage

from inferbus_meter.core.frames import ClosedRequest, FrameBatch
from inferbus_meter.core.laws import Reading, Run, append_run, begins_here, read
from inferbus_meter.core.rating import Rate, cost, rate_for

# Mixes attempt, index and token id of a token into one number; sums of it (modulo 2^64) differ if any row differs.
# CHECKSUM_SQL must say the same.
_ATTEMPT_FACTOR = np.uint64(0x9E3779B97F4A7C15)
CHECKSUM_SQL = (
    "sum((toUInt64(`index`) + 1) * (toUInt64(token_id) + 1) + toUInt64(attempt) * toUInt64(11400714819323198485))"
)


@dataclass(frozen=True, slots=True)
class End:
    """A Close as far as the audit needs it."""

    attempt: int
    model: str
    usage: Usage
    sequence: int


@dataclass(slots=True)
class Tally:
    """What the stream says of one request: runs in stream order, all tokens (void ones too), and its ends."""

    runs: list[Run] = field(default_factory=list)
    rows: int = 0
    checksum: int = 0
    ends: list[End] = field(default_factory=list)

    def whole(self) -> bool:
        """Whether the request begins here, so that nothing before matters."""
        if self.runs:
            return begins_here(self.runs)
        return not any(end.usage.output_tokens for end in self.ends)

    def after(self, earlier: "Tally") -> "Tally":
        """This tally with what an earlier part of the stream said before it."""
        return Tally(
            earlier.runs + self.runs,
            earlier.rows + self.rows,
            (earlier.checksum + self.checksum) & _MASK,
            earlier.ends + self.ends,
        )

    def end(self) -> End | None:
        """The Close that holds: the highest attempt's, the later of two equal ones (as the table keeps it)."""
        return max(reversed(self.ends), key=lambda end: end.attempt, default=None)


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of a request in ``token_events``; ``valid`` as the view ``tokens`` counts them."""

    rows: int
    checksum: int
    valid: int


@dataclass(frozen=True, slots=True)
class Bill:
    """A request's row in ``bills``. ``rows``: how many there are, which must be one."""

    rows: int
    attempt: int
    output_tokens: int
    cost: Decimal
    rate: Rate


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree. ``reason`` is stable and low-cardinality."""

    request_id: bytes
    reason: str
    stream_tokens: int = 0
    stored_tokens: int = 0
    billed_tokens: int = 0
    detail: str = ""


_MASK = (1 << 64) - 1
_NOTHING_STORED = Stored(0, 0, 0)


def fold(tallies: dict[bytes, Tally], batch: FrameBatch, only: "frozenset[bytes] | None" = None) -> None:
    """Add a batch to the tallies; with ``only``, of those requests alone. Grouped by request in numpy columns."""
    for request_id, runs, rows, checksum in _groups(batch):
        if only is None or request_id in only:
            tally = tallies.setdefault(request_id, Tally())
            for run in runs:
                append_run(tally.runs, run)
            tally.rows += rows
            tally.checksum = (tally.checksum + checksum) & _MASK
    for item in batch.closes:
        if only is None or item.close.request_id in only:
            tallies.setdefault(item.close.request_id, Tally()).ends.append(_end(item))


def _end(item: ClosedRequest) -> End:
    # A copy: a part of a parsed frame keeps the memory of the whole frame.
    usage = Usage()
    usage.CopyFrom(item.close.usage)
    return End(item.close.attempt, item.context.model, usage, item.sequence)


def _groups(batch: FrameBatch) -> Iterator[tuple[bytes, list[Run], int, int]]:
    """For each request of the batch: its runs in stream order, rows, checksum."""
    counts = batch.token_count.astype(np.int64)
    some = np.flatnonzero(counts)
    if not len(some):
        return
    halves = np.ascontiguousarray(batch.request_id).view(">u8").reshape(-1, 2)[some]
    order = some[np.lexsort((np.arange(len(some)), halves[:, 1], halves[:, 0]))]
    ids = batch.request_id[order]
    first, count, attempt = batch.first_index[order].astype(np.int64), counts[order], batch.attempt[order]
    sums = _delta_checksums(batch)[order]
    new_request = np.ones(len(order), bool)
    new_request[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    new_run = new_request.copy()
    new_run[1:] |= (first[1:] != first[:-1] + count[:-1]) | (attempt[1:] != attempt[:-1])
    starts = np.flatnonzero(new_run)
    run_counts = np.add.reduceat(count, starts).tolist()
    request_starts = np.flatnonzero(new_request)
    request_sums = np.add.reduceat(sums, request_starts).tolist()
    runs_before = np.searchsorted(starts, np.append(request_starts, len(order))).tolist()
    run_attempts, run_firsts = attempt[starts].tolist(), first[starts].tolist()
    for number, at in enumerate(request_starts.tolist()):
        span = range(runs_before[number], runs_before[number + 1])
        runs = [Run(run_attempts[run], run_firsts[run], run_counts[run]) for run in span]
        yield ids[at].tobytes(), runs, sum(run.count for run in runs), request_sums[number]


def _delta_checksums(batch: FrameBatch) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """Of the tokens of each delta; deltas without tokens have 0."""
    counts = batch.token_count.astype(np.int64)
    ends = np.cumsum(counts)
    delta = np.repeat(np.arange(len(counts)), counts)
    index = batch.first_index[delta].astype(np.uint64) + (np.arange(len(delta)) - (ends - counts)[delta]).astype(
        np.uint64
    )
    one = np.uint64(1)
    terms = (index + one) * (batch.token_id.astype(np.uint64) + one) + batch.attempt[delta] * _ATTEMPT_FACTOR
    running = np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)))
    sums: np.ndarray[tuple[int], np.dtype[np.uint64]] = running[ends] - running[ends - counts]
    return sums


def is_open(tally: Tally, reading: Reading) -> bool:
    """No end yet, or only one of an attempt that a later one has taken over from."""
    end = tally.end()
    return end is None or end.attempt < reading.attempt


def compare(
    request_id: bytes, tally: Tally, stored: Stored | None, bill: Bill | None, book: Mapping[str, Rate]
) -> list[Difference]:
    """All differences of one request. ``book``: present rates by model, to see whether one was changed silently."""
    reading = read(tally.runs)
    stored = stored or _NOTHING_STORED
    billed = bill.output_tokens if bill else 0
    found: list[tuple[str, str]] = []
    if reading.missing:
        found.append(("missing_index", f"{reading.missing} indices never came"))
    if reading.repeated:
        found.append(("duplicate_index", f"{reading.repeated} indices came twice in one attempt"))
    if any(one.attempt == two.attempt and one.usage != two.usage for one, two in pairwise(tally.ends)):
        found.append(("duplicate_end", "one attempt ended twice, with different usage"))
    found += _token_faults(tally, reading, stored)
    if not is_open(tally, reading):
        found += _bill_faults(tally, reading, bill, book)
    elif bill is not None and not tally.ends:
        found.append(("unknown_request", "billed, but the stream has no end of it"))
    return [Difference(request_id, reason, reading.tokens, stored.valid, billed, detail) for reason, detail in found]


def _token_faults(tally: Tally, reading: Reading, stored: Stored) -> list[tuple[str, str]]:
    if stored.rows < tally.rows:
        return [("missing_row", f"{tally.rows - stored.rows} of {tally.rows} tokens are not in token_events")]
    if stored.rows > tally.rows:
        return [("duplicate_row", f"{stored.rows - tally.rows} rows too many in token_events")]
    if stored.checksum != tally.checksum:
        return [("missing_row", "token_events holds other tokens than the stream")]
    if stored.valid != reading.tokens and not reading.repeated:
        return [("output_tokens", "the view tokens counts differently from the stream")]
    return []


def _bill_faults(tally: Tally, reading: Reading, bill: Bill | None, book: Mapping[str, Rate]) -> list[tuple[str, str]]:
    end = tally.end()
    assert end is not None, "only called for a request that ended"  # noqa: S101
    if bill is None:
        return [("missing_row", "ended, but not in requests")]
    if bill.attempt > end.attempt:
        return []  # a later Close, after the range, has replaced the row
    faults = []
    if bill.rows > 1:
        faults.append(("duplicate_row", f"{bill.rows} rows in bills"))
    if bill.output_tokens != reading.tokens:
        faults.append(("output_tokens", "billed differently from what is on the stream"))
    expected = cost(end.usage, bill.rate)
    if bill.cost != expected:
        faults.append(("cost", f"billed {bill.cost:f}, the rate {bill.rate.version!r} gives {expected:f}"))
    present = rate_for(end.model, book)
    if present.version == bill.rate.version and present != bill.rate:
        faults.append(("cost", f"the rate {bill.rate.version!r} was changed without a new version"))
    return faults

"""The proof, as values: what the stream says of each request against what the tables say.

Three counts must agree for each request: tokens on the log that count by the laws, rows in ``token_events``, tokens
billed. The log is the truth; the tables are what is checked. Whether single columns are right is :mod:`.columns`' part.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from inferbus.common.v1.usage_pb2 import Usage

from inferbus_meter.core.frames import ClosedRequest, FrameBatch
from inferbus_meter.core.laws import Reading, Run, append_run, begins_here, read


@dataclass(frozen=True, slots=True)
class End:
    """A Close as far as the audit needs it."""

    attempt: int
    usage: Usage
    sequence: int
    time_us: int = 0
    """Unix microseconds."""


@dataclass(slots=True)
class Tally:
    """What the stream says of one request: runs in stream order, all tokens (void ones too), and its ends. ``unlike``:
    the columns of its tokens that are not the same in the tables."""

    runs: list[Run] = field(default_factory=list)
    rows: int = 0
    ends: list[End] = field(default_factory=list)
    unlike: frozenset[str] = frozenset()

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
            earlier.ends + self.ends,
            self.unlike,
        )

    def reading(self) -> Reading:
        """What of it counts. A Close opens its attempt if no delta did: it names the index by what it counts."""
        end = self.end()
        closing = () if end is None else (Run(end.attempt, end.usage.output_tokens, 0),)
        return read((*self.runs, *closing))

    def end(self) -> End | None:
        """The Close that holds: the highest attempt's, the later of two equal ones (as the table keeps it)."""
        return max(reversed(self.ends), key=lambda end: end.attempt, default=None)


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of a request in ``token_events``; ``valid`` as the view ``tokens`` counts them."""

    rows: int
    valid: int


@dataclass(frozen=True, slots=True)
class Bill:
    """A request's row in ``bills``. ``rows``: how many there are, which must be one."""

    rows: int
    attempt: int
    output_tokens: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What edges say of a request. ``tokens``: the furthest index that was handed to a client, by ``edge``. ``wholes``:
    the lowest and the highest count that an edge gave as all of the answer; None: none did."""

    tokens: int
    edge: str
    wholes: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree. ``reason`` is stable and low-cardinality."""

    request_id: bytes
    reason: str
    stream_tokens: int = 0
    stored_tokens: int = 0
    billed_tokens: int = 0
    detail: str = ""
    delivered_tokens: int | None = None


_NOTHING_STORED = Stored(0, 0)
# Columns that say which token it is.
_TOKEN = frozenset({"attempt", "index", "token_id"})


def fold(tallies: dict[bytes, Tally], batch: FrameBatch, only: "frozenset[bytes] | None" = None) -> None:
    """Add a batch to the tallies; with ``only``, of those requests alone. Grouped by request in numpy columns."""
    for request_id, runs, rows in _groups(batch):
        if only is None or request_id in only:
            tally = tallies.setdefault(request_id, Tally())
            for run in runs:
                append_run(tally.runs, run)
            tally.rows += rows
    for item in batch.closes:
        if only is None or item.close.request_id in only:
            tallies.setdefault(item.close.request_id, Tally()).ends.append(_end(item))


def _end(item: ClosedRequest) -> End:
    # A copy: a part of a parsed frame keeps the memory of the whole frame.
    usage = Usage()
    usage.CopyFrom(item.close.usage)
    return End(item.close.attempt, usage, item.sequence, item.time_us)


def _groups(batch: FrameBatch) -> Iterator[tuple[bytes, list[Run], int]]:
    """For each request of the batch: its runs in stream order, rows."""
    counts = batch.token_count.astype(np.int64)
    some = np.flatnonzero((counts > 0) | (batch.attempt > 1))  # without tokens it may open a later attempt
    if not len(some):
        return
    halves = np.ascontiguousarray(batch.request_id).view(">u8").reshape(-1, 2)[some]
    order = some[np.lexsort((np.arange(len(some)), halves[:, 1], halves[:, 0]))]
    ids = batch.request_id[order]
    first, count, attempt = batch.first_index[order].astype(np.int64), counts[order], batch.attempt[order]
    new_request = np.ones(len(order), bool)
    new_request[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    new_run = new_request.copy()
    new_run[1:] |= (first[1:] != first[:-1] + count[:-1]) | (attempt[1:] != attempt[:-1])
    starts = np.flatnonzero(new_run)
    run_counts = np.add.reduceat(count, starts).tolist()
    request_starts = np.flatnonzero(new_request)
    runs_before = np.searchsorted(starts, np.append(request_starts, len(order))).tolist()
    run_attempts, run_firsts = attempt[starts].tolist(), first[starts].tolist()
    for number, at in enumerate(request_starts.tolist()):
        span = range(runs_before[number], runs_before[number + 1])
        runs = [Run(run_attempts[run], run_firsts[run], run_counts[run]) for run in span]
        yield ids[at].tobytes(), runs, sum(run.count for run in runs)


def is_open(tally: Tally, reading: Reading) -> bool:
    """No end yet, or only one of an attempt that a later one has taken over from."""
    end = tally.end()
    return end is None or end.attempt < reading.attempt


def compare(
    request_id: bytes,
    tally: Tally,
    stored: Stored | None,
    bill: Bill | None,
    delivery: Delivery | None = None,
    later: range = range(0),
) -> list[Difference]:
    """All differences of one request, but for those of single columns of its bill. ``later``: the sequences after the
    range, at which its end may have been said once more."""
    reading = tally.reading()
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
        found += _bill_faults(tally, reading, bill, later)
        found += _delivery_faults(reading, delivery)
    elif bill is not None and not tally.ends:
        found.append(("unknown_request", "billed, but the stream has no end of it"))
    delivered = None if delivery is None else delivery.tokens
    return [
        Difference(request_id, reason, reading.tokens, stored.valid, billed, detail, delivered)
        for reason, detail in found
    ]


def _token_faults(tally: Tally, reading: Reading, stored: Stored) -> list[tuple[str, str]]:
    if stored.rows < tally.rows:
        return [("missing_row", f"{tally.rows - stored.rows} of {tally.rows} tokens are not in token_events")]
    if stored.rows > tally.rows:
        return [("duplicate_row", f"{stored.rows - tally.rows} rows too many in token_events")]
    if tally.unlike:
        columns = f"token_events differs from the stream in {', '.join(sorted(tally.unlike))}"
        return [("missing_row" if tally.unlike & _TOKEN else "column", columns)]
    # While it runs the view does not know of an attempt that has named its index and made no token yet.
    if stored.valid != reading.tokens and not reading.repeated and not is_open(tally, reading):
        return [("output_tokens", "the view tokens counts differently from the stream")]
    return []


def _delivery_faults(reading: Reading, delivery: Delivery | None) -> list[tuple[str, str]]:
    """Less than the log has is no fault: a client may leave, and pays for what was generated until then."""
    if delivery is None:
        return []
    if delivery.tokens > reading.tokens:
        return [("delivered", f"{delivery.edge} delivered {delivery.tokens} tokens, the log has {reading.tokens}")]
    if delivery.wholes is not None and delivery.wholes != (reading.tokens, reading.tokens):
        fewest = delivery.wholes[0]
        return [("delivered", f"an edge delivered {fewest} tokens as the whole answer, the log has {reading.tokens}")]
    return []


def _bill_faults(tally: Tally, reading: Reading, bill: Bill | None, later: range) -> list[tuple[str, str]]:
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
        faults.append(("output_tokens", f"output_tokens is {bill.output_tokens}, the stream has {reading.tokens}"))
    if bill.sequence != end.sequence and bill.sequence not in later:
        faults.append(("column", f"stream_seq is {bill.sequence}, its end is at {end.sequence}"))
    return faults

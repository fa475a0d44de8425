"""Decisions of a replay: which rows of a chunk of the stream are to be taken out and written again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from inferbus_meter.core.epochs import Epoch

LEASE = "meter-replay"
"""Who holds it may replay. Meanwhile no budget is settled and no invoice issued: of tables that were lost, charges come
back one by one."""
# So many are named one by one in a statement; with more, all of the chunk is looked at again, which comes to the same.
MOST_NAMED = 1000
TIMES = {"token_events": "time", "requests": "end_time"}
"""The column of a frame's time, by table."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stream sequences, both included, of one stream."""

    epoch: Epoch
    first: int
    last: int

    def condition(self, table: str) -> str:
        return f"stream_seq BETWEEN {self.first} AND {self.last} AND {self.epoch.condition(TIMES[table])}"


@dataclass(frozen=True, slots=True)
class Unlike:
    """What is not the same in the table and on the stream. ``before`` and ``after``: rows. ``condition`` selects just
    them on either side, in SQL; empty: all is the same."""

    condition: str
    before: int
    after: int


def unlike_frames(chunk: Chunk, found: Sequence[tuple[int, int, int]]) -> Unlike:
    """``found``: (sequence, rows in the table, rows by the stream) of the frames that differ."""
    before, after = sum(row[1] for row in found), sum(row[2] for row in found)
    named = _named("stream_seq", [str(row[0]) for row in found])
    return Unlike(chunk.condition("token_events") + named if found else "", before, after)


def unlike_requests(chunk: Chunk, found: Sequence[tuple[UUID, int, int]], superseded: Iterable[UUID]) -> Unlike:
    """``found``: (request, rows in the table, rows by the stream) of those that differ. ``superseded``: requests whose
    row in the table is that of an end outside of the chunk, which counts more: nothing of them is missing."""
    gone = frozenset(superseded)
    left = [row for row in found if row[1] or row[0] not in gone]
    before, after = sum(row[1] for row in left), sum(row[2] for row in left)
    named = _named("request_id", [f"'{row[0]}'" for row in left])
    return Unlike(chunk.condition("requests") + named if left else "", before, after)


def _named(column: str, values: Sequence[str]) -> str:
    return "" if len(values) > MOST_NAMED else f" AND {column} IN ({', '.join(values)})"

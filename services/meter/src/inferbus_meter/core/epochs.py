"""Which stream a row came from. A stream that is made anew counts from 1 again, and one that lost its tail goes on from
where it ends now, so a sequence alone names no frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of rows that were written before the column was: its default in the tables.
UNKNOWN = 0
# A frame may have waited for the new stream, and workers' clocks differ.
_BEFORE_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Epoch:
    """The ``number``-th stream TOKENS there has been, from 0, as ``ingest_batches`` counts; made at ``made_us`` (Unix
    microseconds).

    ``base`` above 0: the stream of before lost what was after this sequence. Frames up to it are still of ``before``.
    """

    number: int
    made_us: int
    base: int = 0
    before: "Epoch | None" = None

    @property
    def written(self) -> int:
        """Its value in the column ``stream_epoch``."""
        return self.number + 1

    def written_of(self, sequences: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The value of each frame that the stream holds now."""
        own = np.full(len(sequences), self.written, np.uint32)
        if not self.base:
            return own
        earlier = np.full_like(own, UNKNOWN) if self.before is None else self.before.written_of(sequences)
        return np.where(sequences > self.base, own, earlier)

    def condition(self, time: str) -> str:
        """Selects the rows of what the stream holds now, in SQL. ``time``: the table's column of a frame's time, by
        which rows are told apart that do not name their stream."""
        if self.base:
            # Whoever begins so names the stream in every row.
            own = f"(stream_epoch = {self.written} AND stream_seq > {self.base})"
            if self.before is None:
                return own
            return f"({own} OR (stream_seq <= {self.base} AND {self.before.condition(time)}))"
        unknown = f"stream_epoch = {UNKNOWN}"
        if self.number:
            unknown += f" AND {time} >= fromUnixTimestamp64Micro({max(0, self.made_us - _BEFORE_US)})"
        return f"(stream_epoch = {self.written} OR ({unknown}))"

"""Who brings which frames into the tables: what the rows of ``ingest_batches`` say, and what follows from it.

A claim is a range of stream sequences that one meter has taken. The claims of an epoch are a chain: each begins right
after the one before, so no two of them overlap, and the store keeps only the first one that begins at a sequence. A
claim is done when all its rows are in the tables. Whoever does a claim again, the same blocks come out of it under the
same insert tokens, so nothing here decides whether a frame is counted twice: it only keeps meters out of each other's
way.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Claim:
    """Sequences ``first`` to ``last``, both included, of the ``epoch``-th stream there has been, which was made at
    ``stream_us`` (Unix microseconds; 0: not known, as it was when there was one meter only).

    ``attempt`` grows by one whenever the holder shows that it is alive, and when another takes over. ``block_tokens``:
    how the claim is cut into inserts; 0: not at all, in those times, too.
    """

    epoch: int
    stream_us: int
    first: int
    last: int
    attempt: int
    holder: str
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A frame that was brought, and when it was stored (Unix microseconds, by the broker's clock). Another time at that
    sequence: the stream has lost its tail since, and grown again."""

    sequence: int
    stored_us: int


class Ledger:
    """The claims of one epoch, put together from their rows in any order and however often a row is read."""

    def __init__(self, epoch: int = 0, position: int = 0, mark: Mark | None = None) -> None:
        """``position``: everything up to it is known to be in the tables."""
        self.epoch = epoch
        self.stream_us = 0
        self.mark = mark
        self._position = position
        self._frontier = position
        self._claims: dict[int, Claim] = {}  # by first sequence; only those after the position
        self._done: set[int] = set()

    @property
    def position(self) -> int:
        """The low-water mark: everything up to this sequence is in the tables."""
        return self._position

    @property
    def frontier(self) -> int:
        """Everything up to this sequence has been taken by somebody."""
        return self._frontier

    @property
    def open(self) -> list[Claim]:
        """Taken and not known to be done, in stream order."""
        return [self._claims[first] for first in sorted(self._claims.keys() - self._done)]

    def is_done(self, claim: Claim) -> bool:
        return claim.epoch == self.epoch and (claim.last <= self._position or claim.first in self._done)

    def add(self, claim: Claim, *, done: bool = False, stored_us: int = 0) -> None:
        """One row. Of several rows of a claim the one with the highest attempt says who holds it. ``stored_us``: when
        its last frame was stored, Unix microseconds; 0: not known."""
        if claim.epoch != self.epoch:
            return
        self.stream_us = self.stream_us or claim.stream_us
        if done and stored_us and (self.mark is None or self.mark.sequence < claim.last):
            self.mark = Mark(claim.last, stored_us)
        if claim.last <= self._position:
            return
        known = self._claims.get(claim.first)
        if known is None or claim.attempt > known.attempt:
            self._claims[claim.first] = claim
        if done:
            self._done.add(claim.first)
        self._frontier = max(self._frontier, claim.last)
        while (following := self._position + 1) in self._done:
            self._position = self._claims.pop(following).last
            self._done.discard(following)


class Sightings:
    """Since when each open claim has been seen unchanged: by the clock of whoever looks, so that clocks need not agree.

    ``now`` and ``lease`` in seconds; ``now`` from a clock that only goes forward.
    """

    def __init__(self) -> None:
        self._since: dict[int, tuple[int, float]] = {}

    def look(self, claims: list[Claim], now: float) -> None:
        """The claims that are open now."""
        before = self._since
        self._since = {}
        for claim in claims:
            attempt, since = before.get(claim.first, (0, now))
            self._since[claim.first] = (claim.attempt, since if attempt == claim.attempt else now)

    def forget(self) -> None:
        """The store could not be read: then no holder could show that it is alive, either."""
        self._since.clear()

    def lapsed(self, claims: list[Claim], now: float, lease: float, holder: str) -> Claim | None:
        """The first of ``claims`` whose holder is dead: it was silent for ``lease``, or ``holder`` goes by its name."""
        for claim in claims:
            if is_successor(holder, claim.holder):
                return claim
            attempt, since = self._since.get(claim.first, (0, now))
            if attempt == claim.attempt and now - since >= lease:
                return claim
        return None


def is_successor(holder: str, other: str) -> bool:
    """Whether both are ``<name>-<start>`` of one name, which two living processes never share."""
    return holder.rsplit("-", 1)[0] == other.rsplit("-", 1)[0]


def taken_over(claim: Claim, holder: str) -> Claim:
    return replace(claim, attempt=claim.attempt + 1, holder=holder)

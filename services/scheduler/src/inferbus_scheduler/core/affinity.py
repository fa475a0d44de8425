"""Which workers have read a prefix: a bounded index of what their KV caches hold.

An entry is one chunk (by its chained hash, so that it stands for all before it) in one worker. It takes about 150
bytes of memory, so BOUND of them 150 MB. When there are more entries than ``bound``, half of all hashes are left out
from then on, by their own bits: a match is then known to within two chunks, the next one to within four. Nothing is
ever forgotten for being old, as it is the old prefixes that are shared the most.
"""

from collections.abc import Iterable
from itertools import islice

BOUND = 1_000_000
# A match names so many workers at most, and so many of those that hold equally much where they are more: each of them
# costs to be looked at.
MOST = 16
_EQUALS = 4


class PrefixIndex:
    """Told by cache events. Single-threaded; the cost of each method is that of its hashes."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        # A hash is kept if it has none of these bits.
        self._left_out = 0
        # By hash: the only holder, or all of them.
        self._holders: dict[int, str | set[str]] = {}
        self._held: dict[str, set[int]] = {}
        self._entries = 0

    def __len__(self) -> int:
        """Entries, of all workers."""
        return self._entries

    def stored(self, worker: str, hashes: Iterable[int]) -> None:
        """``worker`` holds these now, besides what it held."""
        held = self._held.setdefault(worker, set())
        for one in hashes:
            if one & self._left_out or one in held:
                continue
            held.add(one)
            self._entries += 1
            holders = self._holders.get(one)
            if holders is None:
                self._holders[one] = worker
            elif isinstance(holders, set):
                holders.add(worker)
            else:
                self._holders[one] = {holders, worker}
        while self._entries > self._bound:
            self._thin_out()

    def removed(self, worker: str, hashes: Iterable[int]) -> None:
        """``worker`` no longer holds these."""
        held = self._held.get(worker)
        if held is None:
            return
        for one in hashes:
            if one in held:
                held.remove(one)
                self._drop(one, worker)

    def forget(self, worker: str) -> None:
        """Nothing is known of ``worker`` any more."""
        for one in self._held.pop(worker, ()):
            self._drop(one, worker)

    def replace(self, worker: str, hashes: Iterable[int]) -> None:
        """``worker`` holds these and nothing else."""
        now = set(hashes)
        self.removed(worker, self._held.get(worker, set()) - now)
        self.stored(worker, now)

    def match(self, hashes: tuple[int, ...], preferred: Iterable[str] = ()) -> dict[str, int]:
        """How many chunks of the prefix ``hashes`` (shortest first) workers hold, of those that hold the most: about
        MOST of them.

        Where more hold equally much (a system prompt that all have read), a few of them are named, the ``preferred``
        ones first: give the best workers, the best first.
        """
        found: dict[str, int] = {}
        for depth in range(len(hashes), 0, -1):
            holders = self._holders.get(hashes[depth - 1])
            if holders is None:
                continue
            if isinstance(holders, str):
                found.setdefault(holders, depth)
            elif len(found) + len(holders) <= MOST:
                for worker in holders:
                    found.setdefault(worker, depth)
            else:
                self._fill(found, holders, depth, preferred)
                break
            if len(found) >= MOST:
                break
        return found

    def _fill(self, found: dict[str, int], holders: set[str], depth: int, preferred: Iterable[str]) -> None:
        named = [worker for worker in preferred if worker in holders]
        # Only where the preferred ones hold nothing: any.
        for worker in islice(named or holders, _EQUALS):
            found.setdefault(worker, depth)

    def _drop(self, one: int, worker: str) -> None:
        self._entries -= 1
        holders = self._holders[one]
        if not isinstance(holders, set):
            del self._holders[one]
            return
        holders.remove(worker)
        if len(holders) == 1:
            self._holders[one] = holders.pop()

    def _thin_out(self) -> None:
        # The lowest bits first. They are as good as any of a hash.
        self._left_out = (self._left_out << 1) | 1
        for one in [one for one in self._holders if one & self._left_out]:
            del self._holders[one]
        for worker, held in self._held.items():
            self._held[worker] = {one for one in held if not one & self._left_out}
        self._entries = sum(map(len, self._held.values()))

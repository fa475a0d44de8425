"""Which beginnings of prompts the engine's KV cache holds, as far as it says, and what of that the scheduler knows.

A beginning is known by its chunks (``inferbus_contracts.prefixes``). One chunk may be held in several places, two slots
or two blocks: it is there until the last of them has let it go.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence


class PrefixCache:
    """Kept by an engine: :meth:`hold` and :meth:`drop` by places, :meth:`stored` and :meth:`removed` by chunks. Read by
    whoever tells of it.

    At most ``bound`` chunks are told of, those that were stored or held last; 0: none.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._places: dict[Hashable, tuple[int, ...]] = {}
        self._counts: dict[int, int] = {}
        self._told: OrderedDict[int, None] = OrderedDict()
        self._touched: OrderedDict[int, None] = OrderedDict()

    def hold(self, place: Hashable, chunks: Sequence[int]) -> None:
        """``place`` holds these now, the shortest beginning's first, and nothing else."""
        before = self._places.get(place, ())
        kept = tuple(chunks)
        # The first are the newest: without them the others are of no use.
        for chunk in reversed(kept):
            self.stored(chunk)
        self._let_go(before)
        if kept:
            self._places[place] = kept
        else:
            self._places.pop(place, None)

    def shorten(self, place: Hashable, chunks: Sequence[int]) -> None:
        """What ``place`` holds is about to be overwritten from where it and ``chunks`` differ."""
        before = self._places.get(place, ())
        same = next((at for at, (one, other) in enumerate(zip(before, chunks, strict=False)) if one != other), None)
        count = min(len(before), len(chunks)) if same is None else same
        if count < len(before):
            self.hold(place, before[:count])

    def drop(self, place: Hashable) -> None:
        """``place`` holds nothing any more."""
        self._let_go(self._places.pop(place, ()))

    def stored(self, chunk: int) -> None:
        """Somewhere there is one more of it."""
        if self.bound:
            self._counts[chunk] = self._counts.get(chunk, 0) + 1
            self._touch(chunk)

    def removed(self, chunk: int) -> None:
        """Somewhere there is one less of it."""
        count = self._counts.get(chunk, 0)
        if count > 1:
            self._counts[chunk] = count - 1
        elif count:
            del self._counts[chunk]
            self._touch(chunk)

    def used(self, chunks: Sequence[int]) -> None:
        """They were found again, and are told of before others."""
        for chunk in reversed(chunks):
            if chunk in self._counts:
                self._touch(chunk)

    def clear(self) -> None:
        """The engine has forgotten everything."""
        self._places.clear()
        for chunk in self._counts:
            self._touch(chunk)
        self._counts.clear()

    def changes(self) -> tuple[list[int], list[int]]:
        """(stored, removed) since this, or :meth:`all`, was asked last; none is in both."""
        stored: dict[int, None] = {}
        removed: list[int] = []
        for chunk in self._touched:
            if chunk not in self._counts:
                if chunk in self._told:
                    del self._told[chunk]
                    removed.append(chunk)
            elif chunk in self._told:
                self._told.move_to_end(chunk)
            else:
                self._told[chunk] = stored[chunk] = None
        self._touched.clear()
        while len(self._told) > self.bound:
            oldest, _ = self._told.popitem(last=False)
            if oldest in stored:
                del stored[oldest]
            else:
                removed.append(oldest)
        return list(stored), removed

    def all(self) -> list[int]:
        """All that is told of."""
        self.changes()
        return list(self._told)

    def _let_go(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            self.removed(chunk)

    def _touch(self, chunk: int) -> None:
        self._touched[chunk] = None
        self._touched.move_to_end(chunk)

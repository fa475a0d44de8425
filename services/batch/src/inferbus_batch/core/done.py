"""Which lines of a job have their result, in little room: they end nearly in the order in which they were begun."""

from collections.abc import Iterable, Iterator


class Done:
    """Lines by their place in the run order, from 0. All before ``floor`` are done, and some above it."""

    __slots__ = ("_above", "floor")

    def __init__(self, floor: int = 0, above: Iterable[int] = ()) -> None:
        self.floor = floor
        self._above = {line for line in above if line >= floor}
        self._settle()

    def __len__(self) -> int:
        return self.floor + len(self._above)

    def __contains__(self, line: int) -> bool:
        return line < self.floor or line in self._above

    def add(self, line: int) -> bool:
        """False if it was done already."""
        if line in self:
            return False
        self._above.add(line)
        if line == self.floor:
            self._settle()
        return True

    def above(self) -> list[int]:
        """Those above the floor, in order."""
        return sorted(self._above)

    def missing(self, end: int) -> Iterator[int]:
        """Lines before ``end`` that are not done, in order."""
        return (line for line in range(self.floor, end) if line not in self._above)

    def _settle(self) -> None:
        while self.floor in self._above:
            self._above.remove(self.floor)
            self.floor += 1

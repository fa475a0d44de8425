"""Single requests that come within a moment become one batch: what belongs together, and when it is enough.

A batch costs more than a line: while there is enough to do, those that come meanwhile wait for each other.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
SECONDS, LONGEST, LINES, BYTES = 0.5, 60.0, 10_000, 16 << 20


@dataclass(slots=True)
class Group(Generic[K, T]):
    """``items`` in the order in which they came, which is by no means that of their sequences. ``since``: seconds of
    the clock that the first one came at."""

    key: K
    since: float
    items: list[T] = field(default_factory=list)
    size: int = 0


class Gathering(Generic[K, T]):
    """Groups by ``key`` until they are due. ``lines``: of one. Times are seconds of any clock that goes forward."""

    def __init__(self, lines: int = LINES) -> None:
        self._lines = min(lines, LINES)
        self._open: dict[K, Group[K, T]] = {}
        self._full: list[Group[K, T]] = []

    def add(self, key: K, item: T, size: int, now: float) -> None:
        """``size``: bytes."""
        group = self._open.get(key)
        if group is None:
            group = self._open[key] = Group(key, now)
        group.items.append(item)
        group.size += size
        if len(group.items) >= self._lines or group.size >= BYTES:
            self._full.append(self._open.pop(key))

    def due(self, now: float, busy: Callable[[K], bool] = lambda key: False) -> list[Group[K, T]]:
        """Takes those out that are full, or began long enough ago: 0.5 s, and a minute if they would find enough to do
        before them."""
        full, self._full = self._full, []
        old = [
            key
            for key, group in self._open.items()
            if now >= group.since + LONGEST or (now >= group.since + SECONDS and not busy(key))
        ]
        return full + [self._open.pop(key) for key in old]

    def next_due(self) -> float | None:
        """When :meth:`due` may have something; None: not before something is added."""
        if self._full:
            return 0.0
        return min((group.since + SECONDS for group in self._open.values()), default=None)

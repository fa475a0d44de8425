"""When to look at a waiting request again: a heap that forgets what no longer waits."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SLACK = 1024


class Deadlines:
    """Times (monotonic seconds) by key of a request. What was set for one that has left is dropped when it is met."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, key: bytes) -> None:
        heappush(self._heap, (at, key))

    def due(self, now: float) -> list[bytes]:
        """Those whose time has come, once each, earliest first; they are set no more."""
        due: dict[bytes, None] = {}
        while self._heap and self._heap[0][0] <= now:
            due[heappop(self._heap)[1]] = None
        return list(due)

    def next_at(self) -> float | None:
        """When the next one is due, of those that have left as well; None: nothing is set."""
        return self._heap[0][0] if self._heap else None

    def compact(self, live: int, is_live: Callable[[bytes], bool]) -> None:
        """Drop what has left, when it is more than what is ``live``: keeps the heap within twice the queue."""
        if len(self._heap) > 2 * live + _SLACK:
            self._heap = [entry for entry in self._heap if is_live(entry[1])]
            heapify(self._heap)

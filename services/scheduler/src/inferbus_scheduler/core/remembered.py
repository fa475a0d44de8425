"""The recent past, bounded in count and in time."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """The last ``count`` entries, each for ``seconds``; the oldest is forgotten first. Times are the caller's."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count = count
        self._seconds = seconds
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, now: float) -> None:
        entries = self._entries
        entries.pop(key, None)
        entries[key] = (now, value)
        horizon = now - self._seconds
        while len(entries) > self._count or next(iter(entries.values()))[0] < horizon:
            entries.popitem(last=False)

    def get(self, key: K, now: float) -> V | None:
        entry = self._entries.get(key)
        return entry[1] if entry is not None and now <= entry[0] + self._seconds else None

    def pop(self, key: K, now: float) -> V | None:
        value = self.get(key, now)
        self._entries.pop(key, None)
        return value

"""How often a dead engine is started again."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimit:
    """At most ``count`` restarts within ``window_seconds``."""

    count: int
    window_seconds: float

    def allows(self, earlier: Sequence[float], now: float) -> bool:
        """Whether one more is allowed, given the monotonic times of the ``earlier`` ones."""
        return sum(1 for at in earlier if now - at < self.window_seconds) < self.count

"""How fast a queue moves, measured while it is one.

Only the time in which something waited counts: what is placed at once says how fast requests came, not how fast they
could go. Both sums, of placements and of seconds, are forgotten with ``memory`` seconds of waiting time, so that the
rate is that of the recent past, and a queue that stands still is seen to.
"""

from dataclasses import dataclass
from math import exp

# A rate is known from so many placements of requests that had waited.
ENOUGH = 16
MEMORY_SECONDS = 30.0
# Placed within that, it found room that was there.
_AT_ONCE_SECONDS = 0.02


@dataclass(slots=True)
class _Drain:
    placed: float = 0.0
    seconds: float = 0.0
    count: int = 0
    # Since when something has waited without a placement; None: nothing waits.
    since: float | None = None
    last: float = 0.0


class DrainRate:
    """Per model. Times are monotonic seconds; state is one record a model, see :meth:`prune`."""

    def __init__(self, memory: float = MEMORY_SECONDS) -> None:
        self._memory = memory
        self._drains: dict[str, _Drain] = {}

    def __len__(self) -> int:
        return len(self._drains)

    def placed(self, model: str, now: float, *, waited: float, waiting: bool) -> None:
        """One was placed, after ``waited`` seconds in the queue; ``waiting``: others of the model still are."""
        drain = self._drains.get(model)
        if drain is None:
            drain = self._drains[model] = _Drain()
        if waited > _AT_ONCE_SECONDS:
            seconds = min(waited, now - drain.since) if drain.since is not None else waited
            kept = exp(-seconds / self._memory)
            drain.placed = drain.placed * kept + 1.0
            drain.seconds = drain.seconds * kept + seconds
            drain.count = min(ENOUGH, drain.count + 1)
        drain.since = now if waiting else None
        drain.last = now

    def rate(self, model: str, now: float) -> float | None:
        """Placements a second while something waits; None: not known, it takes ENOUGH of them."""
        drain = self._drains.get(model)
        if drain is None or drain.count < ENOUGH:
            return None
        # Standing still counts at once, but for the time that one placement takes as a rule.
        still = max(0.0, now - drain.since) if drain.since is not None else 0.0
        usual = drain.seconds / drain.placed
        kept = exp(-still / self._memory) if still > 2 * usual else 1.0
        seconds = drain.seconds * kept + (still if still > 2 * usual else 0.0)
        return drain.placed * kept / max(seconds, 1e-6)

    def wait(self, model: str, ahead: float, now: float) -> float | None:
        """Seconds until ``ahead`` requests have been placed; None: not known."""
        rate = self.rate(model, now)
        return ahead / rate if rate else None

    def prune(self, now: float) -> None:
        """Forget models for which nothing has been placed for ten times the memory."""
        horizon = now - 10 * self._memory
        for model in [name for name, drain in self._drains.items() if drain.last < horizon]:
            del self._drains[model]

"""How fast a queue moves, measured while it is one.

Only the time in which something waited counts: what is placed at once says how fast requests came, not how fast they
could go. Both sums, of placements and of seconds, are forgotten with ``memory`` seconds of waiting time, so that the
rate is that of the recent past, and a queue that stands still is seen to. What was known of workers that have all gone
is forgotten, and so is the wait for the first one.
"""

from dataclasses import dataclass
from math import exp

from inferbus_scheduler.core.request import base_of

# A rate is known from so many placements of requests that had waited.
ENOUGH = 16
MEMORY_SECONDS = 30.0
# Times the memory: after that nothing of it is left.
_LONG = 10.0
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
    """Per model, and per adapter. Times are monotonic seconds; state is one record a model, see :meth:`prune`."""

    def __init__(self, memory: float = MEMORY_SECONDS) -> None:
        self._memory = memory
        self._drains: dict[str, _Drain] = {}
        # By base model: since when it has had a worker.
        self._served_since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._drains)

    def placed(self, model: str, now: float, *, waited: float, waiting: bool) -> None:
        """One was placed, after ``waited`` seconds in the queue; ``waiting``: others of the model still are."""
        drain = self._drains.get(model)
        if drain is None:
            drain = self._drains[model] = _Drain()
        if waited > _AT_ONCE_SECONDS:
            began = max(now - waited, self._served_since.get(base_of(model), 0.0), drain.since or 0.0)
            self._passed(drain, now - began)
            drain.placed += 1.0
            drain.count = min(ENOUGH, drain.count + 1)
        drain.since = now if waiting else None
        drain.last = now

    def emptied(self, model: str, now: float) -> None:
        """The last one that waited has left without being placed: from now on nobody waits for anything."""
        drain = self._drains.get(model)
        if drain is not None and drain.since is not None:
            self._passed(drain, now - drain.since)
            drain.since = None

    def serving(self, base: str, served: bool, now: float) -> None:
        """The base model has got its first worker, or has lost its last one. Whoever serves it next may be faster or
        slower, so nothing is known until it is measured anew."""
        for model in [name for name in self._drains if base_of(name) == base]:
            del self._drains[model]
        if served:
            self._served_since[base] = now
        else:
            self._served_since.pop(base, None)

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
        horizon = now - _LONG * self._memory
        for model in [name for name, drain in self._drains.items() if drain.last < horizon]:
            del self._drains[model]

    def _passed(self, drain: _Drain, seconds: float) -> None:
        """So long something waited."""
        kept = exp(-min(seconds / self._memory, _LONG))
        drain.placed *= kept
        drain.seconds = drain.seconds * kept + seconds

"""When to start a process again that has died. Pure: times are arguments.

The delay grows and is bounded; it never gives up, because a stack whose one process stays down is an outage that a
later try might end. It says each time what it does.
"""

from dataclasses import dataclass, replace

_FIRST_DELAY = 0.2
_LARGEST_DELAY = 3.0
# A process that ran this long was healthy: the next death starts the count anew.
_HEALTHY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """``deaths``: how often the process has died without having been healthy in between."""

    deaths: int = 0

    def died(self, lived_seconds: float) -> "Restarts":
        return replace(self, deaths=1 if lived_seconds >= _HEALTHY_SECONDS else self.deaths + 1)

    @property
    def delay(self) -> float:
        """Seconds to wait before the next start: the first is at once, then doubling up to the bound."""
        if self.deaths <= 1:
            return 0.0
        # The exponent is bounded too, so that no number of deaths overflows a float.
        return float(min(_LARGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self.deaths - 2, 20)))

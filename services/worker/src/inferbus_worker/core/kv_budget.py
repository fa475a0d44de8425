"""Room in a KV cache that generations share: who may start, and who must step back before it overflows.

An engine call that finds the cache full fails for everybody in it, so it must not come to that.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvBudget:
    """``tokens``: size of the cache. A sixteenth stays free: for the next steps, and for what the engine has yet to
    free of generations that were just closed."""

    tokens: int

    @property
    def usable(self) -> int:
        return self.tokens - self.tokens // 16

    def admits(self, held: Sequence[int], wanted: int) -> bool:
        """Whether a generation of ``wanted`` tokens so far may join those that hold ``held``. The first always may."""
        return not held or sum(held) + wanted <= self.usable

    def overflow(self, held: Sequence[int]) -> int:
        """How many of the youngest (``held`` is in order of admission) must step back now. Never all."""
        excess = sum(held) - self.usable
        count = 0
        while excess > 0 and count < len(held) - 1:
            count += 1
            excess -= held[-count]
        return count

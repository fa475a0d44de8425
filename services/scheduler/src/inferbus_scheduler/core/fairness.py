"""Whose turn it is between priority classes: first the highest, but nobody waits for ever."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferbus_scheduler.core.request import Priority


@dataclass(frozen=True, slots=True)
class Shares:
    """A waiting class gets a turn after it was passed over this many times, whatever waits above it."""

    background: int = 10
    batch: int = 30

    def patience(self, priority: Priority) -> int:
        """Turns that a class below interactive lets pass."""
        return self.batch if priority is Priority.BATCH else self.background


def next_class(waiting: Sequence[Priority], passed_over: Mapping[Priority, int], shares: Shares) -> Priority:
    """Which of the ``waiting`` classes (at least one) is served now.

    ``passed_over``: turns that others got since the class was last served or began to wait. The most overdue class goes
    first; if none is overdue, the highest.
    """
    overdue = [
        (shares.patience(priority) - passed_over.get(priority, 0), priority)
        for priority in waiting
        if priority is not Priority.INTERACTIVE and passed_over.get(priority, 0) >= shares.patience(priority)
    ]
    return min(overdue)[1] if overdue else min(waiting)


def after_turn(
    served: Priority, waiting: Sequence[Priority], passed_over: Mapping[Priority, int]
) -> dict[Priority, int]:
    """``passed_over`` after ``served`` got its turn while the classes ``waiting`` still wait."""
    return {priority: passed_over.get(priority, 0) + 1 for priority in waiting if priority is not served}

"""How much was spent in the last minute, to the second, without a list of who spent it."""

from dataclasses import dataclass

SLOT_MS = 1000
# The running second and 60 whole ones: whatever counts is at most 61 s old, whatever does not is at least 60 s old.
SLOTS = 61
WINDOW_MS = SLOTS * SLOT_MS
_EMPTY = [0] * SLOTS


@dataclass(frozen=True, slots=True)
class Level:
    """What is left of one limit; ``reset_ms``: until all of it is."""

    limit: int
    remaining: int
    reset_ms: int


class Window:
    """A sum over the running second and the 60 before it. ``second`` must never go back."""

    __slots__ = ("_second", "_slots", "total")

    def __init__(self) -> None:
        self.total = 0
        self._second = 0
        self._slots: list[int] = []

    def advance(self, second: int) -> None:
        """What is too old goes; constant cost however often it is called in a second."""
        if second <= self._second:
            return
        if self.total:
            if second - self._second >= SLOTS:
                self._slots = [0] * SLOTS
                self.total = 0
            else:
                for index in range(self._second + 1, second + 1):
                    self.total -= self._slots[index % SLOTS]
                    self._slots[index % SLOTS] = 0
        self._second = second

    def add(self, second: int, amount: int) -> None:
        self.advance(second)
        if not self._slots:
            self._slots = [0] * SLOTS
        self._slots[second % SLOTS] += amount
        self.total += amount

    def take(self, second: int, amount: int) -> int:
        """Take back up to ``amount`` of what was added in ``second``; how much of it was still there."""
        if second <= self._second - SLOTS or not self._slots:
            return 0
        taken = min(amount, self._slots[second % SLOTS])
        self._slots[second % SLOTS] -= taken
        self.total -= taken
        return taken

    def slots(self) -> list[int]:
        """What each second of the window has, the oldest first."""
        if not self.total:
            return _EMPTY
        start = (self._second + 1) % SLOTS
        return self._slots[start:] + self._slots[:start]


class Quantity:
    """Requests or tokens of one scope: of this edge (``own``), and as the other edges say (``elsewhere``).

    ``arrivals`` only estimates when the others' part will leave their windows.
    """

    __slots__ = ("arrivals", "elsewhere", "own", "spent")

    def __init__(self) -> None:
        self.own = Window()
        self.spent = 0
        self.elsewhere = 0
        self.arrivals = Window()

    def used(self, second: int) -> int:
        self.own.advance(second)
        return self.own.total + self.elsewhere

    def spend(self, second: int, amount: int) -> None:
        self.own.add(second, amount)
        self.spent += amount

    def correct(self, spent_second: int, second: int, change: int) -> None:
        """More counts now; less is given back only where it still counts, or a later minute would have too much."""
        self.own.advance(second)
        if change < 0:
            self.spent -= self.own.take(spent_second, -change)
        else:
            self.spend(second, change)

    def wait_ms(self, now: int, excess: int) -> int:
        """Until ``excess`` of what is used has become too old."""
        self._advance(now)
        for age, (own, arrived) in enumerate(zip(self.own.slots(), self.arrivals.slots(), strict=True)):
            excess -= own + arrived
            if excess <= 0:
                return (age + 1) * SLOT_MS - now % SLOT_MS
        return SLOT_MS  # what has left the others' windows is heard within a second

    def level(self, limit: int, now: int) -> Level:
        self._advance(now)
        used = self.own.total + self.elsewhere
        return Level(limit, max(0, limit - used), self._reset_ms(now) if used else 0)

    def _reset_ms(self, now: int) -> int:
        """Until nothing of what is used counts: as ``wait_ms`` of all, from the newest end."""
        own, arrived = self.own.slots(), self.arrivals.slots()
        for age in range(SLOTS, 0, -1):
            if own[age - 1] or arrived[age - 1]:
                return age * SLOT_MS - now % SLOT_MS
        return SLOT_MS

    def _advance(self, now: int) -> None:
        self.own.advance(now // SLOT_MS)
        self.arrivals.advance(now // SLOT_MS)

"""Whose turn it is: between priority classes, and between tenants (or projects) inside one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from inferbus_scheduler.core.request import Priority


@dataclass(frozen=True, slots=True)
class Shares:
    """A waiting class gets a turn after it was passed over this many times, whatever waits above it."""

    background: int = 10
    batch: int = 30

    def patience(self, priority: Priority) -> int:
        """Turns that a class below interactive lets pass."""
        return self.batch if priority is Priority.BATCH else self.background


def in_turn(waiting: Sequence[Priority], passed_over: Mapping[Priority, int], shares: Shares) -> list[Priority]:
    """The ``waiting`` classes in the order in which they are served now.

    ``passed_over``: turns that others got since the class was last served or began to wait. The most overdue class goes
    first, then the highest.
    """

    def turn(priority: Priority) -> tuple[int, Priority]:
        left = shares.patience(priority) - passed_over.get(priority, 0)
        return (1 if priority is Priority.INTERACTIVE or left > 0 else left, priority)

    return sorted(waiting, key=turn)


def after_turn(
    served: Priority, waiting: Sequence[Priority], passed_over: Mapping[Priority, int]
) -> dict[Priority, int]:
    """``passed_over`` after ``served`` got its turn while the classes ``waiting`` still wait."""
    return {priority: passed_over.get(priority, 0) + 1 for priority in waiting if priority is not served}


@dataclass(slots=True)
class Account:
    """What one name has had. Tokens."""

    weight: int
    delivered: float = 0.0
    # Estimates of what is being generated for it: counted in full until it has ended.
    owed: float = 0.0
    # Its place in the order while something of it waits; None: nothing does.
    entry: tuple[float, int, str] | None = None

    @property
    def time(self) -> float:
        """Its virtual time: what it has had, by its weight."""
        return (self.delivered + self.owed) / self.weight


class FairOrder:
    """Weighted fair queueing in virtual time: next is who has had the fewest tokens for its weight. O(log n) each.

    As long as names wait, the tokens delivered to them are in proportion to their weights, but for what is being
    generated. Who joins, or joins again, stands where the order is: idle time is no credit, and what was used while
    nobody waited is no debt.
    """

    __slots__ = ("_accounts", "_count", "_front", "_heap", "_highest", "_now", "waiting", "weight")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._now = self._highest = 0.0
        # Places among equals: of those who join, and of those who are put back in front.
        self._count = self._front = 0
        # How many names wait, and the sum of their weights.
        self.waiting = self.weight = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def join(self, name: str, weight: int, *, in_front: bool = False) -> None:
        """Something of it waits now; it did not before."""
        if not self.waiting:
            self._now = max(self._now, self._highest)
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(weight)
        elif account.weight != weight:
            account.delivered *= weight / account.weight
            account.weight = weight
        account.delivered = max(account.delivered, self._now * weight - account.owed)
        self._count += 1
        self._front -= 1
        self.waiting += 1
        self.weight += weight
        self._enter(name, account, self._front if in_front else self._count)

    def leave(self, name: str) -> None:
        """Nothing of it waits any more."""
        account = self._accounts[name]
        account.entry = None
        self.waiting -= 1
        self.weight -= account.weight

    def first(self) -> str:
        """Whose turn it is. IndexError if nobody waits."""
        while True:
            entry = self._heap[0]
            account = self._accounts.get(entry[2])
            if account is not None and account.entry is entry:
                return entry[2]
            heappop(self._heap)

    def firsts(self, most: int) -> list[str]:
        """Whose turn it is, and the next ones as things are; at most so many."""
        found: list[tuple[float, int, str]] = []
        while self._heap and len(found) < most:
            entry = heappop(self._heap)
            account = self._accounts.get(entry[2])
            if account is not None and account.entry is entry:
                found.append(entry)
        for entry in found:
            heappush(self._heap, entry)
        return [name for _, _, name in found]

    def took_turn(self, name: str, tokens: float) -> None:
        """It was served: about so many ``tokens`` will be delivered to it. Said before it leaves."""
        account = self._accounts[name]
        if account.entry is None or self.first() == name:
            # The order stands where its first one is: who was served past that one does not move it.
            self._now = max(self._now, account.delivered / account.weight)
        account.owed += tokens
        self._moved(name, account)

    def refund(self, name: str, tokens: float) -> None:
        """So many are not to be expected any more: they were delivered, or never will be."""
        account = self._accounts.get(name)
        if account is not None:
            account.owed = max(0.0, account.owed - tokens)
            self._moved(name, account)

    def deliver(self, name: str, weight: int, tokens: float) -> None:
        """So many really were delivered to it."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(weight, delivered=self._now * weight)
        account.delivered += tokens
        self._highest = max(self._highest, account.delivered / account.weight)
        self._moved(name, account)

    def weight_of(self, name: str) -> int:
        """Of one who waits; 0: it does not."""
        account = self._accounts.get(name)
        return account.weight if account is not None and account.entry is not None else 0

    def names(self) -> Iterator[str]:
        return (name for name, account in self._accounts.items() if account.entry is not None)

    def prune(self) -> bool:
        """Forget whom nothing is known of that :meth:`join` would not assume. True: nobody is left."""
        if not self.waiting:
            self._now = max(self._now, self._highest)
        for name, account in list(self._accounts.items()):
            if account.entry is None and not account.owed and account.delivered <= self._now * account.weight:
                del self._accounts[name]
        return not self._accounts

    def _moved(self, name: str, account: Account) -> None:
        if account.entry is not None:
            self._enter(name, account, account.entry[1])

    def _enter(self, name: str, account: Account, place: int) -> None:
        account.entry = (account.time, place, name)
        heappush(self._heap, account.entry)
        if len(self._heap) > 4 * self.waiting + 64:
            self._heap = [each.entry for each in self._accounts.values() if each.entry is not None]
            heapify(self._heap)

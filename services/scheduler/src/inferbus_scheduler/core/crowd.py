"""Who uses the workers of one base model, and who of them must leave room to the others."""

from collections import Counter, OrderedDict

# Who has asked for nothing interactive for so long is nobody to leave room for.
_LATELY_SECONDS = 60.0
# Who runs more than this part of its share leaves room. Well below one: between those who ask for more than there is,
# shares of tokens decide, and those are not shares of what runs.
_MODEST = 0.5


class Crowd:
    """Room is left to tenants that have asked for something interactive of late and have nothing of it that waits: it
    may come at any moment. Where all of them wait there is nobody to leave room for, and their order decides."""

    __slots__ = ("_all", "_calm", "_lately", "_waiting", "_weight", "running")

    def __init__(self) -> None:
        # Placements of each tenant that have not ended, and of all.
        self.running: Counter[str] = Counter()
        self._all = 0
        self._waiting: Counter[str] = Counter()
        # (weight, when it asked last), longest ago first; the sum of the weights, and of those that do not wait.
        self._lately: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._weight = self._calm = 0

    def asked(self, tenant: str, weight: int, at: float) -> None:
        """For something interactive, monotonic seconds."""
        before, last = self._lately.pop(tenant, (0, at))
        self._add(tenant, weight - before)
        self._lately[tenant] = (weight, max(at, last))

    def waits(self, tenant: str) -> None:
        """One more of its interactive requests."""
        self._waiting[tenant] += 1
        if self._waiting[tenant] == 1 and tenant in self._lately:
            self._calm -= self._lately[tenant][0]

    def waits_no_more(self, tenant: str) -> None:
        """One of its interactive requests."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            if tenant in self._lately:
                self._calm += self._lately[tenant][0]

    def took(self, tenant: str) -> None:
        self.running[tenant] += 1
        self._all += 1

    def ended(self, tenant: str) -> None:
        self._all -= 1
        self.running[tenant] -= 1
        if not self.running[tenant]:
            del self.running[tenant]

    def is_asked(self, now: float) -> bool:
        """Whether anybody has asked for something interactive of late."""
        self._expire(now)
        return bool(self._lately)

    def leaves_room(self, tenant: str, weight: int, now: float) -> bool:
        """Whether it must: it runs more than a modest part of its share, and there is somebody to leave room for."""
        self._expire(now)
        own, _ = self._lately.get(tenant, (0, 0.0))
        calm = self._calm - (own if tenant not in self._waiting else 0)
        if calm <= 0:
            return False
        share = self._all * weight / (self._weight - own + weight)
        return self.running[tenant] > max(1.0, _MODEST * share)

    def _add(self, tenant: str, weight: int) -> None:
        self._weight += weight
        if tenant not in self._waiting:
            self._calm += weight

    def _expire(self, now: float) -> None:
        while self._lately:
            tenant, (weight, at) = next(iter(self._lately.items()))
            if at > now - _LATELY_SECONDS:
                return
            del self._lately[tenant]
            self._add(tenant, -weight)

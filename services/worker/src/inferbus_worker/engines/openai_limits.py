"""How much a sick upstream is asked: retries within a budget, and a breaker that leaves it alone for a while.

Both decide and hold no clock: ``now`` is monotonic seconds.
"""

from collections import deque
from dataclasses import dataclass

_BUCKETS = 20
_OUTCOMES = 20
_MIN_OUTCOMES = 10


class RetryBudget:
    """Retries are at most ``share`` of the requests of the last ``window`` seconds, but ``floor`` of them always."""

    def __init__(self, share: float, floor: int, window: float) -> None:
        self._share = share
        self._floor = floor
        self._width = window / _BUCKETS
        self._buckets: deque[list[int]] = deque(maxlen=_BUCKETS + 1)  # [which, requests, retries]

    def request(self, now: float) -> None:
        """One was sent for the first time."""
        self._bucket(now)[1] += 1

    def take(self, now: float) -> bool:
        """Whether one may be sent again; it is counted then."""
        bucket = self._bucket(now)
        requests = sum(one[1] for one in self._buckets)
        retries = sum(one[2] for one in self._buckets)
        if retries >= max(self._floor, int(requests * self._share)):
            return False
        bucket[2] += 1
        return True

    def _bucket(self, now: float) -> list[int]:
        which = int(now / self._width)
        while self._buckets and self._buckets[0][0] <= which - _BUCKETS:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1][0] != which:
            self._buckets.append([which, 0, 0])
        return self._buckets[-1]


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """It opens after ``in_a_row`` failures, or when ``rate`` of the last twenty outcomes (ten at least) are failures,
    and tries the upstream again, with one request, ``seconds`` later."""

    in_a_row: int
    rate: float
    seconds: float


class Breaker:
    """Closed: all pass. Open: none. Half open: one does, and its outcome decides."""

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._outcomes: deque[bool] = deque(maxlen=_OUTCOMES)
        self._in_a_row = 0
        self._opened: float | None = None
        self._probe: float | None = None

    @property
    def open(self) -> bool:
        return self._opened is not None

    def wait(self, now: float) -> float:
        """Seconds until a request may pass; 0: it passes now, and its outcome is to be told."""
        if self._opened is None:
            return 0.0
        # A probe whose outcome never came (its client left) is forgotten when another one would be due.
        since = self._opened if self._probe is None else self._probe
        left = since + self._limits.seconds - now
        if left > 0:
            return left
        self._probe = now
        return 0.0

    def succeeded(self) -> None:
        self._outcomes.append(True)
        self._in_a_row = 0
        if self._opened is not None:
            self._opened = self._probe = None
            self._outcomes.clear()

    def failed(self, now: float) -> bool:
        """True if this one opened it."""
        self._outcomes.append(False)
        self._in_a_row += 1
        was_open = self._opened is not None
        if was_open or self._too_many():
            self._opened, self._probe = now, None
        return self._opened is not None and not was_open

    def _too_many(self) -> bool:
        if self._in_a_row >= self._limits.in_a_row:
            return True
        count = len(self._outcomes)
        return count >= _MIN_OUTCOMES and self._outcomes.count(False) >= self._limits.rate * count

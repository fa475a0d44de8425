"""How many lines of a model are to be under way: as many as its workers have slots, and a little that waits."""

from collections import Counter
from collections.abc import Callable, Iterable

from inferbus.bus.v1.control_pb2 import Capacity
from inferbus_runtime import clock

_LEAST = 8
# What a scheduler said counts for so long; it says it each second.
_SECONDS = 10.0


class Pace:
    """``runners``: how many share what there is. Hears of capacity by :meth:`on_capacity`."""

    def __init__(self, runners: Callable[[], int]) -> None:
        self._runners = runners
        # By model and scheduler: slots, and until when they count (monotonic seconds).
        self._slots: dict[str, dict[str, tuple[int, float]]] = {}
        self._jobs: Counter[str] = Counter()

    def on_capacity(self, capacity: Capacity) -> None:
        said = self._slots.setdefault(capacity.model, {})
        said[capacity.scheduler] = (capacity.slots, clock.monotonic() + _SECONDS)

    def begin(self, models: Iterable[str]) -> None:
        """A job of these models runs here."""
        self._jobs.update(models)

    def end(self, models: Iterable[str]) -> None:
        self._jobs.subtract(models)

    def most(self, models: Iterable[str]) -> int:
        """Lines that a job of these models may have under way."""
        return min((self._most(model) for model in models), default=_LEAST)

    def _most(self, model: str) -> int:
        now = clock.monotonic()
        slots = max((count for count, until in self._slots.get(model, {}).values() if until > now), default=0)
        sharing = max(1, self._runners()) * max(1, self._jobs[model])
        # As many again wait, so that a worker has its next line before the end of the last one is heard of here.
        return max(_LEAST, 2 * slots // sharing)

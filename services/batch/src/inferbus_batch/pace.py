"""How many lines of a model are to be under way: as many as its workers have slots, and a little that waits."""

from collections.abc import Callable, Iterable

from inferbus.bus.v1.control_pb2 import Capacity
from inferbus_runtime import clock

_LEAST = 8
# What a scheduler said counts for so long; it says it each second.
_SECONDS = 10.0


class Pace:
    """``jobs``: how many run that ask a model, whoever runs them. Hears of capacity by :meth:`on_capacity`."""

    def __init__(self, jobs: Callable[[str], int]) -> None:
        self._jobs = jobs
        # By model and scheduler: slots, and until when they count (monotonic seconds).
        self._slots: dict[str, dict[str, tuple[int, float]]] = {}

    def on_capacity(self, capacity: Capacity) -> None:
        said = self._slots.setdefault(capacity.model, {})
        said[capacity.scheduler] = (capacity.slots, clock.monotonic() + _SECONDS)

    def most(self, models: Iterable[str]) -> int:
        """Lines that a job of these models may have under way."""
        return min((self._most(model) for model in models), default=_LEAST)

    def _most(self, model: str) -> int:
        now = clock.monotonic()
        slots = max((count for count, until in self._slots.get(model, {}).values() if until > now), default=0)
        # As many again wait, so that a worker has its next line before the end of the last one is heard of here.
        return max(_LEAST, 2 * slots // max(1, self._jobs(model)))

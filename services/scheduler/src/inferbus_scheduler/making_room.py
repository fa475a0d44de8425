"""What waits and is worth more pauses what runs and is worth less: once, and then it waits for the room."""

from collections.abc import Callable

from inferbus_scheduler.core.placement import Policy
from inferbus_scheduler.core.preemption import Victims, victims
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.fleet import Fleet

# For so long a request does not ask again: room takes a moment to come, and who asked twice would take twice.
_PATIENCE_SECONDS = 2.0
# Where there was nobody to pause: what runs is looked through again after so long.
_LOOK_SECONDS = 0.25


class MakingRoom:
    """``preempt`` takes the victims from their worker; they go on later, where there is room."""

    def __init__(self, fleet: Fleet, queues: Queues, preempt: Callable[[Victims], None]) -> None:
        self._fleet = fleet
        self._queues = queues
        self._preempt = preempt
        # By model: not before then, monotonic seconds. Of its first request.
        self._asked: dict[str, tuple[bytes, float]] = {}

    def for_(self, request: Request, policy: Policy, now: float) -> None:
        """``request`` is the first of its model, and there is no room for it."""
        key, not_before = self._asked.get(request.model, (b"", 0.0))
        if now < not_before and key == request.key:
            return
        found = None
        lower = self._fleet.lower_running(base_of(request.model), request.priority)
        if lower:
            found = victims(request, self._fleet.alive(base_of(request.model)), lower, policy, now)
        self._asked[request.model] = request.key, now + (_LOOK_SECONDS if found is None else _PATIENCE_SECONDS)
        if found is not None:
            self._preempt(found)

    def prune(self) -> None:
        """Keep nothing of models for which nothing waits."""
        for model in self._asked.keys() - set(self._queues.models()):
            del self._asked[model]

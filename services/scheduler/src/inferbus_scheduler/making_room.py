"""What waits and is worth more pauses what runs and is worth less: once, and then it waits for the room."""

from collections.abc import Callable
from dataclasses import dataclass, field

from inferbus_scheduler.core.placement import Policy, filter_out
from inferbus_scheduler.core.preemption import Bounds, RoomToCome, Victims, victims, with_room_to_come
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.fleet import Fleet

# For so long a request does not ask again: room takes a moment to come, and who asked twice would take twice.
_PATIENCE_SECONDS = 2.0
# What runs is looked through so often for who found nobody, whoever of its model asks.
_LOOK_SECONDS = 0.25
_BOUNDS = Bounds()


@dataclass(slots=True)
class _Asked:
    """Of one base model. Times are monotonic seconds."""

    # Who found nobody to pause; nobody else looks before that.
    look_at: float = 0.0
    # By request: it does not ask before that.
    again_at: dict[bytes, float] = field(default_factory=dict)
    # Somebody was not looked for, since another one had just found nobody.
    others: bool = False
    # By request: the room that is being made for it.
    to_come: dict[bytes, RoomToCome] = field(default_factory=dict)


class MakingRoom:
    """``preempt`` takes the victims from their worker; they go on later, where there is room.

    Several requests may ask, each for what it needs beside what the others wait for. One that finds nobody to pause
    lets the others of its model look before it looks again, so none is kept from it for longer than the patience.
    """

    def __init__(self, fleet: Fleet, queues: Queues, preempt: Callable[[Victims], None]) -> None:
        self._fleet = fleet
        self._queues = queues
        self._preempt = preempt
        # By base model, whose workers its adapters share.
        self._models: dict[str, _Asked] = {}

    def for_(self, request: Request, policy: Policy, now: float) -> None:
        """``request`` waits, and there is no room for it. Returns at once where none can be made: it is not
        interactive, nothing runs that may be paused, or it has asked already."""
        base = base_of(request.model)
        if request.priority is not Priority.INTERACTIVE or not self._fleet.runs_below(base, _BOUNDS.above):
            return
        asked = self._models.setdefault(base, _Asked())
        if now < asked.again_at.get(request.key, 0.0):
            return
        if now < asked.look_at:
            asked.others = True
            return
        self._forget_old(asked, now)
        room = self._room(request, asked, policy, now)
        if room is not None:
            asked.to_come[request.key] = room
            asked.again_at[request.key] = now + _PATIENCE_SECONDS
            return
        asked.look_at = now + _LOOK_SECONDS
        asked.again_at[request.key] = now + (_PATIENCE_SECONDS if asked.others else _LOOK_SECONDS)
        asked.others = False

    def prune(self) -> None:
        """Keep nothing of models for which nothing waits."""
        for base in self._models.keys() - {base_of(model) for model in self._queues.models()}:
            del self._models[base]

    def _forget_old(self, asked: _Asked, now: float) -> None:
        """Those who wait no longer, and those whose time to ask again has come: the room did not come, or another one
        has it."""
        asked.again_at = {key: at for key, at in asked.again_at.items() if at > now and key in self._queues}
        asked.to_come = {key: room for key, room in asked.to_come.items() if key in asked.again_at}

    def _room(self, request: Request, asked: _Asked, policy: Policy, now: float) -> RoomToCome | None:
        """Room for ``request``, left over by others or made by pausing; None: there is none to be had."""
        base, rooms = base_of(request.model), list(asked.to_come.values())
        named = self._fleet.view.candidates[base].named
        for worker in with_room_to_come((named[each.worker] for each in rooms if each.worker in named), rooms):
            if filter_out(request, worker, policy, now) is None:
                return RoomToCome(request, worker.name, worker.boot)
        lower = self._fleet.lower_running(base, _BOUNDS.above)
        workers = with_room_to_come((named[name] for name in lower), rooms)
        gone = {running.key for room in rooms for running in room.running}
        left = {name: [each for each in running if each.key not in gone] for name, running in lower.items()}
        found = victims(request, workers, left, policy, now, _BOUNDS)
        if found is None:
            return None
        self._preempt(found)
        return RoomToCome(request, found.worker, found.boot, found.running)

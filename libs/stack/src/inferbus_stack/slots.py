"""Which worker is to be started and which drained, so that there are as many as are wanted. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

Unit = tuple[str, str]
"""(model, revision; empty: whatever revision of it)."""
State = Literal["starting", "running", "leaving"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A worker's name that is in use. ``revision`` empty: not known, or not registered."""

    name: str
    model: str
    revision: str
    state: State

    def is_of(self, unit: Unit) -> bool:
        return self.model == unit[0] and unit[1] in ("", self.revision)


@dataclass(frozen=True, slots=True)
class Slots:
    """``names``: of all that there may be. ``used``: those that there are, oldest first, each once."""

    names: tuple[str, ...]
    used: tuple[Slot, ...] = ()

    def towards(self, wanted: Mapping[Unit, int], held_back: Set[Unit] = frozenset()) -> "Step":
        """What to do so that each of ``wanted`` has as many workers; what it does not name stays as it is.

        Of those that run the newest leave, and only so many that enough of them stay: what is starting serves nobody
        yet, and is looked at again when it runs. None of ``held_back`` is started.
        """
        slots, starting, leaving = self, [], []
        for unit, count in sorted(wanted.items()):
            mine = [one for one in slots.used if one.is_of(unit) and one.state != "leaving"]
            running = [one for one in mine if one.state == "running"]
            leave = [one.name for one in running[count:]] if len(mine) >= count else []
            leaving += leave
            slots = slots._as(leave, "leaving")
        free = [name for name in slots.names if name not in {one.name for one in slots.used}]
        lacking: list[Unit] = []
        for unit, count in sorted(wanted.items()):
            have = sum(1 for one in slots.used if one.is_of(unit) and one.state != "leaving")
            if unit in held_back:
                continue
            for _ in range(count - have):
                if not free:
                    lacking.append(unit)
                    break
                slot = Slot(free.pop(0), *unit, "starting")
                starting.append(slot)
                slots = replace(slots, used=(*slots.used, slot))
        return Step(slots, tuple(starting), tuple(leaving), tuple(lacking))

    def started(self, name: str, revision: str) -> "Slots":
        """It serves, and says of which revision it is."""
        one = self.of(name)
        rest = tuple(other for other in self.used if other.name != name)
        return replace(self, used=(*rest, replace(one, revision=revision, state="running")))

    def gone(self, name: str) -> "Slots":
        """It has ended, or did not start."""
        return replace(self, used=tuple(one for one in self.used if one.name != name))

    def leave(self, name: str) -> "Slots":
        """It is drained, whatever is wanted."""
        return self._as([name], "leaving")

    def of(self, name: str) -> Slot:
        """KeyError if nobody has that name."""
        return {one.name: one for one in self.used}[name]

    def _as(self, names: list[str], state: State) -> "Slots":
        return replace(self, used=tuple(replace(one, state=state) if one.name in names else one for one in self.used))


@dataclass(frozen=True, slots=True)
class Step:
    """``slots`` then; what to start and what to drain for that. ``lacking``: those for which there is no slot left."""

    slots: Slots
    starting: tuple[Slot, ...]
    leaving: tuple[str, ...]
    lacking: tuple[Unit, ...] = ()

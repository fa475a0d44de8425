"""Which worker is to be started and which drained, so that there are as many as are wanted. Pure."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Slots:
    """``names``: of all that there may be. Each is in one of the three at most: ``running`` (oldest first),
    ``starting``, ``leaving``."""

    names: tuple[str, ...]
    running: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()

    def towards(self, wanted: int) -> tuple["Slots", tuple[str, ...], tuple[str, ...]]:
        """(the slots then, what to start, what to drain).

        Of those that run the newest leave, and only so many that ``wanted`` of them stay: what is starting serves
        nobody yet, and is looked at again when it runs.
        """
        have = len(self.running) + len(self.starting)
        if have < wanted:
            free = [name for name in self.names if name not in (*self.running, *self.starting, *self.leaving)]
            begin = tuple(free[: wanted - have])
            return replace(self, starting=self.starting + begin), begin, ()
        end = self.running[wanted:]
        return replace(self, running=self.running[:wanted], leaving=self.leaving + end), (), end

    def started(self, name: str) -> "Slots":
        return replace(self, starting=_without(self.starting, name), running=(*self.running, name))

    def gone(self, name: str) -> "Slots":
        """It has ended, or did not start."""
        return replace(self, starting=_without(self.starting, name), leaving=_without(self.leaving, name))


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(one for one in names if one != name)

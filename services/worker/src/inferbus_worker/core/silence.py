"""How long an engine that owes tokens has said nothing."""


class Silence:
    """Counts only what was watched: a watcher that stood still itself could not have heard the engine.

    ``limit`` and ``tick`` in seconds; ``tick``: how often it is looked at.
    """

    def __init__(self, limit: float, tick: float) -> None:
        self.seconds = 0.0
        self._limit = limit
        self._longest = 2 * tick
        self._steps = -1

    def too_long(self, elapsed: float, steps: int, *, owed: bool) -> bool:
        """One look, ``elapsed`` seconds after the last. ``steps``: how many there were in all. ``owed``: something
        runs, and the engine, not its reader, is the one that is waited for."""
        if not owed:
            self._steps = -1  # what is owed at the next look may have begun just before it
            self.seconds = 0.0
        elif steps != self._steps:
            self._steps = steps
            self.seconds = 0.0
        else:
            self.seconds += min(elapsed, self._longest)
        if self.seconds < self._limit:
            return False
        # Whatever follows, the engine is a new one.
        self._steps = -1
        self.seconds = 0.0
        return True

"""Of lines that begin alike one goes first: what it has read the others find in the worker's cache. Asked all at once,
each would read it anew, in as many slots as there are."""

from collections import OrderedDict
from collections.abc import Sequence

# Lines stand in the order of their beginnings: what was read long ago does not come again.
_READ = 4096
_PATIENCE_SECONDS = 30.0


class Leading:
    """Beginnings are named by the chain of their hashes, the shortest first. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._read: OrderedDict[bytes, None] = OrderedDict()
        # Whose it is to read, and since when.
        self._reading: dict[bytes, tuple[bytes, float]] = {}
        self._leaders: dict[bytes, list[bytes]] = {}

    def may_go(self, name: bytes, beginning: Sequence[bytes], now: float) -> bool:
        """Whether ``name`` may be asked now: nobody else is just reading what it begins with. If so, what is not
        read of its beginning is its to read."""
        rest = [one for one in beginning if one not in self._read]
        if not rest:
            return True
        leader, since = self._reading.get(rest[0], (name, now))
        if leader != name and now - since < _PATIENCE_SECONDS:
            return False
        self._reading.update(dict.fromkeys(rest, (name, now)))
        self._leaders[name] = rest
        return True

    def has_read(self, name: bytes) -> None:
        """It has its first token; or it comes to nothing, and who waits for it is the next."""
        for one in self._leaders.pop(name, ()):
            if self._reading.get(one, (b"", 0.0))[0] == name:
                del self._reading[one]
                self._read[one] = None
        while len(self._read) > _READ:
            self._read.popitem(last=False)

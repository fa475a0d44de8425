"""Which single requests have come: a second one of the same id is the same request, if it says the same."""

import hashlib
from collections import OrderedDict
from enum import Enum, auto

from inferbus_batch.core.queue_messages import told_of_line

SECONDS = 600.0
MOST = 200_000
_NAME_BYTES, _DIGEST_BYTES = 16, 8


class Verdict(Enum):
    """``AGAIN``: the same has come before. ``OTHER``: something else has come under its id."""

    NEW = auto()
    AGAIN = auto()
    OTHER = auto()


class Seen:
    """Of the last ten minutes, 200,000 ids at most: the oldest are forgotten first. Times are seconds of any clock that
    goes forward."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()

    def add(self, of: tuple[str, str], name: str, line: bytes, now: float) -> Verdict:
        """``of``: whose (tenant, key); ``line``: all that it says."""
        self._forget_old(now)
        known, said = self._known.get(key := _key(of, name)), _digest(line)
        if known is not None:
            return Verdict.AGAIN if known[0] == said else Verdict.OTHER
        self._known[key] = said, now
        if len(self._known) > MOST:
            self._known.popitem(last=False)
        return Verdict.NEW

    def add_line(self, of: tuple[str, str], line: bytes, now: float) -> None:
        """One of the input of a batch that single requests became."""
        self.add(of, told_of_line(line), line, now)

    def forget(self, of: tuple[str, str], name: str) -> None:
        """It has not come: it will come again."""
        self._known.pop(_key(of, name), None)

    def _forget_old(self, now: float) -> None:
        while self._known:
            key, (_, at) = next(iter(self._known.items()))
            if at > now - SECONDS:
                return
            del self._known[key]


def _key(of: tuple[str, str], name: str) -> bytes:
    return hashlib.blake2b("\0".join((*of, name)).encode(), digest_size=_NAME_BYTES).digest()


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=_DIGEST_BYTES).digest()

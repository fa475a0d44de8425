"""Who still wants a generation, and when nobody does: what is decided about cancelling, without doing it.

A generation belongs to the clients that are attached to it. When the last one has gone it is cancelled at once, or
after the hold that the request or its tenant asked for. Three others are left alone: one that another edge delivers
(it says so every few seconds), one that runs without a client (detached), and for a while one that nobody here knows:
this edge was started anew, and its clients are on their way back, here or to another edge.

Times are monotonic seconds. A request is named by the id of its first choice.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_contracts.ids import is_detached

# An edge says that it is attached three times in this time.
ATTACHED_SECONDS = 6.0
CANCEL_AGAIN_SECONDS = 1.0
_MAX_CANCELLED = 10_000


@dataclass(frozen=True, slots=True)
class Ending:
    """Cancel these ids (one a choice) for this reason."""

    ids: tuple[bytes, ...]
    reason: str


class Lifetimes:
    """``orphan_seconds``: how long deltas that nobody here waits for are let run, until their client may be back."""

    def __init__(self, orphan_seconds: float) -> None:
        self._orphan_seconds = orphan_seconds
        self._attached: dict[bytes, int] = {}
        self._elsewhere: dict[bytes, float] = {}
        # first id -> (when to cancel, ids, reason)
        self._held: dict[bytes, tuple[float, tuple[bytes, ...], str]] = {}
        self._cancelled: OrderedDict[bytes, float] = OrderedDict()

    def arrive(self, first: bytes) -> None:
        """A client is attached, for the first time or again."""
        self._attached[first] = self._attached.get(first, 0) + 1
        self._held.pop(first, None)

    def finish(self, first: bytes) -> None:
        """One of its clients has got everything."""
        left = self._attached.get(first, 0) - 1
        if left > 0:
            self._attached[first] = left
        else:
            self._attached.pop(first, None)

    def leave(self, ids: tuple[bytes, ...], reason: str, hold: float, now: float) -> Ending | None:
        """A client went without its end. ``ids``: all choices, the first one first."""
        first = ids[0]
        self.finish(first)
        if first in self._attached or self._is_elsewhere(first, now) or is_detached(first):
            return None
        if hold > 0:
            self._held[first] = (now + hold, ids, reason)
            return None
        return self.cancel(ids, reason, now)

    def cancel(self, ids: tuple[bytes, ...], reason: str, now: float) -> Ending:
        """Whatever anybody wants."""
        self._held.pop(ids[0], None)
        for one in ids:
            self._cancelled[one] = now
            self._cancelled.move_to_end(one)
        while len(self._cancelled) > _MAX_CANCELLED:
            self._cancelled.popitem(last=False)
        return Ending(ids, reason)

    def elsewhere(self, ids: Iterable[bytes], now: float) -> None:
        """Another edge delivers these."""
        for first in ids:
            self._elsewhere[first] = now + ATTACHED_SECONDS
            self._held.pop(first, None)

    def stray(self, request_id: bytes, first: bytes, now: float) -> Ending | None:
        """A delta came that no client waits for through the front door of this edge."""
        told = self._cancelled.get(request_id)
        if told is not None:  # on its way to its end, or the cancel was lost
            return self.cancel((request_id,), "client_gone", now) if now - told >= CANCEL_AGAIN_SECONDS else None
        if first in self._attached or first in self._held or is_detached(first) or self._is_elsewhere(first, now):
            return None
        self._held[first] = (now + self._orphan_seconds, (request_id,), "orphan")
        return None

    def due(self, now: float) -> list[Ending]:
        """Holds that are over."""
        over = [first for first, (until, _, _) in self._held.items() if until <= now]
        endings = []
        for first in over:
            _, ids, reason = self._held.pop(first)
            endings.append(self.cancel(ids, reason, now))
        for first in [one for one, until in self._elsewhere.items() if until <= now]:
            del self._elsewhere[first]
        return endings

    def ended(self, first: bytes) -> None:
        """Its end is on the log: nothing is left to cancel."""
        self._held.pop(first, None)

    def attached(self) -> list[bytes]:
        return list(self._attached)

    def _is_elsewhere(self, first: bytes, now: float) -> bool:
        return self._elsewhere.get(first, 0.0) > now

"""Who still wants a generation, and when nobody does: what is decided about cancelling, without doing it.

A generation belongs to the clients that are attached to it. When the last one has gone it is cancelled at once, or
after the hold that the request or its tenant asked for. Three others are left alone: one that another edge delivers
(it says so every few seconds), one that runs without a client (detached), and for a while one that nobody here knows:
this edge was started anew, and its clients are on their way back, here or to another edge.

If a client comes back to another edge before the first edge has seen it go, both have it for a moment: neither leaves
it to the other, and how long it is held is for the one that it came to last to say.

Times are monotonic seconds. A request is named by the id of its first choice.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_contracts.ids import is_detached

# An edge says that it is attached three times in this time.
ATTACHED_SECONDS = 6.0
# An edge that was started anew must hear the others before it cancels what it does not know: two of their words.
LEAST_ORPHAN_SECONDS = ATTACHED_SECONDS * 2 / 3
CANCEL_AGAIN_SECONDS = 1.0
# Longer than the word of another edge is on its way.
SHARED_HOLD_SECONDS = 1.0
_MAX_CANCELLED = 10_000
_ORPHAN = "orphan"
_NOT_HELD: tuple[float, tuple[bytes, ...], str] = (0.0, (), "")


@dataclass(frozen=True, slots=True)
class Ending:
    """Cancel these ids (one a choice) for this reason."""

    ids: tuple[bytes, ...]
    reason: str


class Lifetimes:
    """``orphan_seconds``: how long deltas that nobody here waits for are let run, until their client may be back.

    Shared requests are those that another edge may know, too: this edge has to say that it has them.
    """

    def __init__(self, orphan_seconds: float) -> None:
        self._orphan_seconds = orphan_seconds
        self._attached: dict[bytes, int] = {}
        self._shared: set[bytes] = set()
        # Its client came to another edge later than to this one: that one's hold counts.
        self._outlived: set[bytes] = set()
        # Until when which other edge delivers it, or any waits for its client.
        self._elsewhere: dict[bytes, dict[str, float]] = {}
        self._held_elsewhere: dict[bytes, float] = {}
        # first id -> (when to cancel, ids, reason)
        self._held: dict[bytes, tuple[float, tuple[bytes, ...], str]] = {}
        self._cancelled: OrderedDict[bytes, float] = OrderedDict()

    def arrive(self, first: bytes, *, shared: bool = False) -> None:
        """A client is attached; ``shared``: again, here or from another edge."""
        self._attached[first] = self._attached.get(first, 0) + 1
        self._held.pop(first, None)
        self._outlived.discard(first)
        if shared:
            self._shared.add(first)

    def finish(self, first: bytes) -> None:
        """One of its clients has got everything, or is not to be waited for."""
        left = self._attached.get(first, 0) - 1
        if left > 0:
            self._attached[first] = left
        else:
            self._attached.pop(first, None)
            self._forget(first)

    def leave(self, ids: tuple[bytes, ...], reason: str, hold: float, now: float) -> Ending | None:
        """A client went without its end. ``ids``: all choices, the first one first."""
        first = ids[0]
        shared, outlived = first in self._shared, first in self._outlived
        self.finish(first)
        if first in self._attached or is_detached(first):
            return None
        if outlived:
            hold = 0.0
            self._outlived.add(first)
        if shared:
            # Another edge may have it without having said so yet; and this one says that it waits. It is not left to
            # that edge even if it has said so: its client may have gone in the same moment.
            hold = max(hold, SHARED_HOLD_SECONDS)
            self._shared.add(first)
        if hold > 0:
            self._held[first] = (now + hold, ids, reason)
            return None
        return self.cancel(ids, reason, now)

    def cancel(self, ids: tuple[bytes, ...], reason: str, now: float) -> Ending:
        """Whatever anybody wants."""
        self._drop_hold(ids[0])
        for one in ids:
            self._cancelled[one] = now
            self._cancelled.move_to_end(one)
        while len(self._cancelled) > _MAX_CANCELLED:
            self._cancelled.popitem(last=False)
        return Ending(ids, reason)

    def elsewhere(
        self, edge: str, attached: Iterable[bytes], held: Iterable[bytes], now: float, *, arrived: bool = False
    ) -> list[bytes]:
        """What another edge says; ``arrived``: the clients of these have just come to it. Returns what it must be
        answered: requests that have a client here and were not known to be shared."""
        news = []
        for first in attached:
            self._elsewhere.setdefault(first, {})[edge] = now + ATTACHED_SECONDS
            if self._held.get(first, _NOT_HELD)[2] == _ORPHAN:
                self._drop_hold(first)
            if arrived and (first in self._attached or first in self._held):
                self._outlived.add(first)
            if first in self._attached and first not in self._shared:
                self._shared.add(first)
                news.append(first)
        for first in held:
            self._held_elsewhere[first] = now + ATTACHED_SECONDS
            self._elsewhere.get(first, {}).pop(edge, None)
            if first in self._attached:
                self._shared.add(first)
                news.append(first)
        return news

    def stray(self, request_id: bytes, first: bytes, now: float) -> Ending | None:
        """A delta came that no client waits for through the front door of this edge."""
        told = self._cancelled.get(request_id)
        if told is not None:  # on its way to its end, or the cancel was lost
            return self.cancel((request_id,), "client_gone", now) if now - told >= CANCEL_AGAIN_SECONDS else None
        held = self._held.get(first)
        if held is not None:
            until, ids, reason = held
            if request_id not in ids:  # an orphan's other choices
                self._held[first] = (until, (*ids, request_id), reason)
            return None
        if first in self._attached or is_detached(first):
            return None
        if self._is_elsewhere(first, now) or self._held_elsewhere.get(first, 0.0) > now:
            return None
        self._held[first] = (now + self._orphan_seconds, (request_id,), _ORPHAN)
        return None

    def due(self, now: float) -> list[Ending]:
        """Holds that are over, of requests that no other edge delivers."""
        silent = [one for one in self._elsewhere if not self._is_elsewhere(one, now)]
        died = [first for first in silent if self._elsewhere.pop(first)]  # or let go: then it is empty
        died += [first for first, until in self._held_elsewhere.items() if until <= now]
        for first in died:
            self._held_elsewhere.pop(first, None)
            if first in self._outlived and first in self._held:  # its client may be on its way back
                self._held[first] = (now + self._orphan_seconds, *self._held[first][1:])
        over = [held for first, held in self._held.items() if held[0] <= now and not self._is_wanted(first)]
        return [self.cancel(ids, reason, now) for _, ids, reason in over]

    def ended(self, first: bytes) -> None:
        """Its end is on the log: nothing is left to cancel."""
        self._drop_hold(first)

    def waits(self, first: bytes) -> bool:
        """Its client has gone from here, and another edge may know it: that must hear it."""
        return first in self._held and first in self._shared

    def shared(self) -> tuple[list[bytes], list[bytes]]:
        """What to say to the other edges: (attached, held)."""
        attached = [first for first in self._shared if first in self._attached]
        return attached, [first for first in self._shared if first in self._held and first not in self._outlived]

    def _is_wanted(self, first: bytes) -> bool:
        """By another edge, from what it said last."""
        return first in self._elsewhere or (first in self._outlived and first in self._held_elsewhere)

    def _is_elsewhere(self, first: bytes, now: float) -> bool:
        return any(until > now for until in self._elsewhere.get(first, {}).values())

    def _drop_hold(self, first: bytes) -> None:
        if self._held.pop(first, None) is not None and first not in self._attached:
            self._forget(first)

    def _forget(self, first: bytes) -> None:
        self._shared.discard(first)
        self._outlived.discard(first)

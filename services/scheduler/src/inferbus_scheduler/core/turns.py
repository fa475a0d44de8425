"""One pass over what waits for a model: all is placed that fits and whose turn it is.

Who does not fit stops nobody who does: those behind go past it, but of its class and below not for longer than
``PATIENCE_SECONDS``; then what needs more room than there is gets it, since nothing else begins. An overdue one of a
lower class lets higher ones pass for ``LONG_PATIENCE_SECONDS``. Who must leave room to others (see :func:`terms`) is
passed as long as that is so.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import le

from inferbus_scheduler.core.placement import (
    FULL,
    NO_ADAPTER,
    NO_WORKER,
    RESERVED,
    SUSPECT,
    WRONG_REVISION,
    Policy,
    part_left,
    readers_left,
    sparing,
)
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.view import ClusterView

PATIENCE_SECONDS, LONG_PATIENCE_SECONDS = 5.0, 300.0
# Nobody else of the model fits either.
_FOR_ALL = (NO_WORKER, NO_ADAPTER, FULL)
# Who waits for these waits for no room that those could take who go past it.
_NOT_FOR_ROOM = (SUSPECT, RESERVED, WRONG_REVISION)


def serve(
    queues: Queues,
    view: ClusterView,
    model: str,
    policy: Policy,
    now: float,
    *,
    offer: Callable[[Request, Policy], str],
    ask: Callable[[Request], bool],
    split: bool = False,
) -> None:
    """``split``: not all requests of the model may go to all of its workers, so that what one finds no room for says
    nothing of another. ``offer`` places a request under that policy and takes it out of ``queues``, which is the empty
    answer; else it says why not. ``ask``: an interactive one that does not fit asks for room; true if there is some at
    once, and then it is offered once more. Else each is offered once, and what asks for no less than another one that
    does not fit is not offered."""
    one = _Pass(queues, view, model, policy, now, offer, ask, split, Rejected())
    while one.place_one():
        for key in one.rejected.names():
            queues.overtaken(key, now)


class Rejected:
    """Who did not fit in this pass, and why."""

    __slots__ = ("_held_back", "_least", "_reasons")

    def __init__(self) -> None:
        self._reasons: dict[bytes, str] = {}
        # What those asked for that fit nowhere, as _needs says it, and why not.
        self._least: list[tuple[tuple[int, ...], str]] = []
        # Tenants that must leave what there is to others, and from which class on.
        self._held_back: dict[str, Priority] = {}

    def names(self) -> Collection[bytes]:
        """Their keys."""
        return self._reasons.keys()

    def why(self, request: Request) -> str:
        """Empty: it was not offered yet."""
        return self._reasons.get(request.key, "")

    def is_held_back(self, request: Request) -> bool:
        """Something of its tenant that stands before it must leave room."""
        return request.priority >= self._held_back.get(request.tenant, Priority.BATCH + 1)

    def foreseen(self, request: Request, policy: Policy) -> str:
        """Why it cannot fit, since one that asks for no more does not. Empty: it may."""
        needs = _needs(request, policy)
        for least, reason in self._least:
            if all(map(le, least, needs)):
                return reason
        return ""

    def add(self, request: Request, policy: Policy | None, reason: str) -> None:
        """``policy``: under which it was offered; None: it was not, its tenant must leave room."""
        self._reasons[request.key] = reason
        if reason == RESERVED:
            self._held_back[request.tenant] = request.priority
        if policy is not None:
            self._least.append((_needs(request, policy), reason))

    def clear(self, made: list[Request]) -> None:
        """There is more room now, for these."""
        self._least.clear()
        for request in made:
            self._reasons.pop(request.key, None)


def _needs(request: Request, policy: Policy) -> tuple[int, ...]:
    return (
        policy.sparing,
        policy.keeps_readers,
        request.suspect,
        request.output_tokens > 0,
        request.input_tokens,
        request.tokens,
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    queues: Queues
    view: ClusterView
    model: str
    policy: Policy
    now: float
    offer: Callable[[Request, Policy], str]
    ask: Callable[[Request], bool]
    split: bool
    rejected: Rejected

    def place_one(self) -> bool:
        """The first one in the order of turns that fits and may go past those before it. False: there is none."""
        barred: int = Priority.BATCH + 1
        for request in self.queues.heads(self.model):
            reason = self.rejected.why(request)
            if not reason:
                if request.priority >= barred or self.rejected.is_held_back(request):
                    continue
                reason = self._offered(request)
                if not reason:
                    return True
                # Where all is full, nobody but those who may ask for room is worth a look.
                asking = [request] if not self._for_all(reason) else list(self.queues.asking(self.model))
                made = [each for each in asking if self._may_ask(each) and self.ask(each)]
                if made:
                    self.rejected.clear(made)
                    return self.place_one()
                if self._for_all(reason):
                    return False
            since = self.queues.overtaken_since(request.key)
            if reason in _NOT_FOR_ROOM or since is None or self.now - since < PATIENCE_SECONDS:
                continue
            if self.now - since >= LONG_PATIENCE_SECONDS:
                return False
            barred = min(barred, request.priority)
        return False

    def _offered(self, request: Request) -> str:
        own = terms(request, self.queues, self.view, self.policy, self.now)
        if own is None:
            reason = RESERVED
        else:
            foreseen = "" if self.split else self.rejected.foreseen(request, own)
            reason = foreseen or self.offer(request, own)
        if reason:
            self.rejected.add(request, own, reason)
        return reason

    def _for_all(self, reason: str) -> bool:
        return reason in _FOR_ALL and not self.split

    def _may_ask(self, request: Request) -> bool:
        """Who has its share pauses nobody."""
        return (
            request.priority is Priority.INTERACTIVE
            and terms(request, self.queues, self.view, self.policy, self.now) is self.policy
        )


def terms(request: Request, queues: Queues, view: ClusterView, policy: Policy, now: float) -> Policy | None:
    """The policy under which it is placed now: a sparing one if its tenant must leave room to others, as
    :class:`~inferbus_scheduler.core.crowd.Crowd` says. None: no more slots are free than are left to those others."""
    candidates = view.candidates.get(base_of(request.model))
    if candidates is None or not queues.leaves_room(request, now):
        return policy
    if candidates.free <= part_left(candidates.slots):
        return None
    return sparing(policy, keeps_readers=candidates.readers <= readers_left(len(candidates)))

"""What waits for a worker: per model by class, inside a class fair between tenants, inside a tenant fair between
projects, inside a project in order of arrival; of a tenant, what has been on a worker already goes first.

A record of requests and nothing else: no clock, no I/O. Every operation but :meth:`Queues.oldest` and
:meth:`Queues.prune` costs the same, or its logarithm, however many wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inferbus_scheduler.core.admission import QueueState
from inferbus_scheduler.core.class_queue import ClassQueue
from inferbus_scheduler.core.crowd import Crowd
from inferbus_scheduler.core.fairness import Shares, after_turn, in_turn
from inferbus_scheduler.core.request import Priority, Request, base_of

# (tenant, project) -> the weight of the tenant among tenants, and of the project among the tenant's; at least 1.
Weigh = Callable[[str, str], tuple[int, int]]
# Placements whose end nobody tells are taken for ended when so many more have been made.
_TAKEN = 100_000


class ModelQueue:
    """The classes of one model."""

    __slots__ = ("_passed_over", "_shares", "classes")

    def __init__(self, shares: Shares) -> None:
        self.classes = {priority: ClassQueue() for priority in Priority}
        self._passed_over: dict[Priority, int] = {}
        self._shares = shares

    def waiting(self) -> list[Priority]:
        return [priority for priority, queue in self.classes.items() if queue.length]

    def first(self) -> Request | None:
        waiting = self.waiting()
        if not waiting:
            return None
        return self.classes[in_turn(waiting, self._passed_over, self._shares)[0]].first()

    def heads(self) -> Iterator[Request]:
        first = self.first()
        if first is None:
            return
        # Mostly it is all that is needed, and to find the others costs several times as much.
        yield first
        for priority in in_turn(self.waiting(), self._passed_over, self._shares):
            for request in self.classes[priority].heads():
                if request is not first:
                    yield request

    def took_turn(self, priority: Priority) -> None:
        self._passed_over = after_turn(priority, self.waiting(), self._passed_over)

    def prune(self) -> bool:
        pruned = [queue.prune() for queue in self.classes.values()]
        return all(pruned) and not self.waiting()


@dataclass(frozen=True, slots=True)
class _Taken:
    request: Request
    tokens: int


class Queues:
    """All models. A request is in it at most once an attempt, between :meth:`push` and :meth:`take` or :meth:`remove`.

    Fair are the tokens delivered: :meth:`take` counts the estimate of a request against its tenant and project until
    :meth:`ended` or :meth:`put_back` is said of it, and :meth:`charge` counts what really came.
    """

    def __init__(self, shares: Shares, weights: Weigh = lambda tenant, project: (1, 1)) -> None:
        self._shares = shares
        self._weights = weights
        self._models: dict[str, ModelQueue] = {}
        # The queues of each base model: of the model itself and of its adapters.
        self._names: dict[str, dict[str, None]] = {}
        self._requests: dict[bytes, Request] = {}
        # Of those that wait and that others went past: since when.
        self._overtaken: dict[bytes, float] = {}
        # By base model: who runs what part of it.
        self._crowds: dict[str, Crowd] = {}
        self._taken: OrderedDict[bytes, _Taken] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, key: bytes) -> bool:
        return key in self._requests

    def push(self, request: Request) -> None:
        """To the end of its project, or in front of what its tenant has not begun. ValueError if it waits already."""
        self._enter(request, in_front=False)

    def put_back(self, request: Request) -> None:
        """To the front, after :meth:`take` did not come to anything. ValueError if it waits already."""
        if request.key in self._requests:
            raise ValueError("the request waits already")
        self.ended(request.key)
        self._enter(request, in_front=True)

    def first(self, model: str) -> Request | None:
        """Whose turn it is; it stays in the queue."""
        queue = self._models.get(model)
        return queue.first() if queue is not None else None

    def heads(self, model: str) -> Iterator[Request]:
        """The first one, and a few of each class that may go past it if it does not fit, in the order of their turns.
        To be read before the queue changes."""
        queue = self._models.get(model)
        return queue.heads() if queue is not None else iter(())

    def asking(self, model: str) -> Iterator[Request]:
        """Of class interactive the first ones, more than :meth:`heads` has: who may ask for room where all is full."""
        queue = self._models.get(model)
        return queue.classes[Priority.INTERACTIVE].asking() if queue is not None else iter(())

    def is_behind(self, request: Request) -> bool:
        """Whether it, the last one pushed, is certainly none of :meth:`heads` and of :meth:`asking`, since too many of
        its own stand before it."""
        return self._models[request.model].classes[request.priority].is_behind(request)

    def overtaken(self, key: bytes, now: float) -> None:
        """Another one was placed though this one, if it still waits, stands before it."""
        if key in self._requests:
            self._overtaken.setdefault(key, now)

    def overtaken_since(self, key: bytes) -> float | None:
        """When that was said of it first; None: never."""
        return self._overtaken.get(key)

    def leaves_room(self, request: Request, now: float) -> bool:
        """Whether its tenant runs so much of the base model that it must leave room to others: see :class:`Crowd`. One
        of class batch leaves room to whoever waits for an answer, its own tenant, too."""
        crowd = self._crowds.get(base_of(request.model))
        if crowd is None:
            return False
        if request.priority is Priority.BATCH and crowd.is_asked(now):
            return True
        weight, _ = self._weights(request.tenant, request.project)
        return crowd.leaves_room(request.tenant, weight, now)

    def take(self, request: Request) -> None:
        """Out of the queue, since it is placed: its class and its tenant have had their turn. KeyError if not there."""
        if request.key not in self._requests:
            raise KeyError(request.key)
        self.ended(request.key)  # placed before under the same name: it counts once
        queue = self._models[request.model]
        # One without any estimate counts as a request all the same.
        tokens = max(1, request.tokens)
        queue.classes[request.priority].took_turn(request, tokens)
        self.remove(request.key)
        queue.took_turn(request.priority)
        self._crowds[base_of(request.model)].took(request.tenant)
        self._taken[request.key] = _Taken(request, tokens)
        if len(self._taken) > _TAKEN:
            self.ended(next(iter(self._taken)))

    def remove(self, key: bytes) -> Request:
        """Out of the queue without a turn. KeyError if it does not wait."""
        request = self._requests.pop(key)
        self._overtaken.pop(key, None)
        if request.priority is Priority.INTERACTIVE:
            self._crowds[base_of(request.model)].waits_no_more(request.tenant)
        self._models[request.model].classes[request.priority].remove(request)
        return request

    def ended(self, key: bytes) -> None:
        """The placement is over, or came to nothing; unknown ones are none of ours."""
        taken = self._taken.pop(key, None)
        if taken is None:
            return
        request = taken.request
        self._crowds[base_of(request.model)].ended(request.tenant)
        if (queue := self._models.get(request.model)) is not None:
            queue.classes[request.priority].refund(request, taken.tokens)

    def charge(
        self, model: str, tenant: str, project: str, priority: Priority, input_tokens: int, output_tokens: int
    ) -> None:
        """So many tokens were delivered by workers of ``model`` (the base one: its adapters share its workers)."""
        for name in self._names.get(base_of(model), ()):
            weights = self._weights(tenant, project)
            self._models[name].classes[priority].deliver(tenant, project, weights, input_tokens + output_tokens)

    def ahead(self, model: str, priority: Priority) -> int:
        """How many of ``model`` wait in ``priority`` and the classes above it."""
        queue = self._models.get(model)
        if queue is None:
            return 0
        return sum(waiting.length for each, waiting in queue.classes.items() if each <= priority)

    def state(self, request: Request, rate: float | None = None) -> QueueState:
        """What ``request`` would find, for admission. ``rate``: placements a second; None: not known."""
        queue = self._models.get(request.model)
        if queue is None:
            return QueueState(rate=rate)
        ahead = own = waiting = counted = 0
        for priority, each in queue.classes.items():
            if priority <= request.priority:
                ahead += each.length
                own += each.queued(request.tenant)
                mine, every = each.weight(request.tenant)
                counted += mine
                waiting += every
        if not counted:
            counted = self._weights(request.tenant, request.project)[0]
            waiting += counted
        return QueueState(ahead, own, counted / waiting, rate)

    def models(self) -> list[str]:
        """Those for which something waits."""
        return [model for model, queue in self._models.items() if queue.waiting()]

    def waiting_for(self, model: str) -> list[str]:
        """Of ``model`` and its adapters those for which something waits; another one is first each time."""
        names = self._names.get(base_of(model))
        if names is None:
            return []
        waiting = [name for name in names if self._models[name].waiting()]
        if len(waiting) > 1:
            names.pop(waiting[0])
            names[waiting[0]] = None
        return waiting

    def prune(self) -> None:
        """Keep nothing of models, tenants and projects of which nothing waits or is being generated. Now and then,
        since making a queue costs microseconds."""
        for model, queue in list(self._models.items()):
            if queue.prune():
                del self._models[model]
                names = self._names[base_of(model)]
                del names[model]
                if not names:
                    del self._names[base_of(model)]
        for base, crowd in list(self._crowds.items()):
            if base not in self._names and not crowd.running:
                del self._crowds[base]

    def oldest(self) -> Iterator[tuple[str, Priority, int, float]]:
        """(model, class, how many wait, arrival of the oldest) of all that is not empty."""
        for model, queue in self._models.items():
            for priority in queue.waiting():
                yield model, priority, queue.classes[priority].length, queue.classes[priority].oldest()

    def _enter(self, request: Request, *, in_front: bool) -> None:
        if request.key in self._requests:
            raise ValueError("the request waits already")
        self._requests[request.key] = request
        queue = self._models.get(request.model)
        if queue is None:
            queue = self._models[request.model] = ModelQueue(self._shares)
            self._names.setdefault(base_of(request.model), {})[request.model] = None
        weights = self._weights(request.tenant, request.project)
        queue.classes[request.priority].push(request, weights, in_front=in_front)
        crowd = self._crowds.setdefault(base_of(request.model), Crowd())
        if request.priority is Priority.INTERACTIVE:
            crowd.asked(request.tenant, weights[0], request.waits_since)
            crowd.waits(request.tenant)

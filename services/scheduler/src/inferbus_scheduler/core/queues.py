"""What waits for a worker: per model by class, inside a class fair between tenants, inside a tenant fair between
projects, inside a project in order of arrival; of a tenant, what has been on a worker already goes first.

A record of requests and nothing else: no clock, no I/O. Every operation but :meth:`Queues.oldest` and
:meth:`Queues.prune` costs the same, or its logarithm, however many wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from inferbus_scheduler.core.admission import QueueState
from inferbus_scheduler.core.crowd import Crowd
from inferbus_scheduler.core.fairness import FairOrder, Shares, after_turn, in_turn
from inferbus_scheduler.core.request import Priority, Request, base_of

# (tenant, project) -> the weight of the tenant among tenants, and of the project among the tenant's; at least 1.
Weigh = Callable[[str, str], tuple[int, int]]
# Placements whose end nobody tells are taken for ended when so many more have been made.
_TAKEN = 100_000
# Of one class, and of one tenant in it, so many are looked at where the first ones do not fit.
_HEADS, _HEADS_OF_TENANT = 8, 3
# Who may ask for room: many come at once, and what is paused for them together is paused once.
_ASKING, _ASKING_OF_TENANT = 24, 16


class TenantQueue:
    """One tenant's requests in one class of one model."""

    __slots__ = ("length", "order", "projects", "resumed")

    def __init__(self) -> None:
        self.resumed: OrderedDict[bytes, Request] = OrderedDict()
        # A project is here exactly while it has a request in it.
        self.projects: dict[str, OrderedDict[bytes, Request]] = {}
        self.order = FairOrder()
        self.length = 0

    def push(self, request: Request, weight: int, *, in_front: bool) -> None:
        if request.attempt > 1:
            own = self.resumed
        elif (found := self.projects.get(request.project)) is not None:
            own = found
        else:
            own = self.projects[request.project] = OrderedDict()
            self.order.join(request.project, weight, in_front=in_front)
        own[request.key] = request
        if in_front:
            own.move_to_end(request.key, last=False)
        self.length += 1

    def first(self) -> Request:
        return next(iter((self.resumed or self.projects[self.order.first()]).values()))

    def heads(self, most: int) -> Iterator[Request]:
        """The first one, then those that may go past it: of each project one, then of each another one."""
        lines = [self.resumed.values(), *(self.projects[name].values() for name in self.order.firsts(most))]
        return islice(_in_rounds(lines), most)

    def is_behind(self, request: Request) -> bool:
        own = self.resumed if request.attempt > 1 else self.projects[request.project]
        return len(own) > _ASKING_OF_TENANT

    def remove(self, request: Request) -> None:
        self.length -= 1
        if self.resumed.pop(request.key, None) is not None:
            return
        own = self.projects[request.project]
        del own[request.key]
        if not own:
            del self.projects[request.project]
            self.order.leave(request.project)

    def oldest(self) -> float:
        firsts = [next(iter(own.values())) for own in self.projects.values()]
        return min(each.arrived_at for each in (*self.resumed.values(), *firsts))


class ClassQueue:
    """One class of one model."""

    __slots__ = ("_order", "_tenants", "length")

    def __init__(self) -> None:
        self._tenants: dict[str, TenantQueue] = {}
        self._order = FairOrder()
        self.length = 0

    def push(self, request: Request, weights: tuple[int, int], *, in_front: bool) -> None:
        queue = self._tenant(request.tenant)
        if not queue.length:
            self._order.join(request.tenant, weights[0], in_front=in_front)
        queue.push(request, weights[1], in_front=in_front)
        self.length += 1

    def first(self) -> Request:
        return self._tenants[self._order.first()].first()

    def heads(self) -> Iterator[Request]:
        """The first one, then those that may go past it: of each tenant one, then of each another one."""
        return self._firsts(_HEADS, _HEADS_OF_TENANT)

    def asking(self) -> Iterator[Request]:
        """In the same order more of them."""
        return self._firsts(_ASKING, _ASKING_OF_TENANT)

    def _firsts(self, most: int, of_tenant: int) -> Iterator[Request]:
        lines = [self._tenants[name].heads(of_tenant) for name in self._order.firsts(most)]
        return islice(_in_rounds(lines), most)

    def remove(self, request: Request) -> None:
        queue = self._tenants[request.tenant]
        queue.remove(request)
        self.length -= 1
        if not queue.length:
            self._order.leave(request.tenant)

    def is_behind(self, request: Request) -> bool:
        return self._tenants[request.tenant].is_behind(request)

    def took_turn(self, request: Request, tokens: int) -> None:
        self._order.took_turn(request.tenant, tokens)
        if request.attempt == 1:
            self._tenants[request.tenant].order.took_turn(request.project, tokens)

    def refund(self, request: Request, tokens: int) -> None:
        self._order.refund(request.tenant, tokens)
        if request.attempt == 1 and request.tenant in self._tenants:
            self._tenants[request.tenant].order.refund(request.project, tokens)

    def deliver(self, tenant: str, project: str, weights: tuple[int, int], tokens: int) -> None:
        self._order.deliver(tenant, weights[0], tokens)
        self._tenant(tenant).order.deliver(project, weights[1], tokens)

    def queued(self, tenant: str) -> int:
        queue = self._tenants.get(tenant)
        return queue.length if queue is not None else 0

    def weight(self, tenant: str) -> tuple[int, int]:
        """Of those who wait: of ``tenant`` (0: it does not), and of all."""
        return self._order.weight_of(tenant), self._order.weight

    def oldest(self) -> float:
        """When the one that waits longest arrived."""
        return min(self._tenants[tenant].oldest() for tenant in self._order.names())

    def prune(self) -> bool:
        """Forget who is idle. True: nothing is left."""
        for tenant, queue in list(self._tenants.items()):
            if queue.order.prune() and not queue.length:
                del self._tenants[tenant]
        return self._order.prune() and not self._tenants

    def _tenant(self, tenant: str) -> TenantQueue:
        queue = self._tenants.get(tenant)
        if queue is None:
            queue = self._tenants[tenant] = TenantQueue()
        return queue


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


def _in_rounds(lines: Iterable[Iterable[Request]]) -> Iterator[Request]:
    """The first of each line, then the second of each, and so on."""
    return (each for each in chain.from_iterable(zip_longest(*lines)) if each is not None)

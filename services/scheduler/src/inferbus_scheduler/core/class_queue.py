"""One class of one model: fair between tenants, inside a tenant fair between projects, inside a project in order of
arrival; of a tenant, what has been on a worker already goes first. See :mod:`inferbus_scheduler.core.queues`."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest

from inferbus_scheduler.core.fairness import FairOrder
from inferbus_scheduler.core.request import Request

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


def _in_rounds(lines: Iterable[Iterable[Request]]) -> Iterator[Request]:
    """The first of each line, then the second of each, and so on."""
    return (each for each in chain.from_iterable(zip_longest(*lines)) if each is not None)

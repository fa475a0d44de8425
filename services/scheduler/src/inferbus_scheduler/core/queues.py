"""What waits for a worker: per model by class, inside a class round robin between tenants, inside a tenant in order.

A record of requests and nothing else: no clock, no I/O. Every operation but :meth:`Queues.oldest` costs the same,
however many wait.
"""

from collections import OrderedDict
from collections.abc import Iterator

from inferbus_scheduler.core.fairness import Shares, after_turn, next_class
from inferbus_scheduler.core.request import Priority, Request


class ClassQueue:
    """One class of one model: a ring of tenants, each with its requests in order of arrival."""

    __slots__ = ("_ring", "length")

    def __init__(self) -> None:
        # The first tenant is next. A tenant is in the ring exactly while it has a request here.
        self._ring: OrderedDict[str, OrderedDict[bytes, Request]] = OrderedDict()
        self.length = 0

    def push(self, request: Request) -> None:
        self._ring.setdefault(request.tenant, OrderedDict())[request.request_id] = request
        self.length += 1

    def put_back(self, request: Request) -> None:
        """As if it had never been taken: first of its tenant, whose turn it is."""
        self.push(request)
        self._ring[request.tenant].move_to_end(request.request_id, last=False)
        self._ring.move_to_end(request.tenant, last=False)

    def first(self) -> Request:
        return next(iter(next(iter(self._ring.values())).values()))

    def remove(self, request: Request, *, served: bool) -> None:
        """Out of the queue; ``served``: its tenant has had its turn."""
        own = self._ring[request.tenant]
        del own[request.request_id]
        self.length -= 1
        if not own:
            del self._ring[request.tenant]
        elif served:
            self._ring.move_to_end(request.tenant)

    def oldest(self) -> float:
        """When the one that waits longest arrived."""
        return min(next(iter(own.values())).arrived_at for own in self._ring.values())


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
        return self.classes[next_class(waiting, self._passed_over, self._shares)].first()

    def remove(self, request: Request, *, served: bool) -> None:
        self.classes[request.priority].remove(request, served=served)
        if served:
            self._passed_over = after_turn(request.priority, self.waiting(), self._passed_over)


class Queues:
    """All models. A request is in it at most once, between :meth:`push` and :meth:`take` or :meth:`remove`."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._models: dict[str, ModelQueue] = {}
        self._requests: dict[bytes, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._requests

    def push(self, request: Request) -> None:
        """To the end. ValueError if it waits already."""
        self._queue_of(request).push(request)

    def put_back(self, request: Request) -> None:
        """To the front, after :meth:`take` did not come to anything. ValueError if it waits already."""
        self._queue_of(request).put_back(request)

    def first(self, model: str) -> Request | None:
        """Whose turn it is; it stays in the queue."""
        queue = self._models.get(model)
        return queue.first() if queue is not None else None

    def take(self, request: Request) -> None:
        """Out of the queue, since it is placed: its class and its tenant have had their turn. KeyError if not there."""
        self._remove(request.request_id, served=True)

    def remove(self, request_id: bytes) -> Request:
        """Out of the queue without a turn. KeyError if it does not wait."""
        return self._remove(request_id, served=False)

    def ahead(self, model: str, priority: Priority) -> int:
        """How many of ``model`` wait in ``priority`` and the classes above it."""
        queue = self._models.get(model)
        if queue is None:
            return 0
        return sum(waiting.length for each, waiting in queue.classes.items() if each <= priority)

    def models(self) -> list[str]:
        """Those for which something waits."""
        return [model for model, queue in self._models.items() if queue.waiting()]

    def prune(self) -> None:
        """Keep nothing of models for which nothing waits. Now and then, since making a queue costs microseconds."""
        for model in self._models.keys() - set(self.models()):
            del self._models[model]

    def oldest(self) -> Iterator[tuple[str, Priority, int, float]]:
        """(model, class, how many wait, arrival of the oldest) of all that is not empty."""
        for model, queue in self._models.items():
            for priority in queue.waiting():
                yield model, priority, queue.classes[priority].length, queue.classes[priority].oldest()

    def _queue_of(self, request: Request) -> ClassQueue:
        if request.request_id in self._requests:
            raise ValueError("the request waits already")
        self._requests[request.request_id] = request
        queue = self._models.get(request.model)
        if queue is None:
            queue = self._models[request.model] = ModelQueue(self._shares)
        return queue.classes[request.priority]

    def _remove(self, request_id: bytes, *, served: bool) -> Request:
        request = self._requests.pop(request_id)
        self._models[request.model].remove(request, served=served)
        return request

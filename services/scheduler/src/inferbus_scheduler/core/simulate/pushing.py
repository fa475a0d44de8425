"""What a load balancer does, to compare with: it gives every request to a worker at once, and the engine queues.

It has no queue of its own, no classes, no fairness and no log: what a dying worker had has failed.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from inferbus_scheduler.core.affinity import PrefixIndex
from inferbus_scheduler.core.simulate.engine import Engine, Generation
from inferbus_scheduler.core.simulate.generate import Draws
from inferbus_scheduler.core.simulate.run import Hands

NO_WORKER = "no_worker"
WORKER_LOST = "worker_lost"


class Workers:
    """The live ones of one model, and how many requests each has: sent there, and not heard to have ended."""

    def __init__(self) -> None:
        self.live: list[Engine] = []
        self.requests: dict[str, int] = {}
        self._least: list[tuple[int, str, Engine]] = []

    def add(self, engine: Engine) -> None:
        if engine.name not in self.requests:
            self.live.append(engine)
        self.set(engine, 0)

    def remove(self, engine: Engine) -> None:
        if self.requests.pop(engine.name, None) is not None:
            self.live.remove(engine)

    def set(self, engine: Engine, requests: int) -> None:
        self.requests[engine.name] = requests
        heappush(self._least, (requests, engine.name, engine))
        if len(self._least) > 8 * len(self.live) + 64:
            self._least = [(self.requests[one.name], one.name, one) for one in self.live]
            heapify(self._least)

    def least(self) -> Engine:
        """That with the fewest requests, ties by name."""
        while self.requests.get(self._least[0][1]) != self._least[0][0]:
            heappop(self._least)
        return self._least[0][2]


Choose = Callable[[Generation, Workers], Engine]
"""Which of the workers (at least one) gets it."""


def round_robin() -> Choose:
    turns: dict[str, int] = {}

    def choose(generation: Generation, workers: Workers) -> Engine:
        turns[generation.arrival.model] = turn = turns.get(generation.arrival.model, -1) + 1
        return workers.live[turn % len(workers.live)]

    return choose


def at_random(draws: Draws) -> Choose:
    return lambda _, workers: workers.live[int(draws.random() * len(workers.live))]


def least_requests(_: Generation, workers: Workers) -> Engine:
    return workers.least()


def longest_prefix(index: PrefixIndex) -> Choose:
    """Whoever holds most of the prompt, whatever it has to do; of those the one with the fewest requests."""

    def choose(generation: Generation, workers: Workers) -> Engine:
        hits = index.match(generation.arrival.prefix)
        best = max((hits[one] for one in hits if one in workers.requests), default=0)
        if not best:
            return workers.least()
        name = min((workers.requests[one], one) for one in hits if hits[one] == best and one in workers.requests)[1]
        return next(engine for engine in workers.live if engine.name == name)

    return choose


class Pushing:
    """A :class:`~inferbus_scheduler.core.simulate.run.Policy` that sends on at once where ``choose`` says."""

    def __init__(
        self, hands: Hands, engines: Sequence[Engine], choose: Choose, index: PrefixIndex | None = None
    ) -> None:
        self._hands = hands
        self._choose = choose
        self._index = index
        self._boots: dict[str, int] = {}
        self._models = {engine.kind.model: Workers() for engine in engines}

    def arrived(self, generation: Generation, now: float) -> None:
        workers = self._models.get(generation.arrival.model)
        if workers is None or not workers.live:
            self._hands.refuse(generation, NO_WORKER)
            return
        engine = self._choose(generation, workers)
        workers.set(engine, workers.requests[engine.name] + 1)
        self._hands.send(generation, engine)

    def died(self, lost: Sequence[Generation], now: float) -> None:
        """What it had comes back, to fail."""

    def returned(self, generation: Generation, now: float, *, died: bool) -> None:
        self._hands.refuse(generation, WORKER_LOST, failed=True)

    def heard(self, engine: Engine, now: float) -> None:
        workers = self._models[engine.kind.model]
        if self._boots.get(engine.name) != engine.boot:
            self._boots[engine.name] = engine.boot
            workers.add(engine)
            if self._index is not None:
                self._index.forget(engine.name)
        elif engine.told.ended and engine.name in workers.requests:
            workers.set(engine, workers.requests[engine.name] - len(engine.told.ended))
        if self._index is not None:
            self._index.removed(engine.name, engine.told.removed)
            self._index.stored(engine.name, engine.told.stored)
        engine.told.clear()

    def gone(self, engine: Engine, now: float) -> None:
        self._models[engine.kind.model].remove(engine)
        if self._index is not None:
            self._index.forget(engine.name)

    def look(self, now: float) -> None:
        """It never waits for anything."""

"""The run of one policy over one trace: events in order of time, engines, deaths, and who tells whom when.

Whatever takes time on the way is a stated constant of :class:`Delays`; nothing here decides anything.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from heapq import heappop, heappush
from typing import Protocol

from inferbus_scheduler.core.simulate.engine import Engine, Generation, WorkerKind
from inferbus_scheduler.core.simulate.generate import Draws
from inferbus_scheduler.core.simulate.measures import Ending, Measures
from inferbus_scheduler.core.simulate.trace import Arrival

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds on the way, of a quiet machine; bench/simulator.py measures those of the one that it runs on."""

    acceptance: float = 0.001
    """From the client's request to the scheduler."""
    hand_over: float = 0.001
    """From a placement to the engine."""
    delivery: float = 0.002
    """From a token to the client."""
    told: float = 0.001
    """From an end to the scheduler's knowing of the room."""
    read_told: float = 0.02
    """From the end of a prompt's reading to the scheduler's knowing that there is less to read: its first token comes
    with a step, and workers look for it each 5 ms."""
    cache_told: float = 0.1
    """Changes of a KV cache are told together, at every multiple of it."""
    moved: float = 0.02
    """From a pause to its being in the queue again."""
    noticed: float = 0.3
    """From a worker's death to the scheduler's knowing it, and having read the log."""

    @classmethod
    def of(cls, overhead: float) -> "Delays":
        """Of a stack where a request that finds it idle waits ``overhead`` seconds for its first token beyond what its
        engine takes: in equal parts on its way to the scheduler, to the engine, and back. A heartbeat takes such a
        part, too."""
        part = overhead / 3
        return cls(acceptance=part, hand_over=part, delivery=part, told=part)


@dataclass(frozen=True, slots=True)
class Deaths:
    """Each worker dies at random, once in ``every`` seconds on average (0: never), and is back after ``back_after``."""

    every: float = 0.0
    back_after: float = 30.0


class Hands(Protocol):
    """What a policy may do. Times are those of the call."""

    def send(self, generation: Generation, engine: Engine) -> None: ...

    def refuse(self, generation: Generation, reason: str, *, failed: bool = False) -> None: ...

    def pause(self, generation: Generation, engine: Engine) -> None:
        """Take it from its engine; it comes back by ``returned``."""
        ...

    def look_at(self, at: float) -> None:
        """Call ``look`` then."""
        ...


class Policy(Protocol):
    """Who decides. It is told what the real scheduler is told, and no sooner."""

    def arrived(self, generation: Generation, now: float) -> None: ...

    def died(self, lost: Sequence[Generation], now: float) -> None:
        """The death of a worker was noticed. ``lost``: what it took along, at least one; they are ``returned`` next."""
        ...

    def returned(self, generation: Generation, now: float, *, died: bool) -> None:
        """It was paused, or its worker has gone: it goes on elsewhere, or is refused. ``died``: of one that had it."""
        ...

    def heard(self, engine: Engine, now: float) -> None:
        """A heartbeat: ends, room, and what its KV cache holds. At the first one it is new."""
        ...

    def gone(self, engine: Engine, now: float) -> None: ...

    def look(self, now: float) -> None: ...


class _Event(IntEnum):
    """In this order where the time is the same."""

    ENGINE = 0
    DELIVER = 1
    HEARD = 2
    RETURN = 3
    DIE = 4
    NOTICED = 5
    BACK = 6
    LOOK = 7


class Run:
    """One policy, one trace, one fleet; :meth:`play` once."""

    def __init__(
        self,
        kinds: Sequence[WorkerKind],
        policy: Callable[[Hands, Sequence[Engine]], Policy],
        delays: Delays,
        deaths: Deaths,
        draws: Draws,
    ) -> None:
        self.measures = Measures()
        self.engines = [
            Engine(f"{kind.name}-{number}", f"zone-{number % kind.zones}", kind, self.measures)
            for kind in kinds
            for number in range(kind.count)
        ]
        self.now = 0.0
        self._delays = delays
        self._deaths = deaths
        self._draws = draws
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._order = 0
        self._open = 0
        # When the next heartbeat of a worker is due that has something to say.
        self._telling: dict[str, float] = {}
        self._telling_cache: set[str] = set()
        self._looks_at = _NEVER
        self._policy = policy(self, self.engines)

    def play(self, arrivals: Iterable[Arrival]) -> Measures:
        """To the end of the last request. ValueError if the arrivals are not in order of time."""
        for engine in self.engines:
            self._policy.heard(engine, 0.0)
            self._next_death(engine)
        for number, arrival in enumerate(arrivals, start=1):
            accepted = arrival.time + self._delays.acceptance
            if accepted < self.now:
                raise ValueError("a trace is in order of time")
            while self._events and self._events[0][0] <= accepted:
                self._next()
            self.now = accepted
            self._open += 1
            self.measures.demand(arrival.tenant, arrival.output_tokens)
            self._policy.arrived(Generation(number, arrival), accepted)
        while self._open and self._events:
            self._next()
        for engine in self.engines:
            engine.idle_until(self.now)
        return self.measures

    @property
    def open(self) -> int:
        """Requests that have arrived and not ended: 0 after :meth:`play`, unless the policy forgot one."""
        return self._open

    # --- hands -----------------------------------------------------------------------------------------------------

    def send(self, generation: Generation, engine: Engine) -> None:
        generation.key = generation.request_id + generation.attempt.to_bytes(2, "big")
        deliver = partial(self._deliver, generation, engine, engine.boot)
        self._at(self.now + self._delays.hand_over, _Event.DELIVER, deliver)

    def refuse(self, generation: Generation, reason: str, *, failed: bool = False) -> None:
        self._end(generation, Ending.FAILED if failed else Ending.REFUSED, reason, self.now)

    def pause(self, generation: Generation, engine: Engine) -> None:
        if generation.ended:
            return
        self.measures.preemptions += 1
        engine.withdraw(generation, self.now)
        self._follow(engine)
        self._tell(engine)
        if generation.left <= 0:
            self._done(generation)
            return
        generation.attempt += 1
        self._at(self.now + self._delays.moved, _Event.RETURN, partial(self._returned, generation, False))

    def look_at(self, at: float) -> None:
        if at < self._looks_at:
            self._looks_at = at
            self._at(max(at, self.now), _Event.LOOK, self._look)

    # --- events ----------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        self.now, _, _, act = heappop(self._events)
        act()

    def _engine_due(self, engine: Engine, version: int) -> None:
        if engine.alive and engine.version == version:
            self._run_engine(engine)

    def _heard(self, engine: Engine, boot: int, at: float) -> None:
        if self._telling.get(engine.name) != at:
            return
        del self._telling[engine.name]
        if engine.alive and engine.boot == boot:
            self._policy.heard(engine, at)

    def _cache_due(self, engine: Engine, boot: int) -> None:
        if engine.alive and engine.boot == boot:
            self._telling_cache.discard(engine.name)
            engine.tell_cache()
            self._policy.heard(engine, self.now)

    def _returned(self, generation: Generation, died: bool) -> None:
        self._policy.returned(generation, self.now, died=died)

    def _look(self) -> None:
        self._looks_at = _NEVER
        self._policy.look(self.now)

    def _run_engine(self, engine: Engine) -> None:
        for generation in engine.run(self.now):
            self._done(generation)
        self._follow(engine)
        if engine.told.ended:
            self._tell(engine)
        elif engine.told.started:
            self._tell(engine, self._delays.read_told)

    def _deliver(self, generation: Generation, engine: Engine, boot: int) -> None:
        if engine.alive and engine.boot == boot:
            engine.submit(generation, self.now)
            self._follow(engine)
        else:
            # Nobody took it, so that it killed nobody.
            self._lost(generation, self.now + self._delays.noticed, died=False)

    def _die(self, engine: Engine, boot: int) -> None:
        if engine.boot != boot or not engine.alive:
            return
        lost = engine.die(self.now)
        self._telling.pop(engine.name, None)
        self._telling_cache.discard(engine.name)
        noticed = self.now + self._delays.noticed
        self._at(noticed, _Event.NOTICED, partial(self._noticed, engine, boot))
        self._at(self.now + self._deaths.back_after, _Event.BACK, partial(self._back, engine))
        if lost:
            self._at(noticed, _Event.RETURN, lambda: self._policy.died(lost, self.now))
        for generation in lost:
            self._lost(generation, noticed)

    def _noticed(self, engine: Engine, boot: int) -> None:
        if engine.boot == boot:
            self._policy.gone(engine, self.now)

    def _back(self, engine: Engine) -> None:
        engine.start(self.now)
        self._policy.heard(engine, self.now)
        self._next_death(engine)

    def _lost(self, generation: Generation, at: float, *, died: bool = True) -> None:
        if generation.left <= 0:
            self._done(generation)
            return
        self.measures.migrations += 1
        generation.attempt += 1
        self._at(at, _Event.RETURN, partial(self._returned, generation, died))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _done(self, generation: Generation) -> None:
        self._end(generation, Ending.DONE, "", self.now)

    def _end(self, generation: Generation, ending: Ending, reason: str, at: float) -> None:
        if generation.ended:
            raise RuntimeError("a request ended twice")
        generation.ended = True
        self._open -= 1
        arrival = generation.arrival
        late = self._delays.delivery
        first_at = generation.first_at + late if generation.first_at >= 0 else -1.0
        self.measures.ended(arrival, ending, reason, first_at=first_at, ended_at=at + late, tokens=generation.delivered)

    def _follow(self, engine: Engine) -> None:
        """Its next event, in place of the one that was due before."""
        at = engine.next_at()
        if at != _NEVER:
            self._at(max(at, self.now), _Event.ENGINE, partial(self._engine_due, engine, engine.version))
        if engine.cache_news and engine.name not in self._telling_cache:
            self._telling_cache.add(engine.name)
            every = self._delays.cache_told
            told_at = (self.now // every + 1) * every if every else self.now
            self._at(told_at + self._delays.told, _Event.HEARD, partial(self._cache_due, engine, engine.boot))

    def _tell(self, engine: Engine, delay: float | None = None) -> None:
        at = self.now + (self._delays.told if delay is None else delay)
        if at < self._telling.get(engine.name, _NEVER):
            self._telling[engine.name] = at
            self._at(at, _Event.HEARD, partial(self._heard, engine, engine.boot, at))

    def _next_death(self, engine: Engine) -> None:
        if self._deaths.every > 0:
            at = self.now + self._draws.expovariate(1 / self._deaths.every)
            self._at(at, _Event.DIE, partial(self._die, engine, engine.boot))

    def _at(self, at: float, event: _Event, act: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._events, (at, event, self._order, act))

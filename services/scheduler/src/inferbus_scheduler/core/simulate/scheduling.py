"""Our policy: the scheduler's own decisions, told what its workers tell and what a clock says.

What :mod:`inferbus_scheduler.dispatch` and :mod:`inferbus_scheduler.fleet` do with messages is done here with simulated
ones; every decision is a call of the same function of ``core``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferbus_scheduler.core.admission import Limits, Refusal, admit, overdue
from inferbus_scheduler.core.affinity import PrefixIndex
from inferbus_scheduler.core.deadlines import Deadlines
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.estimates import OutputMeans
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.migration import WORKER_LOST, Deaths, fruitless_after
from inferbus_scheduler.core.placement import Placement, Policy, Rejection
from inferbus_scheduler.core.policies import Pick
from inferbus_scheduler.core.preemption import victims
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.simulate.desk import Desk
from inferbus_scheduler.core.simulate.engine import Engine, Generation
from inferbus_scheduler.core.simulate.run import Hands
from inferbus_scheduler.core.turns import serve
from inferbus_scheduler.core.view import Candidates, ClusterView

# Of many that hold a prefix these are asked for first.
_BEST = 8
# So often what waits is looked at, as the real one does.
_TICK = 0.25
# What nobody waits for any more is forgotten after so many arrivals.
_PRUNE_EVERY = 20_000


@dataclass(frozen=True, slots=True)
class Settings:
    """As an operator of the real one would set them. ``request_timeout`` seconds from its arrival a request expires."""

    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=lambda: Limits(max_queued=1000, queue_timeout=30.0, retry_after=1.0))
    shares: Shares = field(default_factory=Shares)
    request_timeout: float = 600.0
    preemption: bool = True


class Scheduling:
    """A :class:`~inferbus_scheduler.core.simulate.run.Policy`: one scheduler for all models. ``pick`` places."""

    def __init__(
        self, hands: Hands, engines: Sequence[Engine], pick: Pick, settings: Settings, weights: Mapping[str, float]
    ) -> None:
        self._hands = hands
        self._pick = pick
        self._settings = settings
        self._engines = {engine.name: engine for engine in engines}
        self._models = {engine.kind.model for engine in engines}
        self._desks: dict[str, Desk] = {}
        self._candidates = {model: Candidates(settings.policy.weights) for model in self._models}
        self._view = ClusterView(settings.policy.weights, self._candidates)
        self._unserved: dict[str, float] = dict.fromkeys(self._models, 0.0)
        self._index = PrefixIndex()
        self._queues = Queues(settings.shares, lambda tenant, _: (int(weights.get(tenant, 1)), 1))
        self._waiting: dict[bytes, Generation] = {}
        # Below interactive, by model and worker: what may be paused.
        self._pausable: dict[str, dict[str, dict[bytes, Generation]]] = {model: {} for model in self._models}
        self._deadlines = Deadlines()
        self._rate = DrainRate()
        self._lengths = OutputMeans()
        self._deaths = Deaths()
        self._arrivals = 0

    # --- what comes in ---------------------------------------------------------------------------------------------

    def arrived(self, generation: Generation, now: float) -> None:
        arrival = generation.arrival
        request = Request(
            request_id=generation.request_id,
            model=arrival.model,
            tenant=arrival.tenant,
            project=arrival.project,
            priority=arrival.priority,
            arrived_at=now,
            expires_at=now + self._settings.request_timeout,
            input_tokens=arrival.input_tokens,
            output_tokens=self._lengths.expected(arrival.model, arrival.max_tokens or None),
            prefix=arrival.prefix,
        )
        self._arrivals += 1
        if self._arrivals % _PRUNE_EVERY == 0:
            self._queues.prune()
            self._rate.prune(now)
        self._queue(generation, request, now)

    def died(self, lost: Sequence[Generation], now: float) -> None:
        self._deaths.died(now, explained=not all(_progressed(generation) for generation in lost))

    def returned(self, generation: Generation, now: float, *, died: bool) -> None:
        before = generation.request
        desk = self._desks.get(generation.worker)
        if desk is not None and generation in desk:
            self._release(desk, generation)
        generation.fruitless_deaths = fruitless_after(
            generation.fruitless_deaths, progressed=_progressed(generation), died=died
        )
        if died and generation.fruitless_deaths >= self._deaths.patience(now):
            self._hands.refuse(generation, WORKER_LOST, failed=True)
            return
        expected = self._lengths.expected(before.model, generation.arrival.max_tokens or None)
        request = Request(
            request_id=before.request_id,
            model=before.model,
            tenant=before.tenant,
            project=before.project,
            priority=before.priority,
            arrived_at=before.arrived_at,
            expires_at=before.expires_at,
            attempt=generation.attempt,
            input_tokens=generation.to_read,
            output_tokens=max(1, expected - generation.delivered),
            prefix=before.prefix,
            suspect=generation.fruitless_deaths > 0,
            queued_at=now,
            avoid=generation.worker,
            resumed_tokens=generation.delivered,
        )
        self._queue(generation, request, now)

    def heard(self, engine: Engine, now: float) -> None:
        desk = self._desks.get(engine.name)
        if desk is None or desk.boot != engine.boot:
            if desk is not None:
                self._forget(desk, now)
            desk = self._desks[engine.name] = Desk(engine)
            if self._unserved.pop(engine.kind.model, None) is not None:
                self._rate.serving(engine.kind.model, True, now)
        told = engine.told
        output = 0
        for generation in told.ended:
            if generation in desk:
                output += self._release(desk, generation)
        self._lengths.told(engine.kind.model, output, sum(generation.ended for generation in told.ended))
        if told.cache:
            self._index.removed(engine.name, told.removed)
            self._index.stored(engine.name, told.stored)
        desk.hear(now)
        told.clear()
        self._show(desk)
        self._pump(engine.kind.model, now)

    def gone(self, engine: Engine, now: float) -> None:
        desk = self._desks.get(engine.name)
        if desk is not None and desk.boot == engine.boot:
            self._forget(desk, now)

    def look(self, now: float) -> None:
        for key in self._deadlines.due(now):
            if key in self._waiting:
                self._check(key, now)
        self._deadlines.compact(len(self._waiting), self._waiting.__contains__)
        if self._waiting:
            self._hands.look_at(now + _TICK)

    # --- decisions -------------------------------------------------------------------------------------------------

    def _queue(self, generation: Generation, request: Request, now: float) -> None:
        generation.request = request
        state = self._queues.state(request, self._rate.rate(request.model, now))
        known = request.model in self._models
        refusal = admit(request, known_model=known, queue=state, limits=self._settings.limits, now=now)
        if refusal is not None:
            self._refuse(generation, refusal)
            return
        self._queues.push(request)
        self._waiting[request.key] = generation
        if not self._queues.is_behind(request):
            self._pump(request.model, now)
        if request.key in self._waiting:
            self._check(request.key, now)
            self._hands.look_at(now + _TICK)

    def _check(self, key: bytes, now: float) -> None:
        """Whether it may wait on, and until when."""
        generation = self._waiting[key]
        request = generation.request
        unserved = self._unserved.get(request.model)
        outcome = overdue(request, unserved_since=unserved, limits=self._settings.limits, now=now)
        if isinstance(outcome, Refusal):
            self._queues.remove(key)
            if self._queues.first(request.model) is None:
                self._rate.emptied(request.model, now)
            del self._waiting[key]
            self._refuse(generation, outcome)
        else:
            self._deadlines.set(outcome, key)

    def _refuse(self, generation: Generation, refusal: Refusal) -> None:
        self._hands.refuse(generation, refusal.reason)

    def _pump(self, model: str, now: float) -> None:
        """Place as long as somebody waits and there is room."""

        def offer(request: Request, policy: Policy) -> str:
            decision = self._pick(request, self._view, self._hits(request), policy, now)
            if isinstance(decision, Rejection):
                return decision.reason
            self._send(request, decision, now)
            return ""

        def ask(request: Request) -> bool:
            return self._make_room(request, now)

        serve(self._queues, self._view, model, self._settings.policy, now, offer=offer, ask=ask)

    def _hits(self, request: Request) -> Mapping[str, int]:
        if not request.prefix:
            return {}
        best = self._candidates[request.model].first(_BEST)
        return self._index.match(request.prefix, (worker.name for worker in best))

    def _send(self, request: Request, decision: Placement, now: float) -> None:
        generation = self._waiting.pop(request.key)
        self._queues.take(request)
        waiting = self._queues.first(request.model) is not None
        self._rate.placed(request.model, now, waited=now - request.waits_since, waiting=waiting)
        desk = self._desks[decision.worker]
        generation.worker = decision.worker
        generation.placed_at = now
        self._hands.send(generation, desk.engine)
        desk.reserve(generation, decision.prefix_hits, now)
        if request.priority is not Priority.INTERACTIVE:
            self._pausable[request.model].setdefault(decision.worker, {})[generation.key] = generation
        self._show(desk)

    def _make_room(self, request: Request, now: float) -> bool:
        """Pause what is of a lower class, if that lets it in; whether ``place`` may now say something else."""
        if not self._settings.preemption or request.priority is not Priority.INTERACTIVE:
            return False
        running = {
            name: [self._desks[name].running(each) for each in lower.values() if not each.ended]
            for name, lower in self._pausable[request.model].items()
        }
        if not running:
            return False
        named = self._candidates[request.model].named
        workers = [named[name] for name in running]
        chosen = victims(request, workers, running, self._settings.policy, now)
        if chosen is None:
            return False
        desk = self._desks[chosen.worker]
        for view in chosen.running:
            generation = desk.generation(view.key)
            self._hands.pause(generation, desk.engine)
            self._release(desk, generation)
        desk.hear(now)
        self._show(desk)
        return True

    # --- what is known ---------------------------------------------------------------------------------------------

    def _release(self, desk: Desk, generation: Generation) -> int:
        """It holds nothing there any more; the output tokens of its attempt."""
        request = generation.request
        desk.drop(generation)
        pausable = self._pausable[request.model]
        lower = pausable.get(desk.engine.name)
        if lower is not None and lower.pop(generation.key, None) is not None and not lower:
            del pausable[desk.engine.name]
        output = generation.delivered - request.resumed_tokens
        self._queues.charge(
            request.model, request.tenant, request.project, request.priority, request.input_tokens, output
        )
        self._queues.ended(request.key)
        return output

    def _show(self, desk: Desk) -> None:
        """Its present view, where decisions see it."""
        self._candidates[desk.engine.kind.model].put(desk.view())

    def _forget(self, desk: Desk, now: float) -> None:
        name, model = desk.engine.name, desk.engine.kind.model
        del self._desks[name]
        self._index.forget(name)
        self._candidates[model].remove(name)
        self._pausable[model].pop(name, None)
        if not self._candidates[model]:
            self._unserved[model] = now
            self._rate.serving(model, False, now)


def _progressed(generation: Generation) -> bool:
    """Its last attempt made a token."""
    return generation.delivered > generation.request.resumed_tokens

"""Queues, placement, preemption and the fleet's account together, against a plain model of the world: whatever dies, is
drained, paused or cancelled, every request is in one place, no worker has more than it can hold, and all of them end.
"""

from dataclasses import replace
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inferbus.bus.v1.control_pb2 import EngineStatistics, Heartbeat, RunningRequests
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.preemption import Bounds, victims
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.fleet import Fleet

NAMES = ("w1", "w2", "w3")
MODEL = "m"
BLOCKS, BLOCK_TOKENS = 20, 10
POLICY = Policy()
BOUNDS = Bounds(least_tokens=1, least_seconds=0.0)


class Incarnation:
    """What really is with one start of a worker."""

    def __init__(self, name: str, boot: int, capacity: int) -> None:
        self.name = name
        self.boot = boot
        self.capacity = capacity
        # On WORK for it, in order; then what it generates: new tokens so far.
        self.on_work: list[tuple[int, Request]] = []
        self.runs: dict[bytes, tuple[Request, int]] = {}
        self.work_sequence = 0
        self.ended: list[bytes] = []

    @property
    def tokens(self) -> int:
        """Promised by all that it was given."""
        given = [each for _, each in self.on_work] + [each for each, _ in self.runs.values()]
        return sum(-(-each.tokens // BLOCK_TOKENS) * BLOCK_TOKENS for each in given)

    def beat(self) -> Heartbeat:
        ended, self.ended = b"".join(self.ended), []
        used = sum(-(-(each.input_tokens + made) // BLOCK_TOKENS) for each, made in self.runs.values())
        runs = list(self.runs.values())
        return Heartbeat(
            worker=self.name, boot=self.boot, active=len(runs), work_sequence=self.work_sequence, ended_ids=ended,
            engine=EngineStatistics(kv_blocks_total=BLOCKS, kv_blocks_used=used, kv_block_tokens=BLOCK_TOKENS),
            running=RunningRequests(
                request_ids=b"".join(each.request_id for each, _ in runs),
                attempts=[each.attempt for each, _ in runs],
                output_tokens=[each.resumed_tokens + made for each, made in runs],
            ),
        )  # fmt: skip


class CoreMachine(RuleBasedStateMachine):
    """Answers of publishes are at once; heartbeats come when they like. A request makes exactly what it was expected
    to."""

    @initialize(capacities=st.tuples(*[st.integers(1, 2)] * len(NAMES)))
    def start(self, capacities: tuple[int, ...]) -> None:
        self.now = 0.0
        self.numbers, self.boots, self.sequences = count(1), count(1), count(1)
        self.queues = Queues(Shares(background=2, batch=3))
        self.fleet = Fleet(heartbeat_timeout=1e9, reconnect_grace=0.0, now=0.0)
        self.fleet.on_ended = lambda running: self.queues.ended(running.key)
        self.fleet.on_gone = self.move
        self.waiting: dict[bytes, Request] = {}
        self.alive: dict[str, Incarnation] = {}
        # Given up by the fleet: its work is moved.
        self.known: dict[tuple[str, int], Incarnation] = {}
        self.asked: set[bytes] = set()
        self.over: dict[bytes, str] = {}
        self.made: dict[bytes, int] = {}
        for name, capacity in zip(NAMES, capacities, strict=True):
            self.boot(name, capacity)

    def boot(self, name: str, capacity: int) -> None:
        new = Incarnation(name, next(self.boots), capacity)
        self.alive[name] = self.known[name, new.boot] = new
        self.fleet.registered(name, self.record(new), self.now)
        self.fleet.heartbeat(new.beat(), self.now)

    def record(self, one: Incarnation, **fields: object) -> WorkerRecord:
        named = {"worker": one.name, "boot": one.boot, "model": MODEL, "capacity": one.capacity}
        return WorkerRecord(**{**named, "state": WorkerState.WORKER_STATE_ACTIVE, **fields})

    # --- what may happen ---------------------------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from(("t1", "t2")),
        priority=st.sampled_from((Priority.BATCH, Priority.BATCH, Priority.INTERACTIVE, Priority.BACKGROUND)),
        input_tokens=st.integers(0, 80),
        output_tokens=st.integers(1, 60),
    )
    def arrive(self, tenant: str, priority: Priority, input_tokens: int, output_tokens: int) -> None:
        request_id = next(self.numbers).to_bytes(16, "big")
        request = Request(
            request_id, MODEL, tenant, "p", priority, self.now, 1e9, input_tokens=input_tokens,
            output_tokens=output_tokens,
        )  # fmt: skip
        self.asked.add(request_id)
        self.queue(request)
        self.pump()

    @rule(name=st.sampled_from(NAMES))
    def take_over(self, name: str) -> None:
        one = self.alive[name]
        if one.on_work:
            one.work_sequence, request = one.on_work.pop(0)
            one.runs[request.request_id] = (request, 0)

    @rule(name=st.sampled_from(NAMES), tokens=st.integers(1, 30))
    def generate(self, name: str, tokens: int) -> None:
        one = self.alive[name]
        for request_id, (request, made) in list(one.runs.items()):
            one.runs[request_id] = (request, min(request.output_tokens, made + tokens))
            if made + tokens >= request.output_tokens:
                self.finish(one, request)

    @rule(name=st.sampled_from(NAMES))
    def heartbeat(self, name: str) -> None:
        self.fleet.heartbeat(self.alive[name].beat(), self.now)
        self.pump()

    @rule(tokens=st.integers(1, 10))
    def everybody_works(self, tokens: int) -> None:
        for name in NAMES:
            while self.alive[name].on_work:
                self.take_over(name)
            self.generate(name, tokens)
            self.fleet.heartbeat(self.alive[name].beat(), self.now)
        self.pump()

    @rule(name=st.sampled_from(NAMES), lease=st.booleans())
    def die(self, name: str, lease: bool) -> None:
        """Its next incarnation comes at once; the end of the lease may be seen before."""
        one = self.alive[name]
        if lease:
            self.fleet.lease_ended(name, self.now)
        self.boot(name, one.capacity)
        self.pump()

    @rule(name=st.sampled_from(NAMES))
    def lose_the_connection(self, name: str) -> None:
        """It lives, and all that it had is moved; it is heard again later."""
        self.fleet.connection_gone(name, self.alive[name].boot, self.now)
        self.now += 2.0
        self.pump()

    @rule(name=st.sampled_from(NAMES))
    def drain(self, name: str) -> None:
        one = self.alive[name]
        self.fleet.registered(name, self.record(one, state=WorkerState.WORKER_STATE_DRAINING), self.now)
        self.fleet.lease_ended(name, self.now)
        self.boot(name, one.capacity)
        self.pump()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_one_that_waits(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        request = self.queues.remove(key)
        del self.waiting[key]
        self.end(request.request_id, "cancelled")
        self.pump()

    # --- what the scheduler does -------------------------------------------------------------------------------

    def queue(self, request: Request) -> None:
        self.queues.push(request)
        self.waiting[request.key] = request

    def pump(self) -> None:
        while (request := self.queues.first(MODEL)) is not None:
            decision = place(request, self.fleet.view, {}, POLICY, self.now)
            if not isinstance(decision, Placement):
                self.make_room(request)
                return
            self.queues.take(request)
            del self.waiting[request.key]
            one = self.alive[decision.worker]
            sequence = next(self.sequences)
            self.fleet.reserve(one.name, request, self.now)
            one.on_work.append((sequence, request))
            self.fleet.settle(one.name, request.key, sequence, self.now)

    def make_room(self, request: Request) -> None:
        lower = self.fleet.lower_running(MODEL, request.priority)
        chosen = victims(request, self.fleet.alive(MODEL), lower, POLICY, self.now, BOUNDS)
        if chosen is None:
            return
        one = self.known[chosen.worker, chosen.boot]
        for running in chosen.running:
            assert running.priority is Priority.BATCH
            self.fleet.moved(one.name, running.key, self.now)
            paused = one.runs.pop(running.request_id, None)
            if paused is None:
                continue  # it had ended meanwhile
            one.ended.append(running.request_id)
            assert paused[1] > 0, "nothing is paused without having come further"
            self.again(*paused, one.name)

    def move(self, name: str, boot: int, reason: str) -> None:
        one = self.known[name, boot]
        given = [(request, 0) for _, request in one.on_work] + list(one.runs.values())
        one.on_work, one.runs = [], {}
        for request, made in given:
            self.again(request, made, name)

    def again(self, request: Request, made: int, worker: str) -> None:
        done = self.made.get(request.request_id, 0) + made
        self.made[request.request_id] = done
        next_one = replace(
            request, attempt=request.attempt + 1, input_tokens=request.input_tokens + made, avoid=worker,
            output_tokens=request.output_tokens - made, resumed_tokens=request.resumed_tokens + made,
        )  # fmt: skip
        assert next_one.resumed_tokens == done
        self.queue(next_one)

    def finish(self, one: Incarnation, request: Request) -> None:
        del one.runs[request.request_id]
        one.ended.append(request.request_id)
        self.end(request.request_id, "finished")

    def end(self, request_id: bytes, how: str) -> None:
        assert request_id not in self.over, "it ends once"
        self.over[request_id] = how

    # --- what always holds -------------------------------------------------------------------------------------

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        if not hasattr(self, "alive"):
            return
        places = [request.request_id for request in self.waiting.values()]
        for one in self.alive.values():
            places += [request.request_id for _, request in one.on_work] + list(one.runs)
        assert sorted([*places, *self.over]) == sorted(self.asked)
        assert len(self.queues) == len(self.waiting)

    @invariant()
    def no_worker_has_more_than_it_can_hold(self) -> None:
        for one in getattr(self, "alive", {}).values():
            assert len(one.on_work) + len(one.runs) <= one.capacity
            alone = len(one.on_work) + len(one.runs) == 1
            assert alone or one.tokens <= BLOCKS * BLOCK_TOKENS

    @invariant()
    def what_may_be_paused_is_known_without_looking_at_all(self) -> None:
        if not hasattr(self, "alive"):
            return
        for above in Priority:
            runs = {
                each.record.worker: tuple(each.running(below=above))
                for each in self.fleet.workers()
                if each.candidate is not None
            }
            lower = {name: running for name, running in runs.items() if running}
            assert self.fleet.lower_running(MODEL, above) == lower
            assert self.fleet.runs_below(MODEL, above) == bool(lower)

    def teardown(self) -> None:
        """Left alone, all of it ends."""
        if not hasattr(self, "alive"):
            return
        for _ in range(20 * len(self.asked) + 20):
            if len(self.over) == len(self.asked):
                break
            self.now += 2.0
            for name in NAMES:
                self.take_over(name)
                self.generate(name, 30)
                self.heartbeat(name)
        assert self.over.keys() == self.asked
        for name in NAMES:  # the last end may not have been told
            self.heartbeat(name)
        assert not self.queues._taken, "nothing is owed for what has ended"


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

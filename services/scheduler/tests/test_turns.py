"""One pass over what waits: what fits goes, nobody is stopped by what does not, nobody is overtaken for ever."""

from dataclasses import replace
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_scheduler.core.crowd import Crowd
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.score import Weights
from inferbus_scheduler.core.turns import PATIENCE_SECONDS, serve, terms
from inferbus_scheduler.core.view import Candidates, ClusterView, WorkerView

POLICY, SHARES = Policy(), Shares()
KV = {"kv_blocks": 100, "kv_block_tokens": 1}
numbers = count(1)


def request(tenant: str = "t", priority: Priority = Priority.INTERACTIVE, **fields: Any) -> Request:
    request_id = next(numbers).to_bytes(16, "big")
    return Request(request_id, "m", tenant, "p", priority, 0.0, 1e9, **{"input_tokens": 1, **fields})


class World:
    """Workers that take what is placed on them until it is said to have ended."""

    def __init__(self, *workers: WorkerView, shares: Shares = SHARES) -> None:
        self.queues = Queues(shares)
        self.candidates = Candidates(Weights())
        self.view = ClusterView(Weights(), {"m": self.candidates})
        for worker in workers:
            self.candidates.put(worker)
        self.placed: list[Request] = []
        self.on: dict[bytes, str] = {}
        self.asked: list[Request] = []
        self.offers = 0
        self.now = 0.0

    def pushed(self, *requests: Request) -> None:
        for each in requests:
            self.queues.push(each)

    def serve(self) -> list[Request]:
        """What was placed by this."""
        before = len(self.placed)
        serve(self.queues, self.view, "m", POLICY, self.now, offer=self._offer, ask=self._ask)
        return self.placed[before:]

    def end(self, request: Request) -> None:
        self._change(self.on.pop(request.key), request, -1)
        self.queues.ended(request.key)

    def fits(self, request: Request) -> bool:
        policy = terms(request, self.queues, self.view, POLICY, self.now)
        fresh = ClusterView.of(list(self.candidates), Weights())
        return policy is not None and isinstance(place(request, fresh, {}, policy, self.now), Placement)

    def _offer(self, request: Request, policy: Policy) -> str:
        self.offers += 1
        decision = place(request, self.view, {}, policy, self.now)
        if not isinstance(decision, Placement):
            return decision.reason
        self.queues.take(request)
        self.placed.append(request)
        self.on[request.key] = decision.worker
        self._change(decision.worker, request, 1)
        return ""

    def _ask(self, request: Request) -> bool:
        self.asked.append(request)
        return False

    def _change(self, name: str, request: Request, sign: int) -> None:
        worker = self.candidates.named[name]
        used = worker.kv_blocks_used + sign * request.tokens if worker.kv_blocks else 0
        suspects = worker.suspects + sign * request.suspect
        self.candidates.put(replace(worker, active=worker.active + sign, kv_blocks_used=used, suspects=suspects))


def worker(name: str = "w", **fields: Any) -> WorkerView:
    return replace(WorkerView(name, 1, "m", 4, 0, 0, False, 1e9), **fields)


workers = st.builds(
    worker,
    name=st.sampled_from(("w1", "w2", "w3")),
    capacity=st.integers(1, 4),
    active=st.integers(0, 3),
    prefill_tokens=st.sampled_from((0, 0, 8100)),
    suspects=st.integers(0, 1),
    kv_blocks=st.sampled_from((0, 100)),
    kv_blocks_used=st.integers(0, 90),
    kv_block_tokens=st.just(1),
)
asked = st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.sampled_from((1, 20, 80, 200)), st.booleans())
fleets = st.lists(workers, min_size=1, max_size=3, unique_by=lambda each: each.name)


def waiting_of(drawn: list[tuple[str, Priority, int, bool]]) -> list[Request]:
    return [
        request(tenant, priority, input_tokens=tokens, attempt=2 if suspect else 1, suspect=suspect)
        for tenant, priority, tokens, suspect in drawn
    ]


@settings(max_examples=150, deadline=None)
@given(fleets, st.lists(asked, max_size=7))
def test_what_fits_never_waits_behind_what_does_not(
    fleet: list[WorkerView], drawn: list[tuple[str, Priority, int, bool]]
) -> None:
    world = World(*fleet)
    waiting = waiting_of(drawn)
    world.pushed(*waiting)
    world.serve()
    left = [each for each in waiting if each.key in world.queues]
    of_tenant = {each: sum((one.tenant, one.priority) == each for one in left) for each in
                 {(one.tenant, one.priority) for one in left}}  # fmt: skip
    for each in left:
        # Behind as many as are looked at of one tenant, it may be unseen.
        assert of_tenant[each.tenant, each.priority] > 3 or not world.fits(each)


@settings(max_examples=50, deadline=None)
@given(fleets, st.lists(asked, max_size=7))
def test_equal_inputs_give_equal_outputs(fleet: list[WorkerView], drawn: list[tuple[str, Priority, int, bool]]) -> None:
    waiting = waiting_of(drawn)
    worlds = World(*fleet), World(*reversed(fleet))
    for world in worlds:
        world.pushed(*waiting)
        world.serve()
    assert worlds[0].placed == worlds[1].placed
    assert worlds[0].on == worlds[1].on


def test_a_large_one_is_passed_for_a_while_and_then_waited_for() -> None:
    world = World(worker(capacity=100, **KV))
    small = [request("a", input_tokens=10) for _ in range(400)]
    world.pushed(*small[:10])
    assert len(world.serve()) == 10, "the cache is full"
    large = request("b", input_tokens=60)
    world.pushed(large, *small[10:])
    passed = 0
    while large not in world.placed:
        world.now += 0.25
        world.end(next(each for each in world.placed if each.key in world.on))
        served = world.serve()
        assert served in ([], [large]) or world.now <= 0.25 + PATIENCE_SECONDS
        passed += len(served)
    assert passed > 10, "it was passed as long as it did not hurt too much"
    assert world.now <= PATIENCE_SECONDS + 0.25 * 8


def test_a_batch_request_that_was_overtaken_for_long_stops_no_interactive_one() -> None:
    world = World(worker(capacity=100, kv_blocks_used=50, active=1, **KV), shares=Shares(background=1, batch=1))
    large = request("b", Priority.BATCH, input_tokens=60)
    small = [request("a", Priority.BATCH, input_tokens=1) for _ in range(2)]
    world.pushed(large, small[0])
    assert world.serve() == [small[0]]
    world.now += PATIENCE_SECONDS
    asked = [request("a", input_tokens=1) for _ in range(3)]
    world.pushed(small[1], *asked)
    assert world.serve() == asked, "also after the turn of batch has come"


def test_a_suspect_that_must_wait_stops_neither_its_tenant_nor_others() -> None:
    world = World(worker(suspects=1))
    suspect = request("a", attempt=2, suspect=True)
    later = [request("a"), request("b")]
    world.pushed(suspect, *later)
    world.now = 10 * PATIENCE_SECONDS
    assert {each.tenant for each in world.serve()} == {"a", "b"}
    world.now += 10 * PATIENCE_SECONDS
    world.pushed(third := request("c"))
    assert world.serve() == [third]
    world.candidates.put(replace(world.candidates.named["w"], suspects=0))
    assert world.serve() == [suspect]


def test_interactive_requests_ask_for_room_though_an_overdue_batch_one_stands_before_them() -> None:
    world = World(worker(active=3), shares=Shares(batch=1))
    world.pushed(request(), batch := request(priority=Priority.BATCH))
    assert len(world.serve()) == 1
    asking = [request("a"), request("b")]
    world.pushed(*asking)
    assert next(world.queues.heads("m")) == batch, "its turn has come"
    assert world.serve() == []
    assert world.asked == asking


def test_where_all_is_full_one_look_is_enough_for_all_that_wait() -> None:
    world = World(*(worker(f"w{number}", active=4) for number in range(50)))
    world.pushed(*(request(f"t{number}") for number in range(8)))
    world.serve()
    assert world.offers == 1


def test_a_pass_asks_each_at_most_once_however_many_it_places_and_no_equal_of_who_did_not_fit() -> None:
    world = World(worker(capacity=100, active=1, kv_blocks_used=50, **KV))
    large = [request(f"l{number}", input_tokens=90) for number in range(3)]
    world.pushed(*large, *(request("s") for _ in range(40)))
    assert len(world.serve()) == 40
    assert world.offers == 41


def test_who_floods_leaves_the_last_slots_to_those_who_ask_now_and_then() -> None:
    world = World(worker("w1", capacity=32), worker("w2", capacity=32))
    world.pushed(early := request("calm"))
    world.serve()
    world.end(early)
    flood = [request("flood") for _ in range(100)]
    world.pushed(*flood)
    assert len(world.serve()) == 60
    assert terms(flood[-1], world.queues, world.view, POLICY, world.now) is None
    world.pushed(calm := request("calm"))
    assert world.serve() == [calm], "at once"
    world.now = 120.0
    assert len(world.serve()) == 3, "nobody else has asked for a minute"


def test_nothing_is_left_idle_where_all_wait_or_one_is_alone_or_slots_are_few() -> None:
    alone = World(worker(capacity=64))
    alone.pushed(*(request("flood") for _ in range(100)))
    assert len(alone.serve()) == 64
    both = World(worker(capacity=64))
    both.pushed(*(request(tenant) for _ in range(100) for tenant in "ab"))
    assert len(both.serve()) == 64
    few = World(worker(capacity=8))
    few.pushed(early := request("calm"))
    few.serve()
    few.end(early)
    few.pushed(*(request("flood") for _ in range(100)))
    assert len(few.serve()) == 8


def test_who_floods_leaves_kv_blocks_and_prompts_to_read_to_others() -> None:
    policy = replace(POLICY, sparing=True)
    full = worker(active=1, kv_blocks_used=80, kv_blocks=160, kv_block_tokens=1)
    behind = worker(active=1, prefill_tokens=1000)
    for view, tokens in ((full, 75), (behind, 500)):
        asked = request(input_tokens=tokens, output_tokens=1)
        seen = ClusterView.of([view], Weights())
        assert isinstance(place(asked, seen, {}, POLICY, 0.0), Placement)
        refused = place(asked, ClusterView.of([view], Weights()), {}, policy, 0.0)
        assert not isinstance(refused, Placement)
        assert refused.reason == "reserved"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("push", "take", "end", "later"))), max_size=60))
def test_the_sums_of_a_crowd_are_those_of_its_members(steps: list[tuple[str, str]]) -> None:
    crowd, now = Crowd(), 0.0
    weights = {"a": 1, "b": 2, "c": 5}
    for tenant, step in steps:
        if step == "push":
            crowd.asked(tenant, weights[tenant], now)
            crowd.waits(tenant)
        elif step == "take" and tenant in crowd._waiting:
            crowd.waits_no_more(tenant)
            crowd.took(tenant)
        elif step == "end" and tenant in crowd.running:
            crowd.ended(tenant)
        else:
            now += 20.0
        crowd.leaves_room(tenant, weights[tenant], now)
        assert crowd._all == sum(crowd.running.values())
        assert crowd._weight == sum(weights[each] for each in crowd._lately)
        assert crowd._calm == sum(weights[each] for each in crowd._lately if each not in crowd._waiting)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(workers, st.integers(0, 3)), min_size=1, max_size=25))
def test_several_that_wait_are_each_placed_as_soon_as_a_change_lets_them(changes: list[tuple[WorkerView, int]]) -> None:
    """Only workers that changed since its own last look are looked at again, and that never makes a difference."""
    asked = [request(input_tokens=tokens, suspect=tokens == 20) for tokens in (1, 20, 80, 200)]
    candidates = Candidates(Weights())
    view, present = ClusterView(Weights(), {"m": candidates}), {}
    for changed, which in changes:
        present[changed.name] = changed
        candidates.put(changed)
        decision = place(asked[which], view, {}, POLICY, 0.0)
        assert candidates.readers == sum(one.room > 0 and not one.prefill_tokens for one in present.values())
        anew = place(asked[which], ClusterView.of(present.values(), Weights()), {}, POLICY, 0.0)
        assert isinstance(decision, Placement) == isinstance(anew, Placement)
        if isinstance(decision, Placement):
            assert decision == anew


def test_what_is_large_and_of_a_lower_class_gets_its_turn_beside_a_steady_stream_of_what_is_small() -> None:
    """One a second that stays for 20: without the bound there never is room for more than 40 tokens."""
    world = World(worker(capacity=100, **KV))
    small: list[tuple[float, Request]] = []
    large = request("b", Priority.BATCH, input_tokens=80)
    for second in range(500):
        world.now = float(second)
        while small and small[0][0] <= world.now - 20:
            world.end(small.pop(0)[1])
        world.pushed(request("i", input_tokens=3), *([large] if second == 30 else []))
        small += [(world.now, each) for each in world.serve() if each is not large]
    assert large in world.placed
    assert world.placed[-1].tenant == "i", "and what it held up goes on behind it"


def test_batch_work_that_must_leave_room_does_not_hold_back_what_its_tenant_asks_at_once() -> None:
    world = World(worker(capacity=64, active=1, prefill_tokens=200))
    flood = [request("t", input_tokens=0) for _ in range(20)]
    world.pushed(*flood)
    assert world.serve() == flood
    world.pushed(request("calm", input_tokens=1))
    world.serve()
    batch = request("t", Priority.BATCH, input_tokens=2000, output_tokens=1)
    world.pushed(batch)
    for _ in range(SHARES.batch + 1):
        world.pushed(each := request("t", input_tokens=1, output_tokens=1))
        assert world.serve() == [each]
    assert batch not in world.placed


def test_a_batch_leaves_the_last_slots_to_whoever_waits_for_an_answer_also_of_its_own_tenant() -> None:
    world = World(worker("w1", capacity=32), worker("w2", capacity=32))
    world.pushed(early := request("acme"))
    world.serve()
    world.end(early)
    world.pushed(*(request("acme", Priority.BATCH) for _ in range(100)))
    assert len(world.serve()) == 60
    calls = [request("acme") for _ in range(4)]
    world.pushed(*calls)
    assert world.serve() == calls, "at once"
    world.end(calls[0])
    assert world.serve() == [], "what is left again is left to the next one"
    world.now = 120.0
    assert len(world.serve()) == 1, "nobody has asked for a minute: all of it is the batch's"


def test_many_that_come_at_once_ask_for_room_at_once() -> None:
    world = World(worker("w1", capacity=1, active=1))
    world.pushed(*(request("acme") for _ in range(40)))
    assert world.serve() == []
    assert len(world.asked) == 16
    world.pushed(*(request(f"other-{number}") for number in range(40)))
    world.asked.clear()
    world.serve()
    assert len({each.key for each in world.asked}) == 24

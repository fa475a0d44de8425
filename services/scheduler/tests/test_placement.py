import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from inferbus_scheduler.core.placement import FULL, NO_WORKER, Placement, Policy, Rejection, judge, place
from inferbus_scheduler.core.policies import NAMES, picker
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.score import Weights, alone
from inferbus_scheduler.core.view import Candidates, ClusterView, WorkerView

MODELS = ("a", "b", "a:x")
NOW = 1000.0
OURS = Policy()
REASONS = (
    "wrong_model", "draining", "lease_expired", "no_adapter", "full", "prefill_backlog", "no_kv_room", "over_target",
    "suspect",
)  # fmt: skip

workers = st.builds(
    WorkerView,
    name=st.text("wxyz0123456789", min_size=1, max_size=4),
    boot=st.integers(1, 5),
    model=st.sampled_from(("a", "b")),
    capacity=st.integers(0, 6),
    active=st.integers(0, 6),
    on_the_way=st.integers(0, 2),
    draining=st.booleans(),
    alive_until=st.sampled_from((NOW - 10, NOW, NOW + 10)),
    zone=st.sampled_from(("", "z1", "z2")),
    cost_per_hour=st.sampled_from((0.0, 1.0, 4.0)),
    adapters=st.sampled_from((frozenset(), frozenset(("a:x",)))),
    kv_blocks=st.sampled_from((0, 10, 50)),
    kv_blocks_used=st.integers(0, 10),
    kv_block_tokens=st.just(16),
    kv_tokens_promised=st.integers(0, 200),
    prefill_tokens=st.sampled_from((0, 0, 100, 9000)),
    step_seconds=st.sampled_from((0.0, 0.02, 0.2)),
    suspects=st.integers(0, 1),
)
fleets = st.lists(workers, max_size=30, unique_by=lambda worker: worker.name)
requests = st.builds(
    Request,
    request_id=st.just(b"1" * 16),
    model=st.sampled_from(MODELS),
    tenant=st.just("t"),
    project=st.just("p"),
    priority=st.sampled_from(Priority),
    arrived_at=st.just(NOW),
    expires_at=st.just(NOW + 60),
    input_tokens=st.integers(0, 400),
    output_tokens=st.integers(0, 400),
    suspect=st.booleans(),
    avoid=st.sampled_from(("", "w", "x")),
)
weights = st.builds(Weights, *[st.sampled_from((0.0, 0.5, 1.0))] * 5)
policies = st.builds(
    Policy,
    weights=weights,
    itl_target=st.sampled_from((None, 0.05)),
    max_prefill_tokens=st.sampled_from((0, 300, 8192)),
)


@st.composite
def fleets_with_hits(draw: st.DrawFn) -> tuple[list[WorkerView], dict[str, int]]:
    """``hits`` may name workers that are not there (any more)."""
    fleet = draw(fleets)
    names = st.sampled_from([*(worker.name for worker in fleet), "gone"])
    return fleet, draw(st.dictionaries(names, st.integers(1, 20), max_size=5))


def request(model: str = "a", **fields: object) -> Request:
    return Request(b"1" * 16, model, "t", "p", Priority.INTERACTIVE, NOW, NOW + 60, **fields)  # type: ignore[arg-type]


def worker(name: str = "w", **fields: object) -> WorkerView:
    return replace(WorkerView(name, 1, "a", 4, 0, 0, False, NOW + 1), **fields)  # type: ignore[arg-type]


def view_of(fleet: list[WorkerView], policy: Policy = OURS) -> ClusterView:
    return ClusterView.of(fleet, policy.weights)


def chosen(request: Request, fleet: list[WorkerView], hits: dict[str, int] | None = None, **policy: object) -> str:
    decision = place(request, view_of(fleet), hits or {}, Policy(**policy), NOW)  # type: ignore[arg-type]
    return decision.worker if isinstance(decision, Placement) else f"-{decision.reason}"


@given(requests, fleets_with_hits(), policies)
def test_the_chosen_worker_is_eligible_and_what_it_has_is_enough(
    request: Request, fleet: tuple[list[WorkerView], dict[str, int]], policy: Policy
) -> None:
    workers, hits = fleet
    decision = place(request, view_of(workers, policy), hits, policy, NOW)
    if isinstance(decision, Placement):
        best = next(worker for worker in workers if worker.name == decision.worker)
        assert best.model == base_of(request.model)
        assert best.model == request.model or request.model in best.adapters
        assert not best.draining
        assert best.alive_until >= NOW
        assert best.active + best.on_the_way + 1 <= best.capacity
        if best.kv_blocks and (best.active or best.on_the_way):
            assert best.kv_tokens_for(request.tokens) <= best.kv_tokens_free
        if best.prefill_tokens and policy.max_prefill_tokens:
            assert best.prefill_tokens + request.input_tokens <= policy.max_prefill_tokens
        assert not (request.suspect and best.suspects)
        assert not (policy.itl_target and best.active and best.step_seconds > policy.itl_target)
        assert 0 <= decision.score <= 1 + 1e-9
        assert decision.prefix_hits == hits.get(best.name, 0)


@given(requests, fleets_with_hits(), policies)
def test_the_quick_way_agrees_with_judging_everyone(
    request: Request, fleet: tuple[list[WorkerView], dict[str, int]], policy: Policy
) -> None:
    workers, hits = fleet
    decision = place(request, view_of(workers, policy), hits, policy, NOW)
    verdicts = judge(request, workers, hits, policy, NOW)
    best = verdicts[0] if verdicts and verdicts[0].eligible else None
    assert (best is not None) == isinstance(decision, Placement)
    if best is not None and isinstance(decision, Placement):
        assert (best.worker, best.score, best.parts) == (decision.worker, decision.score, decision.parts)


@given(requests, fleets_with_hits(), policies)
def test_there_is_always_an_answer_and_a_rejection_has_a_true_reason(
    request: Request, fleet: tuple[list[WorkerView], dict[str, int]], policy: Policy
) -> None:
    workers, hits = fleet
    decision = place(request, view_of(workers, policy), hits, policy, NOW)
    reasons = {verdict.reason for verdict in judge(request, workers, hits, policy, NOW)}
    if isinstance(decision, Rejection):
        assert "" not in reasons
        assert decision.reason == NO_WORKER or decision.reason in reasons
        later = {"no_adapter", "full", "prefill_backlog", "no_kv_room", "over_target", "suspect"}
        assert (decision.reason == NO_WORKER) == (not reasons & later)


@given(requests, fleets_with_hits(), policies, st.randoms(use_true_random=False))
def test_the_order_of_workers_does_not_matter_and_equal_inputs_give_equal_outputs(
    request: Request, fleet: tuple[list[WorkerView], dict[str, int]], policy: Policy, random: random.Random
) -> None:
    workers, hits = fleet
    shuffled = workers[:]
    random.shuffle(shuffled)
    view = view_of(workers, policy)
    first = place(request, view, hits, policy, NOW)
    assert first == place(request, view, hits, policy, NOW)
    assert first == place(request, view_of(shuffled, policy), hits, policy, NOW)
    assert judge(request, workers, hits, policy, NOW) == judge(request, shuffled, hits, policy, NOW)


@given(requests, fleets_with_hits(), policies)
def test_a_view_in_the_order_of_other_weights_gives_the_same_answer(
    request: Request, fleet: tuple[list[WorkerView], dict[str, int]], policy: Policy
) -> None:
    workers, hits = fleet
    other = ClusterView.of(workers, Weights())
    assert place(request, other, hits, policy, NOW) == place(request, view_of(workers, policy), hits, policy, NOW)


@given(requests, fleets, policies)
def test_a_verdict_says_why_not_or_scores_in_bounds(request: Request, fleet: list[WorkerView], policy: Policy) -> None:
    verdicts = judge(request, fleet, {}, policy, NOW)
    assert {verdict.worker for verdict in verdicts} == {worker.name for worker in fleet}
    for verdict in verdicts:
        assert 0 <= verdict.score <= 1 + 1e-9
        assert verdict.eligible == (verdict.reason == "")
        assert verdict.reason in ("", *REASONS)
        assert verdict.eligible or (verdict.score, dict(verdict.parts)) == (0, {})
        if verdict.eligible:
            assert verdict.parts.keys() == {"load", "kv", "prefill", "prefix", "cost"}
            assert all(0 <= part <= 1 for part in verdict.parts.values())
            parts = sum(getattr(policy.weights, name) * part for name, part in verdict.parts.items())
            assert abs(parts / policy.weights.total - verdict.score) < 1e-9


@given(requests, st.lists(st.tuples(workers, workers), min_size=1, max_size=15), policies)
def test_a_request_that_waits_is_placed_as_soon_as_a_change_lets_it(
    request: Request, changes: list[tuple[WorkerView, WorkerView]], policy: Policy
) -> None:
    """Only workers that changed are looked at again, and that never makes a difference."""
    candidates = Candidates(policy.weights)
    view = ClusterView(policy.weights, {base_of(request.model): candidates})
    present: dict[str, WorkerView] = {}
    for pair in changes:
        for changed in pair:
            one = replace(changed, model=base_of(request.model), draining=False)
            present[one.name] = one
            candidates.put(one)
            fresh = ClusterView.of(present.values(), policy.weights)
            decision = place(request, view, {}, policy, NOW)
            anew = place(request, fresh, {}, policy, NOW)
            assert isinstance(decision, Placement) == isinstance(anew, Placement)
            if isinstance(decision, Placement):
                assert decision == anew


@given(st.lists(st.tuples(workers, workers), max_size=20), weights)
def test_a_view_changed_in_place_equals_one_made_anew(
    changes: list[tuple[WorkerView, WorkerView]], weights: Weights
) -> None:
    present: dict[str, WorkerView] = {}
    live = Candidates(weights)
    for before, after in changes:
        for view in (before, replace(after, name=before.name)):
            present[view.name] = view
            live.put(view)
        if after.draining:
            live.remove(before.name)
            del present[before.name]

    def place_in_order(worker: WorkerView) -> tuple[bool, float, str]:
        return (not worker.room, -alone(worker, weights) if worker.room else 0.0, worker.name)

    assert list(live) == sorted(present.values(), key=place_in_order)
    assert len(live) == len(present)
    assert live[:3] == list(live)[:3]
    for zone, shown in live.zones.items():
        assert shown.taken == sum(w.active + w.on_the_way for w in present.values() if w.zone == zone)
        assert shown.capacity == sum(w.capacity for w in present.values() if w.zone == zone)


@given(workers, st.integers(0, 30), st.integers(1, 30), requests, st.integers(2, 6))
def test_of_equal_workers_the_longer_prefix_wins(
    like: WorkerView, chunks: int, more: int, request: Request, others: int
) -> None:
    policy = Policy()
    fleet = [replace(like, name=f"w{n}", model=base_of(request.model), draining=False) for n in range(others)]
    hits = {"w0": chunks, f"w{others - 1}": chunks + more}
    decision = place(replace(request, avoid=""), view_of(fleet), hits, policy, NOW)
    if isinstance(decision, Placement):
        assert decision.worker == f"w{others - 1}"


def test_least_loaded_by_fraction_and_ties_by_name() -> None:
    big, small = worker("big", capacity=100, active=20), worker("small", capacity=4, active=1)
    assert chosen(request(), [small, big]) == "big"
    assert chosen(request(), [worker("w2"), worker("w1")]) == "w1"


def test_of_equals_another_worker_than_the_last_one_and_the_emptier_zone() -> None:
    fleet = [worker("w1", zone="a"), worker("w2", zone="a"), worker("w3", zone="b")]
    assert chosen(request(avoid="w1"), fleet[:2]) == "w2"
    assert chosen(request(avoid="w1"), fleet[:1]) == "w1", "it is not forbidden"
    assert chosen(request(), [*fleet, worker("w0", zone="a", active=4)]) == "w3", "a full one makes its zone loaded"


def test_the_size_of_a_request_counts_not_only_slots() -> None:
    room = {"kv_blocks": 100, "kv_block_tokens": 16}
    nearly_full = worker("w1", active=1, kv_blocks_used=90, **room)
    empty = worker("w2", active=3, kv_blocks_used=20, **room)
    large, small = request(input_tokens=160, output_tokens=1), request(input_tokens=100, output_tokens=60)
    assert chosen(large, [nearly_full]) == "-no_kv_room"
    assert chosen(small, [nearly_full]) == "w1"
    assert chosen(large, [nearly_full, empty]) == "w2"
    promised = replace(nearly_full, kv_tokens_promised=1)
    assert chosen(small, [promised]) == "-no_kv_room", "what is on its way counts"
    giant = request(input_tokens=10_000, output_tokens=10_000)
    assert chosen(giant, [worker("w1", **room)]) == "w1", "what fits nowhere is for an empty worker's engine to judge"
    assert chosen(giant, [empty]) == "-no_kv_room"


def test_a_worker_that_has_much_to_read_gets_nothing_more_to_read() -> None:
    behind = worker("w1", prefill_tokens=8000)
    assert chosen(request(input_tokens=100), [behind]) == "w1"
    assert chosen(request(input_tokens=1000), [behind]) == "-prefill_backlog"
    assert chosen(request(input_tokens=100_000), [worker("w1")]) == "w1", "what is longer than the bound is read alone"
    assert chosen(request(input_tokens=1000), [behind], max_prefill_tokens=0) == "w1"


def test_over_its_itl_target_a_worker_gets_nothing_more() -> None:
    slow = worker("slow", active=1, step_seconds=0.08)
    assert chosen(request(), [slow], itl_target=0.05) == "-over_target"
    assert chosen(request(), [slow], itl_target=0.1) == "slow"
    assert chosen(request(), [replace(slow, active=0)], itl_target=0.05) == "slow", "nobody is there to be slowed"


def test_the_cheaper_worker_wins_among_those_that_meet_the_target() -> None:
    cheap, dear = worker("x", cost_per_hour=1.0), worker("a", cost_per_hour=4.0)
    assert chosen(request(), [cheap, dear]) == "x"
    overloaded = replace(cheap, active=1, step_seconds=0.2)
    assert chosen(request(), [overloaded, dear], itl_target=0.1) == "a"


def test_a_suspect_is_never_beside_another_one() -> None:
    assert chosen(request(suspect=True), [worker(suspects=1)]) == "-suspect"
    assert chosen(request(), [worker(suspects=1)]) == "w"
    assert chosen(request(suspect=True), [worker(suspects=1), worker("z", active=3)]) == "z"


def test_each_obstacle_has_its_reason() -> None:
    room = {"kv_blocks": 1, "kv_block_tokens": 16, "active": 1}
    fleet = [
        worker("ok", adapters=frozenset(("a:x",))),
        worker("other", model="b"),
        worker("leaving", draining=True),
        worker("silent", alive_until=NOW - 1),
        worker("bare"),
    ]
    loaded = [
        worker("busy", active=2, on_the_way=2),
        worker("reading", prefill_tokens=9000),
        worker("stuffed", kv_blocks_used=1, **room),
        worker("slow", active=1, step_seconds=1.0),
        worker("doubted", suspects=1),
    ]
    fleet += [replace(one, adapters=frozenset(("a:x",))) for one in loaded]
    asked = request("a:x", input_tokens=10, suspect=True)
    verdicts = judge(asked, fleet, {}, Policy(itl_target=0.5), NOW)
    assert {verdict.worker: verdict.reason for verdict in verdicts} == {
        "ok": "", "other": "wrong_model", "leaving": "draining", "silent": "lease_expired", "bare": "no_adapter",
        "busy": "full", "reading": "prefill_backlog", "stuffed": "no_kv_room", "slow": "over_target",
        "doubted": "suspect",
    }  # fmt: skip


def test_who_is_full_is_told_from_nobody() -> None:
    assert chosen(request(), []) == f"-{NO_WORKER}"
    assert chosen(request(), [worker(active=4)]) == f"-{FULL}"
    assert chosen(request(), [worker(active=4, alive_until=NOW - 1)]) == f"-{NO_WORKER}"


@given(st.sampled_from(NAMES), requests, fleets, policies, st.floats(0, 1, exclude_max=True))
def test_other_policies_pick_among_the_eligible_too(
    name: str, request: Request, fleet: list[WorkerView], policy: Policy, draw: float
) -> None:
    pick = picker(name, lambda: draw)
    decision = pick(request, view_of(fleet, policy), {}, policy, NOW)
    eligible = {verdict.worker for verdict in judge(request, fleet, {}, policy, NOW) if verdict.eligible}
    assert isinstance(decision, Placement) == bool(eligible)
    assert isinstance(decision, Rejection) or decision.worker in eligible


def test_round_robin_goes_round_and_least_requests_counts_requests() -> None:
    fleet = [worker("w1"), worker("w2", active=3, capacity=100), worker("w3", active=1)]
    view = view_of(fleet)
    pick = picker("round_robin", lambda: 0.0)
    names = [pick(request(), view, {}, Policy(), NOW) for _ in range(4)]
    assert [each.worker for each in names if isinstance(each, Placement)] == ["w1", "w2", "w3", "w1"]
    fewest = picker("least_requests", lambda: 0.0)(request(), view_of(fleet[1:]), {}, Policy(), NOW)
    assert isinstance(fewest, Placement)
    assert fewest.worker == "w3", "though it is the fuller one"

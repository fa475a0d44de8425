import random
import time
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from inferbus_scheduler.core.placement import FULL, NO_WORKER, Placement, Rejection, judge, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.view import ClusterView, WorkerView, add, by_load, drop

MODELS = ("a", "b", "c")
NOW = 1000.0

workers = st.builds(
    WorkerView,
    name=st.text("wxyz0123456789", min_size=1, max_size=4),
    boot=st.integers(1, 5),
    model=st.sampled_from(MODELS),
    capacity=st.integers(0, 16),
    active=st.integers(0, 16),
    on_the_way=st.integers(0, 16),
    draining=st.booleans(),
    alive_until=st.sampled_from((NOW - 10, NOW, NOW + 10)),
)
fleets = st.lists(workers, max_size=30, unique_by=lambda worker: worker.name)


def request(model: str = "a") -> Request:
    return Request(b"1" * 16, model, "tenant", Priority.INTERACTIVE, NOW, NOW + 60)


def worker(name: str = "w", **fields: object) -> WorkerView:
    return replace(WorkerView(name, 1, "a", 4, 0, 0, False, NOW + 1), **fields)  # type: ignore[arg-type]


@given(fleets, st.sampled_from(MODELS))
def test_the_chosen_worker_is_eligible_and_its_capacity_is_kept(fleet: list[WorkerView], model: str) -> None:
    decision = place(request(model), ClusterView.of(fleet), NOW)
    if isinstance(decision, Placement):
        chosen = next(worker for worker in fleet if worker.name == decision.worker)
        assert chosen.model == model
        assert not chosen.draining
        assert chosen.alive_until >= NOW
        assert chosen.active + chosen.on_the_way + 1 <= chosen.capacity
        assert 0 < decision.score <= 1


@given(fleets, st.sampled_from(MODELS))
def test_there_is_always_an_answer_and_a_rejection_has_the_true_reason(fleet: list[WorkerView], model: str) -> None:
    decision = place(request(model), ClusterView.of(fleet), NOW)
    alive = [w for w in fleet if w.model == model and not w.draining and w.alive_until >= NOW]
    if isinstance(decision, Rejection):
        assert not any(worker.room for worker in alive)
        assert decision.reason == (FULL if alive else NO_WORKER)
    else:
        assert any(worker.room for worker in alive)


@given(fleets, st.sampled_from(MODELS), st.randoms(use_true_random=False))
def test_the_order_of_workers_does_not_matter(fleet: list[WorkerView], model: str, random: random.Random) -> None:
    shuffled = fleet[:]
    random.shuffle(shuffled)
    assert place(request(model), ClusterView.of(fleet), NOW) == place(request(model), ClusterView.of(shuffled), NOW)
    assert judge(fleet, model, NOW) == judge(shuffled, model, NOW)


@given(fleets, st.sampled_from(MODELS))
def test_the_quick_way_agrees_with_judging_everyone(fleet: list[WorkerView], model: str) -> None:
    decision = place(request(model), ClusterView.of(fleet), NOW)
    verdicts = judge(fleet, model, NOW)
    best = verdicts[0] if verdicts and verdicts[0].eligible else None
    assert (best is not None) == isinstance(decision, Placement)
    if best is not None and isinstance(decision, Placement):
        assert (best.worker, best.score) == (decision.worker, decision.score)


@given(fleets, st.sampled_from(MODELS))
def test_a_verdict_says_why_not_or_scores_in_bounds(fleet: list[WorkerView], model: str) -> None:
    verdicts = judge(fleet, model, NOW)
    assert {verdict.worker for verdict in verdicts} == {worker.name for worker in fleet}
    for verdict in verdicts:
        assert 0 <= verdict.score <= 1
        assert verdict.eligible == (verdict.reason == "")
        assert verdict.reason in ("", "wrong_model", "draining", "lease_expired", "full")
        assert verdict.eligible or verdict.score == 0


@given(st.lists(st.tuples(workers, workers), max_size=20))
def test_a_view_changed_in_place_equals_one_made_anew(changes: list[tuple[WorkerView, WorkerView]]) -> None:
    present: dict[str, WorkerView] = {}
    live: list[WorkerView] = []
    for before, after in changes:
        for view in (before, replace(after, name=before.name)):
            if view.name in present:
                drop(live, present[view.name])
            present[view.name] = view
            add(live, view)
    assert live == sorted(present.values(), key=by_load)


def test_least_loaded_by_fraction_and_ties_by_name() -> None:
    big, small = worker("big", capacity=100, active=20), worker("small", capacity=4, active=1)
    assert place(request(), ClusterView.of([small, big]), NOW) == Placement("big", 0.8)
    assert place(request(), ClusterView.of([worker("w2"), worker("w1")]), NOW) == Placement("w1", 1.0)


def test_each_obstacle_has_its_reason() -> None:
    reasons = {
        verdict.worker: verdict.reason
        for verdict in judge(
            [
                worker("ok"),
                worker("other", model="b"),
                worker("leaving", draining=True),
                worker("silent", alive_until=NOW - 1),
                worker("busy", active=2, on_the_way=2),
            ],
            "a",
            NOW,
        )
    }
    assert reasons == {
        "ok": "", "other": "wrong_model", "leaving": "draining", "silent": "lease_expired", "busy": "full",
    }  # fmt: skip


def test_a_thousand_workers_take_microseconds() -> None:
    fleet = [worker(f"w{n:04d}", capacity=64, active=n % 64) for n in range(1000)]
    candidates = list(ClusterView.of(fleet).candidates["a"])
    view = ClusterView({"a": candidates})
    rounds = 500
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        decision = place(request(), view, NOW)
        assert isinstance(decision, Placement)
        chosen = candidates[0]
        drop(candidates, chosen)
        add(candidates, replace(chosen, on_the_way=chosen.on_the_way + 1))
        took.append(time.perf_counter() - start)
    # The median, so that a neighbour's load on this machine does not fail it.
    assert sorted(took)[rounds // 2] < 100e-6

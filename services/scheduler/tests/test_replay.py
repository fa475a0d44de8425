"""Decisions as the scheduler records them, judged again: what is not recorded is worked out, or is left as it was."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.decision_pb2 import PlacementDecisions
from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.score import Weights
from inferbus_scheduler.core.simulate.replay import placements, replay, slot_costs
from inferbus_scheduler.core.simulate.report import replayed
from inferbus_scheduler.core.view import ClusterView, WorkerView
from inferbus_scheduler.decision_log import columns, seen_by

REQUEST = Request(b"r" * 16, "m", "t", "p", Priority.INTERACTIVE, 0.0, 1e9, input_tokens=500, output_tokens=100)


def worker(name: str, active: int = 0, **given) -> WorkerView:
    usual = {"boot": 1, "model": "m", "capacity": 16, "on_the_way": 0, "draining": False, "alive_until": 1e9}
    return WorkerView(name=name, active=active, **usual | given)


def recorded(*moments: list[WorkerView], hits: dict[str, int] | None = None) -> PlacementDecisions:
    """What the scheduler would have placed at each of them, as it would have told it."""
    decisions = []
    for workers in moments:
        view, held = ClusterView.of(workers, Weights()), hits or {}
        chosen = place(REQUEST, view, held, Policy(), 0.0)
        if isinstance(chosen, Placement):
            seen = seen_by(REQUEST, view, chosen.worker)
            decisions.append(
                Decision(Outcome.PLACED, REQUEST, chosen.worker, chosen.reason, 1, 0.0, seen, tuple(held.items()))
            )
    message = columns(decisions)
    message.model = "m"
    return message


@st.composite
def fleets(draw: st.DrawFn) -> list[list[WorkerView]]:
    """Workers of all costs and sizes, some that do not tell their KV cache, at several moments."""
    kinds = [
        worker(
            f"w{number}",
            capacity=draw(st.integers(1, 64)),
            cost_per_hour=draw(st.sampled_from((0.0, 0.3, 1.0, 4.0, 30.0))),
            kv_blocks=draw(st.sampled_from((0, 4000))),
            kv_block_tokens=16,
            zone=draw(st.sampled_from(("a", "b"))),
        )
        for number in range(draw(st.integers(1, 6)))
    ]

    def at_a_moment(kind: WorkerView) -> WorkerView:
        active = draw(st.integers(0, kind.capacity))
        used = draw(st.integers(1, 4000)) if active and kind.kv_blocks else 0
        return replace(kind, active=active, kv_blocks_used=used, prefill_tokens=draw(st.integers(0, 9000)))

    return [[at_a_moment(kind) for kind in kinds] for _ in range(draw(st.integers(1, 5)))]


@settings(max_examples=100, deadline=None)
@given(
    moments=fleets(), hits=st.dictionaries(st.sampled_from([f"w{number}" for number in range(6)]), st.integers(1, 60))
)
def test_same_weights_choose_as_was_recorded(moments, hits):
    result = replay([recorded(*moments, hits=hits)], Policy())
    assert result.same == result.choices
    assert result.other == result.recorded


@settings(max_examples=100, deadline=None)
@given(moments=fleets())
def test_cost_of_a_slot_is_found_in_the_scores(moments):
    found = list(placements(recorded(*moments)))
    costs = slot_costs(found, Weights())
    assert (costs is not None) == bool(found)
    costs = costs or {}
    for one in moments[0]:
        if one.name in costs:
            # Of a worker whose cost is not known the scheduler reckons with that of the scale.
            told = one.cost_per_hour / one.capacity or Weights().cost_scale
            scale = Weights().cost_scale
            assert scale / (scale + costs[one.name]) == pytest.approx(scale / (scale + told), abs=0.005)


def test_weight_of_the_cost_moves_the_choice_to_the_cheap_one():
    message = recorded([worker("cheap", 4, cost_per_hour=0.5), worker("dear", 0, cost_per_hour=8.0)])
    assert message.names[message.workers[0]] == "dear"
    result = replay([message], Policy(weights=Weights(cost=5.0)))
    assert (result.same, result.costs) == (0, True)
    assert result.other.slot_cost == pytest.approx(0.5 / 16, rel=0.02)
    assert result.recorded.slot_cost == pytest.approx(8.0 / 16, rel=0.02)
    assert "cost of a slot" in replayed(result, "inferbus")


def test_fleet_whose_costs_are_not_known_is_told_no_cost():
    message = recorded([worker("a", 3, kv_blocks=4000, kv_blocks_used=7, kv_block_tokens=16), worker("b", 8)])
    result = replay([message], Policy())
    assert (result.costs, result.costs_differ) == (True, False)
    assert "cost" not in replayed(result, "inferbus")


def test_kv_cache_that_is_hardly_used_is_known_all_the_same():
    used = worker("a", 8, kv_blocks=4000, kv_blocks_used=1, kv_block_tokens=16)
    ((one,),) = [placements(recorded([used]))]
    assert one.workers[0].kv_blocks
    assert one.workers[0].kv_load == pytest.approx(0.001)


def test_worker_that_could_not_be_chosen_is_chosen_by_no_weights():
    message = recorded([worker("full", 16), worker("free", 8)], hits={"full": 100})
    result = replay([message], Policy(weights=Weights(prefix=50.0)))
    assert (result.decisions, result.choices) == (1, 0)


def test_worker_that_does_not_tell_its_kv_cache_counts_by_its_slots_and_a_full_one_may_be_chosen_as_it_was():
    silent, full = worker("silent", 8), worker("full", 4, kv_blocks=100, kv_blocks_used=100, kv_block_tokens=16)
    ((one,),) = [placements(recorded([silent]))]
    assert not one.workers[0].kv_blocks
    # As it was recorded it had room, whatever its thousandths say.
    message = recorded([silent, replace(full, kv_blocks=100_000, kv_blocks_used=99_951)])
    assert replay([message], Policy(weights=Weights(kv=0.0))).other.load == pytest.approx(4 / 16)


def test_scores_of_other_weights_do_not_say_what_workers_cost():
    message = recorded([worker("a", 0), worker("b", 8)])
    assert not replay([message], Policy(), recorded_with=Weights(load=9.0)).costs

"""How many workers a deployment should have, as values: no clock, no bus."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus_scheduler.core.deployments import Deployment, deployment_of, fault_of
from inferbus_scheduler.core.scaling import Desired, ScalingSettings, State, Want, cut, desired, share
from inferbus_scheduler.core.signals import LEAST_SAMPLES, WINDOW_SECONDS, Percentiles, Signals, Watched

SETTINGS = ScalingSettings(down_window=60.0)
SCALED = Deployment("m", ttft_target=1.0, itl_target=0.05, queue_target=1.0, max_replicas=10, idle_time=300.0)


def seen(workers: int = 1, *, of_one: int = 8, running: int = 0, queued: int = 0, **known: float | None) -> Signals:
    return Signals(workers=workers, leaving=0, slots=workers * of_one, running=running, queued=queued, **known)  # type: ignore[arg-type]


def decide(signals: Signals, state: State, now: float = 1000.0, deployment: Deployment = SCALED) -> Desired:
    return desired(deployment, signals, state, now, SETTINGS)


# --- more ------------------------------------------------------------------------------------------------------------


def test_a_queue_raises_at_once_to_what_holds_all_of_it() -> None:
    made = decide(seen(2, running=16, queued=20), State(2, workers=2))
    assert (made.replicas, made.reason) == (5, "queue")


def test_a_queue_that_drains_within_the_target_asks_for_nobody() -> None:
    signals = seen(2, running=16, queued=3, placements_per_second=10.0, arrivals_per_second=6.0)
    assert decide(signals, State(2, workers=2)).replicas == 2


def test_a_queue_that_does_not_drain_in_time_asks_for_as_many_as_it_takes() -> None:
    # 2 a second each: 6 arrive, and the 12 that wait are to go within a second.
    signals = seen(2, of_one=4, running=8, queued=12, placements_per_second=4.0, arrivals_per_second=6.0)
    made = decide(signals, State(2, workers=2))
    assert (made.replicas, made.reason) == (5, "queue")  # all of it has room in 5, so 9 would be too many


def test_what_waits_while_there_is_room_is_only_on_its_way() -> None:
    assert decide(seen(1, running=3, queued=5), State(1, workers=1)).replicas == 1


def test_what_waits_for_long_beside_free_slots_asks_for_more_and_looks_again_when_they_are_there() -> None:
    """Prompts before it are still read, or the KV cache has no room."""
    signals = seen(2, of_one=1000, running=50, queued=30, placements_per_second=10.0)
    made = decide(signals, State(2, workers=2))
    assert (made.replicas, made.reason) == (4, "queue")
    assert decide(signals, made.state).replicas == 4
    assert decide(replace(signals, queued=9), State(2, workers=2)).replicas == 2
    unmeasured = replace(signals, placements_per_second=None, oldest_seconds=1.2)
    assert decide(unmeasured, State(2, workers=2)).replicas == 3


def test_a_full_kv_cache_asks_for_more_though_slots_are_free() -> None:
    made = decide(seen(4, running=4, kv_used=0.95), State(4, workers=4))
    assert (made.replicas, made.reason) == (5, "kv")


@pytest.mark.parametrize(("known", "reason"), [({"ttft_seconds": 1.5}, "ttft"), ({"itl_seconds": 0.075}, "itl")])
def test_a_missed_target_asks_for_the_part_that_it_is_missed_by(known: dict[str, float], reason: str) -> None:
    made = decide(seen(4, running=8, **known), State(4, workers=4, settled_at=0.0))
    assert (made.replicas, made.reason) == (6, reason)


def test_a_missed_target_asks_again_only_when_the_last_workers_are_there_for_a_minute() -> None:
    signals = seen(4, running=8, ttft_seconds=1.5)
    assert decide(signals, State(6, workers=4)).replicas == 6, "two are still to come"
    joined = decide(replace(signals, workers=6, slots=48), State(6, workers=4), now=1000.0)
    assert joined.replicas == 6
    assert joined.state.settled_at == 1000.0
    just = decide(replace(signals, workers=6, slots=48), joined.state, now=1000.0 + WINDOW_SECONDS - 1)
    assert just.replicas == 6
    better = replace(signals, workers=6, slots=48, ttft_seconds=1.2)
    assert decide(better, joined.state, now=1000.0 + WINDOW_SECONDS).replicas == 8


def test_a_target_that_more_workers_did_not_bring_nearer_is_not_tried_with_still_more() -> None:
    """The prompts alone take longer."""
    made = decide(seen(2, running=4, ttft_seconds=1.5), State(2, workers=2), 1000.0)
    assert (made.replicas, made.reason) == (3, "ttft")

    def later(ttft: float) -> int:
        there = decide(seen(3, running=4, ttft_seconds=ttft), made.state, 1010.0)
        return decide(seen(3, running=4, ttft_seconds=ttft), there.state, 1010.0 + WINDOW_SECONDS).replicas

    assert later(1.5) == 3
    assert later(1.2) == 4, "it helped"
    assert later(2.0) == 6, "there is more to do than before"
    there = decide(seen(3, running=4, ttft_seconds=0.9), made.state, 1010.0)
    assert not there.state.tried, "once it was met, it is tried again"


# --- fewer -----------------------------------------------------------------------------------------------------------


def test_fewer_only_after_the_whole_window_and_one_at_a_time() -> None:
    state, now = State(5, workers=5), 1000.0
    for elapsed in range(60):
        made = decide(seen(5, running=4), state, now + elapsed)
        assert made.replicas == 5
        state = made.state
    made = decide(seen(5, running=4), state, now + 60)
    assert (made.replicas, made.reason) == (4, "no_load")
    assert decide(seen(4, running=4), made.state, now + 61).replicas == 4


def test_a_moment_of_load_begins_the_window_anew() -> None:
    made = decide(seen(2, running=1), State(2, workers=2), 1000.0)
    made = decide(seen(2, running=14), made.state, 1030.0)
    assert made.state.low_since is None
    made = decide(seen(2, running=1), made.state, 1031.0)
    assert decide(seen(2, running=1), made.state, 1090.0).replicas == 2
    assert decide(seen(2, running=1), made.state, 1091.0).replicas == 1


def test_after_a_window_without_any_load_all_but_one_go_at_once() -> None:
    made = decide(seen(5, idle_seconds=10.0), State(5, workers=5), 1000.0)
    made = decide(seen(5, idle_seconds=70.0), made.state, 1060.0)
    assert (made.replicas, made.reason) == (1, "no_load")


def test_idle_for_its_time_a_deployment_goes_to_none_but_not_below_its_minimum() -> None:
    assert decide(seen(1, idle_seconds=299.0), State(1, workers=1)).replicas == 1
    made = decide(seen(1, idle_seconds=300.0), State(1, workers=1))
    assert (made.replicas, made.reason) == (0, "idle")
    kept = decide(seen(1, idle_seconds=300.0), State(1, workers=1), deployment=replace(SCALED, min_replicas=1))
    assert kept.replicas == 1


def test_none_stay_none_until_the_first_request_wakes_one() -> None:
    asleep = State(0, workers=0, slots=8.0)
    assert decide(seen(0, idle_seconds=900.0), asleep).replicas == 0
    made = decide(seen(0, queued=1), asleep)
    assert (made.replicas, made.reason) == (1, "cold_start")
    assert decide(seen(0, queued=1), made.state).replicas == 1, "it is on its way"
    assert decide(seen(0, queued=20), asleep).replicas == 3, "as many as will be full"
    assert decide(seen(0, queued=20), State(0)).replicas == 1, "how many one takes nobody knows yet"


def test_bounds_hold_and_are_named() -> None:
    low = decide(seen(0), State(0), deployment=replace(SCALED, min_replicas=2))
    assert (low.replicas, low.wanted, low.reason) == (2, 0, "min")
    high = decide(seen(9, running=72, queued=500), State(9, workers=9))
    assert (high.replicas, high.reason) == (10, "max")
    assert high.wanted > 10


signals_of = st.builds(
    seen,
    st.integers(0, 20),
    of_one=st.integers(1, 64),
    running=st.integers(0, 200),
    queued=st.integers(0, 500),
    kv_used=st.none() | st.floats(0, 1),
    ttft_seconds=st.none() | st.floats(0.001, 30),
    itl_seconds=st.none() | st.floats(0.001, 1),
    placements_per_second=st.none() | st.floats(0, 100),
    arrivals_per_second=st.none() | st.floats(0, 100),
    idle_seconds=st.none() | st.floats(0, 1000),
)
states = st.builds(
    State, st.integers(0, 20), workers=st.integers(0, 20), settled_at=st.floats(0, 1000),
    low_since=st.none() | st.floats(0, 1000), slots=st.floats(0, 64),
    tried=st.lists(st.tuples(st.sampled_from(["ttft", "itl"]), st.floats(0.001, 30)), max_size=2).map(tuple),
)  # fmt: skip
bounds = st.tuples(st.integers(0, 12), st.integers(1, 12)).map(sorted)


@given(signals_of, states, bounds)
def test_always_within_bounds_with_a_reason_for_each_change_and_the_same_twice(
    signals: Signals, state: State, least_and_most: list[int]
) -> None:
    least, most = least_and_most
    deployment = replace(SCALED, min_replicas=least, max_replicas=max(1, most))
    made = decide(signals, state, deployment=deployment)
    assert made == decide(signals, state, deployment=deployment)
    assert least <= made.replicas <= deployment.max_replicas
    assert made.state.replicas == made.replicas
    if made.replicas != state.replicas:
        assert made.reason in ("queue", "ttft", "itl", "kv", "idle", "cold_start", "min", "max", "no_load")


@settings(max_examples=25)
@given(
    load=st.integers(0, 300),
    of_one=st.integers(1, 40),
    kv_of_request=st.floats(0, 0.2),
    begin=st.integers(0, 20),
    delay=st.integers(0, 40),
)
def test_constant_load_settles_and_then_moves_nothing(
    load: int, of_one: int, kv_of_request: float, begin: int, delay: int
) -> None:
    """``load`` generations want to run; workers come and go ``delay`` seconds after it was decided."""
    deployment = replace(SCALED, max_replicas=1000, min_replicas=1, ttft_target=None, itl_target=None)
    state, history, idle_since = State(begin), [begin], 0.0
    for second in range(1700):
        workers = history[max(0, len(history) - 1 - delay)]
        running = min(load, workers * of_one)
        signals = seen(
            workers, of_one=of_one, running=running, queued=load - running,
            kv_used=min(1.0, running * kv_of_request / workers) if workers else None,
            idle_seconds=second - idle_since if load == 0 else 0.0,
        )  # fmt: skip
        made = decide(signals, state, float(second), deployment)
        state = made.state
        history.append(made.replicas)
    last = history[-300:]
    assert len(set(last)) == 1, last
    assert last[0] * of_one >= load, "all of it runs"


# --- the budget ------------------------------------------------------------------------------------------------------

wants_of = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.integers(0, 30)), min_size=1, max_size=8).map(
    lambda rows: [Want(f"m{n}", *row) for n, row in enumerate(rows)]
)


@given(wants_of, st.integers(1, 200))
def test_never_above_the_budget_nor_above_what_is_wanted(wants: list[Want], budget: int) -> None:
    granted = share(wants, budget)
    assert sum(granted[want.model] * want.gpus for want in wants) <= budget
    assert all(0 <= granted[want.model] <= want.replicas for want in wants)
    assert granted == share(reversed(wants), budget)


@given(wants_of, st.integers(1, 200))
def test_what_still_drains_and_what_is_to_come_have_room_together(wants: list[Want], budget: int) -> None:
    granted = share(wants, budget)
    held = sum(want.held * want.gpus for want in wants)
    together = sum(max(granted[want.model], want.held) * want.gpus for want in wants)
    assert together <= max(budget, held)


@given(wants_of, st.integers(1, 200))
def test_no_gpu_stays_unused_that_one_more_replica_would_fit_in(wants: list[Want], budget: int) -> None:
    wants = [replace(want, held=0) for want in wants]
    granted = share(wants, budget)
    left = budget - sum(granted[want.model] * want.gpus for want in wants)
    assert all(want.gpus > left for want in wants if granted[want.model] < want.replicas)


@given(wants_of)
def test_without_a_budget_everybody_has_what_he_wants(wants: list[Want]) -> None:
    assert share(wants, 0) == {want.model: want.replicas for want in wants}


def test_scarce_gpus_are_shared_by_need_and_nobody_is_left_out() -> None:
    assert share([Want("a", 8, 1, 0), Want("b", 4, 1, 0)], 6) == {"a": 4, "b": 2}
    assert share([Want("a", 100, 1, 0), Want("b", 1, 1, 0)], 4) == {"a": 3, "b": 1}


def test_who_must_give_does_so_at_once_and_who_gets_waits_until_it_is_free() -> None:
    assert share([Want("a", 4, 1, 4), Want("b", 4, 1, 0)], 4) == {"a": 2, "b": 0}
    assert share([Want("a", 4, 1, 2), Want("b", 4, 1, 0)], 4) == {"a": 2, "b": 2}


def test_what_a_budget_cuts_off_is_said_and_asked_for_again() -> None:
    made = decide(seen(2, running=16, queued=20), State(2, workers=2))
    less = cut(made, 3)
    assert (less.replicas, less.wanted, less.reason, less.state.replicas) == (3, 5, "gpu_budget", 3)
    assert cut(made, 5) is made


# --- signals ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-4, 1000), min_size=LEAST_SAMPLES, max_size=200))
def test_a_percentile_is_at_most_five_percent_above_the_true_one(samples: list[float]) -> None:
    window = Percentiles()
    for each in samples:
        window.add(each, 5.0)
    true = sorted(samples)[-(-len(samples) * 95 // 100) - 1]
    told = window.at(0.95, 5.0)
    assert told is not None
    assert true * 0.999 <= told <= true * 1.051


def test_a_percentile_forgets_after_its_window_and_says_nothing_of_few_samples() -> None:
    window = Percentiles()
    window.add(1.0, 0.0, LEAST_SAMPLES - 1)
    assert window.at(0.95, 1.0) is None
    window.add(1.0, 1.0)
    assert window.at(0.95, 2.0) is not None
    assert window.at(0.95, 2.0 + WINDOW_SECONDS) is None


def test_a_deployment_is_idle_from_its_last_token_and_again_from_the_start_of_our_own() -> None:
    watched = Watched()
    watched.look(queued=0, running=0, now=100.0)
    watched.look(queued=0, running=0, now=130.0)
    assert signals_at(watched, 130.0).idle_seconds == 30.0
    watched.first_tokens([20_000], 140.0)
    watched.look(queued=0, running=0, now=150.0)
    assert signals_at(watched, 150.0).idle_seconds == 10.0
    watched.look(queued=1, running=0, now=160.0)
    assert signals_at(watched, 160.0).idle_seconds == 0.0


def test_arrivals_are_what_began_and_what_the_queue_grew_by() -> None:
    watched = Watched()
    watched.look(queued=0, running=0, now=0.0)
    for second in range(1, 21):
        watched.first_tokens([50_000] * 3, float(second))
        watched.look(queued=2 * second, running=3, now=float(second))
    told = signals_at(watched, 20.0)
    assert told.arrivals_per_second == pytest.approx(5.0)
    assert told.placements_per_second == pytest.approx(3.0, rel=0.1)
    assert told.oldest_seconds == 19.0


def signals_at(watched: Watched, now: float) -> Signals:
    return watched.signals(workers=1, leaving=0, slots=8, running=0, queued=0, kv_used=None, now=now)


# --- records ---------------------------------------------------------------------------------------------------------


def record(model: str, *fallbacks: str, **fields: object) -> DeploymentRecord:
    times = {name: value for name, value in fields.items() if isinstance(value, timedelta)}
    made = DeploymentRecord(
        model=model, fallbacks=fallbacks, **{name: each for name, each in fields.items() if name not in times}
    )  # type: ignore[arg-type]
    for name, value in times.items():
        getattr(made, name).FromTimedelta(value)
    return made


def test_what_a_record_leaves_out_has_its_default() -> None:
    plain = deployment_of(record("m"))
    assert plain == Deployment("m")
    assert not plain.scaled
    assert plain.cold_start is None
    scaled = deployment_of(record("m", max_replicas=3, ttft_target=timedelta(seconds=2)))
    assert scaled.scaled
    assert (scaled.cold_start, scaled.idle_time, scaled.gpus_per_replica) == (600.0, 300.0, 1)
    assert scaled.queue_target == 2.0, "what is promised for the first token is the most that one may wait"
    assert deployment_of(record("m", queue_target=timedelta(seconds=5))).queue_target == 5.0


@pytest.mark.parametrize(
    ("made", "param"),
    [
        (record(""), "model"),
        (record("m:adapter"), "model"),
        (record("m", min_replicas=2, max_replicas=1), "min_replicas"),
        (record("m", min_replicas=1), "min_replicas"),
        (record("m", max_replicas=10_001), "max_replicas"),
        (record("m", gpus_per_replica=1025), "gpus_per_replica"),
        (record("m", ttft_target=timedelta(0)), "ttft_target"),
        (record("m", cold_start=timedelta(hours=1)), "cold_start"),
        (record("m", "m"), "fallbacks"),
        (record("m", "m:adapter"), "fallbacks"),
        (record("m", "a", "a"), "fallbacks"),
        (record("m", ""), "fallbacks"),
        (record("m", *(f"f{n}" for n in range(9))), "fallbacks"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused_by_its_field(made: DeploymentRecord, param: str) -> None:
    fault = fault_of(made, {})
    assert fault is not None
    assert fault.param == param


def test_fallbacks_in_a_circle_are_refused_however_long_it_is() -> None:
    others = {"b": record("b", "c"), "c": record("c", "d", "a"), "d": record("d")}
    fault = fault_of(record("a", "b"), others)
    assert fault is not None
    assert "circle" in fault.message
    assert fault_of(record("a", "d"), others) is None


def test_a_record_may_take_the_place_of_one_that_led_into_a_circle() -> None:
    others = {"a": record("a", "b"), "b": record("b", "c")}
    assert fault_of(record("a", "c"), others) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 6), max_size=4, unique=True)), max_size=25))
def test_whatever_is_set_in_whatever_order_there_is_never_a_circle(changes: list[tuple[int, list[int]]]) -> None:
    stored: dict[str, DeploymentRecord] = {}
    for model, fallbacks in changes:
        made = record(f"m{model}", *(f"m{each}" for each in fallbacks))
        if fault_of(made, stored) is None:
            stored[made.model] = made

    def reaches(name: str, goal: str, seen_names: frozenset[str] = frozenset()) -> bool:
        nexts = stored[name].fallbacks if name in stored and name not in seen_names else ()
        return any(each == goal or reaches(each, goal, seen_names | {name}) for each in nexts)

    assert not any(reaches(name, name) for name in stored)

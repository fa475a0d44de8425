"""The simulator: its traces, its engines, and what a run must hold whatever the policy."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_runtime.timing_model import TimingModel
from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.core.simulate.compare import POLICIES, Setup, compare, measure
from inferbus_scheduler.core.simulate.engine import Engine, Generation, WorkerKind
from inferbus_scheduler.core.simulate.generate import Tenant, Workload, generate
from inferbus_scheduler.core.simulate.measures import Ending, Measures, fair_shares, jain
from inferbus_scheduler.core.simulate.report import page, sketch, table
from inferbus_scheduler.core.simulate.run import Deaths, Delays
from inferbus_scheduler.core.simulate.trace import Arrival, Defaults, TraceError, line_of, parse

STEP = 0.01
EXACT = TimingModel(step_seconds=STEP, prefill_tokens_per_second=1000.0)
USUAL = TimingModel(0.015, 0.0004, 20_000.0, kv_blocks=2048, kv_block_tokens=16)


def arrival(time: float = 0.0, input_tokens: int = 100, output_tokens: int = 10, **given) -> Arrival:
    usual = {"tenant": "t", "project": "", "priority": Priority.INTERACTIVE, "model": "synthetic"}
    return Arrival(time=time, input_tokens=input_tokens, output_tokens=output_tokens, **usual | given)


def engine(timing: TimingModel = EXACT, capacity: int = 8) -> Engine:
    return Engine("w", "", WorkerKind("w", 1, timing, capacity=capacity), Measures())


def play(engine: Engine, submissions: Sequence[tuple[float, Generation]]) -> dict[int, float]:
    """When each ended, by number."""
    ends: dict[int, float] = {}
    waiting = sorted(submissions, key=lambda one: one[0])
    while True:
        at = min(engine.next_at(), waiting[0][0] if waiting else float("inf"))
        if at == float("inf"):
            return ends
        if waiting and waiting[0][0] <= at:
            _, generation = waiting.pop(0)
            generation.key = str(generation.number).encode()
            engine.submit(generation, at)
        else:
            ends |= {generation.number: at for generation in engine.run(at)}


# --- traces ----------------------------------------------------------------------------------------------------------


def test_line_of_a_trace_comes_back_from_its_own_form():
    one = arrival(1.5, 640, 7, prefix=(1, 2, 3), max_tokens=9, project="p")
    assert parse(line_of(one), Defaults()) == one


def test_line_in_mooncakes_form_shares_the_chunks_of_equal_blocks():
    first = parse({"timestamp": 2500, "input_length": 1200, "output_length": 5, "hash_ids": [7, 8, 9]}, Defaults())
    second = parse({"timestamp": 2600, "input_length": 1200, "output_length": 5, "hash_ids": [7, 4, 5]}, Defaults())
    assert first.time == 2.5
    assert len(first.prefix) == 1200 // 64
    assert first.prefix[:8] == second.prefix[:8]
    assert not set(first.prefix[8:]) & set(second.prefix[8:])


def test_group_shares_its_prefix_inside_its_tenant_only():
    line = {"time": 0, "input_tokens": 640, "output_tokens": 1, "prefix": {"group": "g", "tokens": 320}}
    mine, longer = parse(line, Defaults()), parse({**line, "prefix": {"group": "g", "tokens": 640}}, Defaults())
    theirs = parse({**line, "tenant": "other"}, Defaults())
    assert len(mine.prefix) == 5
    assert longer.prefix[:5] == mine.prefix
    assert not set(mine.prefix) & set(theirs.prefix)


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"time": -1, "input_tokens": 1, "output_tokens": 1},
        {"time": 0, "input_tokens": "many"},
        {"time": 0, "class": "urgent"},
        {"time": 0, "prefix": ["a"]},
        {"time": float("nan")},
    ],
)
def test_line_that_is_no_request_is_refused(line):
    with pytest.raises(TraceError):
        parse(line, Defaults())


def test_generator_keeps_to_its_rate_and_lengths_with_and_without_bursts():
    for factor in (1.0, 6.0):
        workload = Workload(rate=50.0, seconds=400.0, burst_factor=factor, chat_share=0.0)
        made = list(generate(workload, Random(4)))
        assert len(made) == pytest.approx(20_000, rel=0.15)
        assert sum(one.input_tokens for one in made) / len(made) == pytest.approx(512, rel=0.1)
        assert all(a.time <= b.time for a, b in pairwise(made))


def test_chats_begin_as_their_system_prompt_and_as_their_own_past():
    made = list(generate(Workload(rate=20.0, seconds=60.0, chat_share=1.0, turns=4.0), Random(4)))
    heads = {one.prefix[:16] for one in made}
    assert len(heads) == 4, "as many as system prompts"
    assert any(b.prefix[: len(a.prefix)] == a.prefix for a in made for b in made if len(a.prefix) > 20 and a is not b)


# --- engines ---------------------------------------------------------------------------------------------------------


def test_lone_generation_takes_its_prefill_and_its_steps():
    one = Generation(1, arrival(input_tokens=500, output_tokens=11))
    assert play(engine(), [(1.0, one)]) == {1: pytest.approx(1.0 + 0.5 + 10 * STEP)}
    assert one.first_at == pytest.approx(1.5)


def test_prompts_are_read_one_after_the_other_while_others_decode():
    one, two = (Generation(number, arrival(input_tokens=100, output_tokens=101)) for number in (1, 2))
    ends = play(engine(), [(0.0, one), (0.0, two)])
    assert ends == {1: pytest.approx(0.1 + 1.0), 2: pytest.approx(0.2 + 1.0)}


def test_steps_are_as_long_as_the_batch_makes_them():
    timing = TimingModel(0.01, 0.01)
    pair = [(0.0, Generation(number, arrival(output_tokens=11))) for number in (1, 2)]
    assert play(engine(timing), pair)[2] == pytest.approx(10 * 0.03)
    assert play(engine(timing), [(0.0, Generation(1, arrival(output_tokens=11)))])[1] == pytest.approx(10 * 0.02)


def test_no_more_run_than_there_are_places_and_blocks():
    full = engine(capacity=2)
    three = [(0.0, Generation(number, arrival(input_tokens=10, output_tokens=101))) for number in (1, 2, 3)]
    ends = play(full, three)
    assert ends[3] > ends[1] + 1.0
    small = engine(TimingModel(STEP, kv_blocks=20, kv_block_tokens=16), capacity=8)
    three = [(0.0, Generation(number, arrival(input_tokens=60, output_tokens=100))) for number in (1, 2, 3)]
    ends = play(small, three)
    assert ends[1] == ends[2] == pytest.approx(99 * STEP)
    assert ends[3] == pytest.approx(2 * 99 * STEP, abs=2 * STEP)


def test_prefix_that_the_cache_holds_is_not_read_again():
    cached = engine(TimingModel(STEP, prefill_tokens_per_second=1000.0, kv_blocks=1000))
    prefix = tuple(range(10))
    one, two = (Generation(number, arrival(input_tokens=700, output_tokens=2, prefix=prefix)) for number in (1, 2))
    play(cached, [(0.0, one), (5.0, two)])
    assert one.first_at == pytest.approx(0.7)
    assert two.first_at == pytest.approx(5.0 + 0.06)


@given(st.integers(1, 40), st.floats(0.0, 0.5))
def test_withdrawn_generation_keeps_exactly_the_tokens_that_it_had(output_tokens, after):
    one = engine()
    generation = Generation(1, arrival(input_tokens=100, output_tokens=output_tokens))
    generation.key = b"1"
    one.submit(generation, 0.0)
    while one.next_at() <= after:
        one.run(one.next_at())
    if one.active:
        one.withdraw(generation, after)
        due = 0 if after < 0.1 else int((after - 0.1) / STEP + 1e-6) + 1
        assert generation.delivered == min(output_tokens, due)
        assert not one.active
        assert one.prefill_tokens == 0
        assert one.next_at() == float("inf")


# --- runs ------------------------------------------------------------------------------------------------------------

workloads = st.builds(
    Workload,
    rate=st.floats(1.0, 60.0),
    seconds=st.floats(1.0, 6.0),
    tenants=st.just((Tenant("a", 1.0, 1), Tenant("b", 3.0, 2, projects=2))),
    input_tokens=st.floats(16.0, 2000.0),
    output_tokens=st.floats(1.0, 200.0),
    burst_factor=st.floats(1.0, 8.0),
    burst_seconds=st.just(1.0),
    background_share=st.floats(0.0, 0.3),
    batch_share=st.floats(0.0, 0.5),
)


@settings(max_examples=25, deadline=None)
@given(
    workload=workloads,
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 1000),
    workers=st.integers(1, 4),
    dies_every=st.sampled_from((0.0, 2.0)),
)
def test_every_request_ends_once_with_its_tokens(workload, policy, seed, workers, dies_every):
    arrivals = list(generate(workload, Random(seed)))
    kinds = (WorkerKind("w", workers, USUAL, capacity=4, zones=2),)
    setup = Setup(kinds, deaths=Deaths(dies_every, back_after=1.0))
    run, measures = measure(policy, arrivals, setup, Random(seed), Random(seed + 1))
    assert run.open == 0
    assert len(measures.ending) == len(arrivals)
    done = [
        tokens for ending, tokens in zip(measures.ending, measures.output_tokens, strict=True) if ending == Ending.DONE
    ]
    if len(done) == len(arrivals):
        assert sum(done) == sum(one.output_tokens for one in arrivals)
    if not dies_every:
        assert all(engine.active == 0 and engine.prefill_tokens == 0 for engine in run.engines)
        assert Ending.FAILED not in measures.ending
    assert all(first <= ended for first, ended in zip(measures.ttft, measures.ended_at, strict=True))


@pytest.mark.parametrize("overhead", [0.0, 0.006])
def test_request_alone_has_its_first_token_after_the_overhead_and_its_prefill(overhead):
    setup = Setup((WorkerKind("w", 1, EXACT),), delays=Delays.of(overhead))
    _, measures = measure("inferbus", [arrival(input_tokens=100)], setup, Random(1), Random(2))
    assert measures.ttft[0] == pytest.approx(0.1 + overhead)


@pytest.mark.parametrize(("second_at", "found"), [(0.05, 0), (0.25, 512)])
def test_scheduler_knows_what_a_worker_holds_when_that_has_been_told_and_not_before(second_at, found):
    fast = TimingModel(STEP, prefill_tokens_per_second=100_000.0, kv_blocks=1000)
    arrivals = [arrival(at, 520, 100, prefix=tuple(range(8))) for at in (0.0, second_at)]
    _, measures = measure("inferbus", arrivals, Setup((WorkerKind("w", 2, fast),)), Random(1), Random(2))
    assert measures.hit_tokens == found


def test_heartbeats_count_what_is_to_be_read_with_what_the_cache_holds_of_it():
    cached = engine(TimingModel(STEP, prefill_tokens_per_second=1000.0, kv_blocks=1000))
    play(cached, [(0.0, Generation(1, arrival(input_tokens=128, prefix=(1, 2))))])
    later = Generation(2, arrival(input_tokens=200, prefix=(1, 2)))
    later.key = b"2"
    cached.submit(later, 10.0)
    assert cached.prefill_tokens == 200
    # It is read in the time of what it does not hold.
    cached.run(10.0 + (200 - 128) / 1000)
    assert cached.prefill_tokens == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_seeds_give_equal_results(policy):
    setup = Setup((WorkerKind("w", 3, USUAL, capacity=8),), deaths=Deaths(20.0))
    workload = Workload(rate=20.0, seconds=20.0, batch_share=0.3)

    def once():
        return compare(policy, generate(workload, Random(5)), setup, Random(6), Random(7))

    assert once() == once()


@pytest.mark.parametrize("policy", [name for name in POLICIES if not name.startswith("push_")])
def test_engines_never_hold_more_than_their_places(policy, monkeypatch):
    most: dict[str, int] = {}
    submit = Engine.submit

    def watched(self, generation, now):
        submit(self, generation, now)
        most[self.name] = max(most.get(self.name, 0), self.active)

    monkeypatch.setattr(Engine, "submit", watched)
    setup = Setup((WorkerKind("w", 3, USUAL, capacity=5),))
    measure(policy, generate(Workload(rate=40.0, seconds=10.0, batch_share=0.4), Random(1)), setup, Random(), Random())
    assert max(most.values()) == 5


# --- measures --------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.floats(0, 1e6), st.integers(1, 10)), min_size=1),
    st.floats(0, 1e6),
)
def test_fair_shares_give_nobody_more_than_he_asks_and_all_that_there_is(tenants, total):
    demands = {name: demand for name, (demand, _) in tenants.items()}
    shares = fair_shares(demands, {name: float(weight) for name, (_, weight) in tenants.items()}, total)
    assert all(share <= demands[name] + 1e-6 for name, share in shares.items())
    assert sum(shares.values()) == pytest.approx(min(total, sum(demands.values())), rel=1e-6, abs=1e-3)


def test_jains_index_is_one_for_equals_and_least_where_one_has_all():
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_report_names_every_policy_and_the_plot_is_well_formed():
    from xml.etree import ElementTree

    setup = Setup((WorkerKind("w", 2, USUAL, capacity=8),))
    arrivals = list(generate(Workload(rate=10.0, seconds=10.0), Random(1)))
    runs = [compare(name, arrivals, setup, Random(1), Random(2)) for name in POLICIES]
    text = table(runs) + sketch(runs)
    assert all(name in text for name in POLICIES)
    ElementTree.fromstring(page("a < b", [replace(runs[0], policy="<&>"), *runs[1:]], setup.targets))

"""What our policy holds beside others, in the simulator; and recorded decisions judged again."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from random import Random

import pytest
from google.protobuf.proto import serialize_length_prefixed
from inferbus.bus.v1.decision_pb2 import DecisionOutcome, PlacementDecisions
from inferbus_runtime.timing_model import TimingModel
from inferbus_scheduler.core.placement import Policy
from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.core.score import Weights
from inferbus_scheduler.core.simulate.compare import Setup, compare, measure
from inferbus_scheduler.core.simulate.engine import WorkerKind
from inferbus_scheduler.core.simulate.generate import Tenant, Workload, generate
from inferbus_scheduler.core.simulate.measures import Ending, Measures, Summary
from inferbus_scheduler.core.simulate.replay import replay
from inferbus_scheduler.core.simulate.run import Deaths
from inferbus_scheduler.core.simulate.trace import Arrival

TIMING = TimingModel(0.015, 0.0004, 20_000.0, kv_blocks=8192, kv_block_tokens=16)


def compared(policy: str, arrivals: Sequence[Arrival], setup: Setup) -> Summary:
    return compare(policy, arrivals, setup, Random(1), Random(2))


def delivered(measures: Measures, until: float) -> dict[str, int]:
    names = list(measures.tenants)
    found = dict.fromkeys(names, 0)
    for tenant, at, tokens in zip(measures.tenant, measures.ended_at, measures.output_tokens, strict=True):
        if at <= until:
            found[names[tenant]] += tokens
    return found


def test_prefix_aware_placement_reads_less_than_any_that_is_not():
    setup = Setup((WorkerKind("w", 8, TIMING, capacity=32),))
    workload = Workload(rate=30.0, seconds=40.0, chat_share=1.0, system_prompts=16, system_tokens=2048)
    arrivals = list(generate(workload, Random(3)))
    ours = compared("inferbus", arrivals, setup)
    for other in ("random", "round_robin", "push_least_requests"):
        found = compared(other, arrivals, setup)
        assert ours.hit_rate > 1.2 * found.hit_rate
        assert ours.ttft[0] < found.ttft[0]


def test_flood_of_one_tenant_leaves_the_other_within_half_more_of_its_own_ttft():
    """Where places come free often: a request of the other one waits for the next place and for nobody's queue."""
    setup = Setup((WorkerKind("w", 8, TIMING, capacity=16),))
    quiet = Workload(10.0, 40.0, (Tenant("quiet"),), input_tokens=1000.0, spread=0.5, chat_share=0.0)
    noisy = Workload(300.0, 40.0, (Tenant("noisy"),), input_tokens=256.0, output_tokens=32.0, chat_share=0.0)
    alone = list(generate(quiet, Random(1)))
    flooded = sorted([*alone, *generate(noisy, Random(2))], key=lambda arrival: arrival.time)
    before = compared("inferbus", alone, setup).tenant_ttft_p99["quiet"]
    ours = compared("inferbus", flooded, setup)
    assert ours.tenant_ttft_p99["quiet"] <= 1.5 * before
    assert compared("push_least_requests", flooded, setup).tenant_ttft_p99["quiet"] > 10 * before


def test_flood_of_long_answers_holds_not_the_last_places():
    """Where a place comes free seldom, some are left to who asks now and then."""
    setup = Setup((WorkerKind("w", 4, TIMING, capacity=16),))
    calm = Workload(2.0, 40.0, (Tenant("calm"),), input_tokens=400.0, output_tokens=16.0, spread=0.1, chat_share=0.0)
    long = Workload(20.0, 40.0, (Tenant("long"),), input_tokens=100.0, output_tokens=600.0, spread=0.1, chat_share=0.0)
    alone = list(generate(calm, Random(1)))
    flooded = sorted([*alone, *generate(long, Random(2))], key=lambda arrival: arrival.time)
    before = compared("inferbus", alone, setup).tenant_ttft_p99["calm"]
    assert compared("inferbus", flooded, setup).tenant_ttft_p99["calm"] <= 1.5 * before


def test_flood_of_prompts_leaves_a_worker_that_reads_nothing():
    """Of a prompt that an engine has begun to read nothing can be taken back: who asks now and then meets none."""
    slow = TimingModel(0.02, 0.0, 8_000.0, kv_blocks=8192, kv_block_tokens=16)
    setup = Setup((WorkerKind("w", 4, slow, capacity=32),))
    calm = Workload(4.0, 60.0, (Tenant("calm"),), input_tokens=500.0, output_tokens=16.0, spread=0.1, chat_share=0.0)
    flood = Workload(45.0, 60.0, (Tenant("flood"),), input_tokens=500.0, spread=0.1, chat_share=0.0)
    alone = list(generate(calm, Random(1)))
    flooded = sorted([*alone, *generate(flood, Random(2))], key=lambda arrival: arrival.time)
    before = compared("inferbus", alone, setup).tenant_ttft_p99["calm"]
    ours = compared("inferbus", flooded, setup)
    assert ours.tenant_ttft_p99["calm"] <= 1.5 * before
    assert ours.done == len(flooded)


@pytest.mark.parametrize("weights", [(1, 1, 2), (1, 3)])
def test_tokens_of_tenants_that_ask_for_too_much_come_in_proportion_to_their_weights(weights):
    tenants = tuple(Tenant(f"t{weight}{at}", 1.0, weight) for at, weight in enumerate(weights))
    setup = Setup((WorkerKind("w", 4, TIMING, capacity=8),), weights={one.name: one.weight for one in tenants})
    # One says long answers, the others short ones: shares are of tokens, not of requests.
    plain = Workload(40.0, 120.0, input_tokens=64.0, output_tokens=50.0, chat_share=0.0)
    made = [
        list(generate(replace(plain, tenants=(tenant,), output_tokens=200.0 if at else 50.0), Random(at)))
        for at, tenant in enumerate(tenants)
    ]
    arrivals = sorted(chain(*made), key=lambda arrival: arrival.time)
    _, measures = measure("inferbus", arrivals, setup, Random(1), Random(2))
    late, early = delivered(measures, 120.0), delivered(measures, 30.0)
    # Input tokens count as well; they are few here, of equal number a request.
    shares = {tenant.name: (late[tenant.name] - early[tenant.name]) / tenant.weight for tenant in tenants}
    reads = {tenant.name: _inputs(arrivals, measures, tenant.name) / tenant.weight for tenant in tenants}
    had = {name: shares[name] + reads[name] for name in shares}
    mean = sum(had.values()) / len(had)
    assert all(abs(one / mean - 1) <= 0.05 for one in had.values()), had


def _inputs(arrivals: Sequence[Arrival], measures: Measures, tenant: str) -> float:
    """Input tokens of what ended in the window, by the mean of the tenant's requests."""
    own = [arrival.input_tokens for arrival in arrivals if arrival.tenant == tenant]
    number = measures.tenants[tenant]
    ended = sum(
        of == number and ending == Ending.DONE and 30.0 < at <= 120.0
        for of, ending, at in zip(measures.tenant, measures.ending, measures.ended_at, strict=True)
    )
    return ended * sum(own) / len(own)


def test_interactive_requests_pause_batch_work_which_is_done_all_the_same():
    setup = Setup((WorkerKind("w", 2, TIMING, capacity=8),))
    batch = Workload(8.0, 5.0, (Tenant("b"),), output_tokens=600.0, batch_share=1.0, chat_share=0.0)
    asked = Workload(1.0, 30.0, (Tenant("i"),), output_tokens=40.0, chat_share=0.0)
    arrivals = sorted([*generate(batch, Random(1)), *generate(asked, Random(2))], key=lambda arrival: arrival.time)
    ours = compared("inferbus", arrivals, setup)
    pushed = compared("push_least_requests", arrivals, setup)
    assert ours.preemptions > 0
    assert ours.done == len(arrivals)
    assert ours.ttft[2] < pushed.ttft[2] / 5


def test_deaths_fail_what_a_load_balancer_sent_there_and_nothing_of_ours():
    setup = Setup((WorkerKind("w", 6, TIMING, capacity=16),), deaths=Deaths(every=30.0, back_after=5.0))
    arrivals = list(generate(Workload(rate=15.0, seconds=60.0), Random(4)))
    ours, pushed = (compared(name, arrivals, setup) for name in ("inferbus", "push_round_robin"))
    assert ours.failed == 0
    assert ours.migrations > 0
    assert ours.output_tokens == sum(arrival.output_tokens for arrival in arrivals)
    assert pushed.failed > 0


OTHER = Arrival(0.0, "other", "", Priority.INTERACTIVE, "other", 10, 1000)


class Fates(Random):
    """Each worker, in order, dies once at its time, and never again."""

    def __init__(self, *times: float) -> None:
        super().__init__(0)
        self._times = list(times)

    def expovariate(self, lambd: float = 1.0) -> float:
        return self._times.pop(0) if self._times else float("inf")


@pytest.mark.parametrize(("elsewhere", "ending"), [((), Ending.FAILED), ((OTHER,), Ending.DONE)])
def test_request_whose_workers_die_before_its_first_token_is_tried_again_only_while_workers_die_without_it(
    elsewhere, ending
):
    """As migration.Deaths has it: the worker of the other model died with nothing on it that could have done it."""
    slow = TimingModel(0.01, prefill_tokens_per_second=1000.0)
    kinds = (WorkerKind("a", 3, slow), WorkerKind("b", 1, slow, model="other"))
    setup = Setup(kinds, deaths=Deaths(every=1.0, back_after=5.0))
    arrivals = [*elsewhere, Arrival(0.0, "suspect", "", Priority.INTERACTIVE, "synthetic", 10_000, 10)]
    _, measures = measure("inferbus", arrivals, setup, Random(1), Fates(1.0, 3.0, 3.0, 0.5))
    endings = dict(zip(measures.tenant, measures.ending, strict=True))
    assert endings[measures.tenants["suspect"]] == ending


# --- yesterday's decisions -------------------------------------------------------------------------------------------


def decisions() -> PlacementDecisions:
    """Two choices: once the idle worker was taken, once the one with the prefix; and a rejection in between."""
    outcome = DecisionOutcome
    return PlacementDecisions(
        model="m",
        request_ids=b"\1" * 16 + b"\2" * 16 + b"\3" * 16,
        outcomes=[
            outcome.DECISION_OUTCOME_PLACED, outcome.DECISION_OUTCOME_REJECTED, outcome.DECISION_OUTCOME_PLACED,
        ],
        candidates=[2, 0, 2],
        workers=[0, 1, 1, 0],
        actives=[0, 2, 2, 0],
        capacities=[8, 8, 8, 8],
        prefix_hits=[0, 40, 40, 0],
        names=["idle", "warm"],
    )  # fmt: skip


def test_replay_says_what_another_policy_would_have_chosen():
    warm = replay([decisions()], Policy(weights=Weights(prefix=5.0)))
    assert (warm.decisions, warm.choices, warm.same) == (2, 2, 1)
    assert warm.recorded.prefix_chunks == 20
    assert warm.other.prefix_chunks == 40
    cold = replay([decisions()], Policy(weights=Weights(prefix=0.0)))
    assert cold.other.prefix_chunks == 0
    assert cold.other.load < cold.recorded.load < warm.other.load


# --- the program -----------------------------------------------------------------------------------------------------


def simulate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferbus_scheduler.simulate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_program_prints_plots_and_plays_a_saved_trace_as_it_was_made(tmp_path):
    trace, plot, figures, again = (tmp_path / name for name in ("t.jsonl", "p.svg", "1.json", "2.json"))
    made = simulate("--seconds", 10, "--rate", 10, "--save-trace", trace, "--plot", plot, "--json", figures)
    assert made.returncode == 0, made.stderr
    assert "goodput, requests/s" in made.stdout
    assert plot.read_text().startswith("<svg")
    read = simulate("--trace", trace, "--json", again)
    assert read.returncode == 0, read.stderr
    assert json.loads(figures.read_text()) == json.loads(again.read_text())


def test_program_plays_with_other_weights(tmp_path):
    hits = []
    for weight in (0, 10):
        figures = tmp_path / f"{weight}.json"
        options = ("--policies", "inferbus", "--seconds", 30, "--rate", 40, "--json", figures)
        played = simulate(*options, "--weight", f"prefix={weight}")
        assert played.returncode == 0, played.stderr
        hits.append(json.loads(figures.read_text())[0]["hit_rate"])
    assert hits[1] > hits[0]


def test_program_reads_a_mixed_fleet_and_names_what_is_wrong_with_a_file(tmp_path):
    fleet, trace, log = (tmp_path / name for name in ("f.json", "t.jsonl", "d.bin"))
    kind = {"name": "a", "count": 1, "timing": {"step_seconds": 0.01}}
    fleet.write_text(json.dumps([kind, {**kind, "name": "b", "cost_per_hour": 3.0}]))
    assert simulate("--fleet", fleet, "--seconds", 2, "--policies", "inferbus").returncode == 0
    trace.write_text('{"time": 0, "input_tokens": 5, "output_tokens": 1}\n{"time": "soon"}\n')
    refused = simulate("--trace", trace)
    assert refused.returncode == 2
    assert "line 2: time" in refused.stderr
    with log.open("wb") as out:
        serialize_length_prefixed(decisions(), out)
    judged = simulate("--decisions", log, "--weight", "prefix=5")
    assert "2 placements" in judged.stdout, judged.stderr

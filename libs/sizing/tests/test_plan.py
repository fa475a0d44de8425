"""What a plan promises, for all that can be wanted."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inferbus_sizing import GPUS, KV_BYTES, PRECISIONS, DoesNotFitError, SizingError, Wanted, compare, model_of, plan
from inferbus_sizing.cost import HOURS_A_MONTH

SEVENTY = model_of("llama-3.1-70b").architecture
EIGHT = model_of("llama-3.1-8b").architecture
NAMES = ("llama-3.1-8b", "llama-3.1-70b", "mixtral-8x7b", "deepseek-v2-lite", "gpt-oss-20b", "gemma-3-27b")

WANTED = st.builds(
    Wanted,
    model=st.sampled_from([model_of(name).architecture for name in NAMES]),
    gpu=st.sampled_from(list(GPUS)),
    precision=st.sampled_from(list(PRECISIONS)),
    kv_precision=st.sampled_from(["", *KV_BYTES]),
    context=st.integers(2048, 16384),
    concurrency=st.integers(1, 2000),
    input_tokens=st.integers(1, 1024),
    output_tokens=st.integers(1, 1024),
    ttft_seconds=st.sampled_from([0.0, 0.2, 2.0]),
    itl_seconds=st.sampled_from([0.0, 0.02, 0.1]),
)


@given(WANTED)
@settings(max_examples=60, deadline=None)
def test_a_plan_holds_what_was_wanted_and_meets_its_targets(wanted: Wanted) -> None:
    try:
        made = plan(wanted)
    except DoesNotFitError:
        return
    assert made["replicas"] * made["sequences"] >= wanted.concurrency
    assert made["sequences"] <= made["sequences_fit"]
    assert made.memory.weights + made.memory.reserve + made.memory.kv <= made.memory.total
    assert not wanted.ttft_seconds or made["ttft"] <= wanted.ttft_seconds
    assert not wanted.itl_seconds or made["itl"] <= wanted.itl_seconds
    assert made["gpus"] == made["replicas"] * made["gpus_per_replica"]
    assert len({one.name for one in made.figures}) == len(made.figures)
    assert all(one.formula and one.source and one.unit for one in made.figures)


@given(WANTED, st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_more_at_once_never_takes_fewer_gpus(wanted: Wanted, times: int) -> None:
    try:
        few = plan(wanted)
    except DoesNotFitError:
        assume(False)
        raise
    many = plan(replace(wanted, concurrency=wanted.concurrency * times))
    assert many["gpus"] >= few["gpus"]


@given(WANTED)
@settings(max_examples=40, deadline=None)
def test_the_simulator_gets_the_same_steps(wanted: Wanted) -> None:
    try:
        made = plan(wanted)
    except DoesNotFitError:
        assume(False)
        raise
    timing, many = made.timing, max(2, made.choice.sequences)
    told = timing.step_seconds + timing.step_seconds_per_sequence * many
    real = made.choice.speed.cycle_seconds(many, wanted.input_tokens, wanted.output_tokens)
    assert told == pytest.approx(real, rel=0.05)
    assert timing.kv_blocks * timing.kv_block_tokens <= made.choice.room * wanted.context + wanted.context


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(DoesNotFitError, match=r"141\.1 GB of weights.* fit 1 x H100.*What would fit: ") as raised:
        plan(Wanted(SEVENTY, "h100", "fp16", gpus_per_replica=1))
    _, _, would = str(raised.value).partition("What would fit: ")
    said = would.split("; ")
    assert "x H100 SXM 80 GB in FP16" in said[0]
    assert any("in FP8" in one for one in said)
    assert any("H200" in one or "B200" in one for one in said)


def test_targets_that_no_number_of_gpus_meets_are_told_apart_from_memory() -> None:
    with pytest.raises(DoesNotFitError, match=r"meets the targets.*TTFT of .* ms and an ITL of"):
        plan(Wanted(EIGHT, "l4", "bf16", ttft_seconds=0.001))


def test_narrower_targets_take_more_gpus() -> None:
    relaxed = plan(Wanted(SEVENTY, "h100", "fp8", concurrency=512))
    quick = plan(Wanted(SEVENTY, "h100", "fp8", concurrency=512, itl_seconds=0.02))
    assert quick["gpus"] > relaxed["gpus"]
    assert quick["itl"] < relaxed["itl"]


def test_costs_add_up() -> None:
    made = plan(Wanted(SEVENTY, "h100", "fp8", concurrency=64, dollars_per_hour=2.0))
    assert made["cost_per_month"] == pytest.approx(made["gpus"] * 2.0 * HOURS_A_MONTH)
    parts = 1000 * made["cost_per_million_in"] + 500 * made["cost_per_million_out"]
    assert parts / 1e6 == pytest.approx(made["cost_per_request"])
    assert made["cost_per_request"] * made["requests_per_second"] * 3600 == pytest.approx(made["cost_per_hour"])


def test_power_is_paid_where_it_has_a_price() -> None:
    free = plan(Wanted(EIGHT, "h100", "fp8"))
    paid = plan(Wanted(EIGHT, "h100", "fp8", dollars_per_kwh=0.3))
    assert paid["cost_per_hour"] - free["cost_per_hour"] == pytest.approx(free["power"] / 1000 * 0.3)


def test_the_crossover_is_where_both_cost_the_same() -> None:
    made = plan(Wanted(SEVENTY, "h100", "fp8", concurrency=64, api_price_in=0.6, api_price_out=0.6))
    assert made["crossover"] * made["api_per_request"] == pytest.approx(made["cost_per_month"])
    assert made.crossover is not None
    assert made.crossover.points[0].api == 0
    own = [point.own for point in made.crossover.points]
    assert own == sorted(own)


def test_an_api_that_is_always_cheaper_has_no_crossover() -> None:
    made = plan(Wanted(SEVENTY, "h100", "fp8", concurrency=4, api_price_in=0.0001, api_price_out=0.0001))
    assert made.crossover is not None
    assert made.crossover.requests is None
    with pytest.raises(KeyError):
        made["crossover"]
    free = plan(Wanted(SEVENTY, "h100", "fp8", api_price_in=0, api_price_out=0))
    assert free.crossover is not None
    assert free.crossover.requests is None


def test_more_requests_than_the_plan_can_do_take_more_replicas() -> None:
    asked = Wanted(SEVENTY, "h100", "fp8", concurrency=64, api_price_in=1, api_price_out=1)
    capacity = plan(asked)["capacity"]
    made = plan(replace(asked, requests_per_month=capacity * 2.5))
    assert made["own_per_month"] == pytest.approx(3 * made["cost_per_month"])
    assert made["api_per_month"] == pytest.approx(capacity * 2.5 * made["api_per_request"])


def test_all_gpus_are_compared_and_a_price_is_of_its_own_gpu() -> None:
    found = dict(compare(Wanted(SEVENTY, "h100", "fp8", dollars_per_hour=9.0)))
    assert list(found) == list(GPUS)
    h100, h200 = found["h100"], found["h200"]
    assert not isinstance(h100, DoesNotFitError)
    assert not isinstance(h200, DoesNotFitError)
    assert h100["cost_per_hour"] == 9.0 * h100["gpus"]
    assert h200["cost_per_hour"] == GPUS["h200"].dollars_per_hour * h200["gpus"]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("gpu", "abacus"), ("precision", "fp3"), ("kv_precision", "fp3"), ("context", 0), ("context", 1 << 30),
        ("concurrency", 0), ("concurrency", 10**9), ("input_tokens", 0), ("output_tokens", 10**6),
        ("ttft_seconds", -1.0), ("itl_seconds", float("nan")), ("dollars_per_hour", float("inf")),
        ("api_price_in", -1.0), ("requests_per_month", 1e30), ("gpus_per_replica", 1000),
    ],
)  # fmt: skip
def test_a_wrong_wish_is_named(param: str, value: object) -> None:
    with pytest.raises(SizingError) as raised:
        replace(Wanted(EIGHT), **{param: value})  # type: ignore[arg-type]
    assert raised.value.param == param


def test_prompt_and_answer_must_go_into_the_context() -> None:
    with pytest.raises(SizingError, match="longer than the context"):
        Wanted(EIGHT, context=1000, input_tokens=600, output_tokens=600)

"""When the engine ``synthetic`` reads what, by given times: prompts in order, KV blocks, prefixes found again."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime.timing_model import TimingModel
from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.engine import Finish, Generation, Prompt
from inferbus_worker.engines.synthetic_places import Run, SyntheticPlaces

MILLISECOND = 1000
# A token a millisecond.
READS_IN_ORDER = TimingModel(0.02, prefill_tokens_per_second=1000.0)


def places(timing: TimingModel = READS_IN_ORDER, capacity: int = 4, alone_us: int = 50) -> SyntheticPlaces:
    return SyntheticPlaces(capacity, timing, alone_us, PrefixCache(1000))


def run(number: int, tokens: int, limit: int = 10, chunks: tuple[int, ...] = (), **more: Any) -> Run:
    generation = Generation(bytes([number]), Prompt(tuple([0] * tokens)), prefix=chunks)
    return Run(generation, more.pop("index", 0), limit, Finish.LENGTH, 0, tokens, None, **more)


def decoding(made: SyntheticPlaces, now: int) -> set[int]:
    made.read(now)
    return {key[0] for key in made.decoding}


def test_prompts_are_read_one_after_the_other_at_one_rate() -> None:
    made = places()
    for number, tokens in enumerate((100, 50, 10)):
        made.submit(run(number, tokens), 0)
    assert made.first_us == 100 * MILLISECOND
    assert decoding(made, 99 * MILLISECOND) == set()
    assert decoding(made, 100 * MILLISECOND) == {0}
    assert decoding(made, 159 * MILLISECOND) == {0, 1}
    assert decoding(made, 160 * MILLISECOND) == {0, 1, 2}
    assert made.first_us is None


def test_without_a_rate_each_is_read_by_itself() -> None:
    made = places(TimingModel(0.02))
    for number, tokens in enumerate((100, 50)):
        made.submit(run(number, tokens), 0)
    assert decoding(made, 50 * 50) == {1}
    assert decoding(made, 100 * 50) == {0, 1}


def test_who_leaves_unread_makes_the_others_sooner() -> None:
    made = places()
    for number, tokens in enumerate((100, 50, 10, 20)):
        made.submit(run(number, tokens), 0)
    made.take(bytes([2]), 30 * MILLISECOND)
    assert made.first_us == 100 * MILLISECOND, "the one before it is at it still"
    made.take(bytes([0]), 40 * MILLISECOND)
    assert made.first_us == 90 * MILLISECOND, "the next one begins now"
    assert decoding(made, 90 * MILLISECOND) == {1}
    assert decoding(made, 110 * MILLISECOND) == {1, 3}


def test_what_was_delivered_before_is_read_again() -> None:
    made = places()
    made.submit(run(1, 100, limit=500, index=200), 0)
    assert made.first_us == 300 * MILLISECOND


def test_a_prefix_that_was_read_costs_nothing_and_is_told() -> None:
    prefixes = PrefixCache(1000)
    timing = TimingModel(0.02, prefill_tokens_per_second=1000.0, kv_blocks=64, kv_block_tokens=16)
    made = SyntheticPlaces(4, timing, 0, prefixes)
    made.submit(run(1, 192, chunks=(1, 2, 3)), 0)
    assert prefixes.changes() == ([], []), "not before it has been read"
    assert decoding(made, 192 * MILLISECOND) == {1}
    assert sorted(prefixes.changes()[0]) == [1, 2, 3]
    made.submit(run(3, 64, limit=1, chunks=(7,)), 200 * MILLISECOND)
    assert 3 in decoding(made, 264 * MILLISECOND)
    made.take(bytes([3]), 264 * MILLISECOND)
    prefixes.bound = 2
    assert sorted(prefixes.changes()[1]) == [2, 3], "of what is told too much the ends of prompts go first"
    made.submit(again := run(2, 160, chunks=(1, 2, 9)), 300 * MILLISECOND)
    assert again.cached_tokens == 106, "two of three chunks, as far as words are even"
    assert made.first_us == (300 + 160 - 106) * MILLISECOND
    statistics = made.statistics(None)
    assert statistics.kv_blocks_total == 64
    assert statistics.kv_block_tokens == 16
    assert statistics.kv_blocks_reused_total == 106 // 16


def test_who_finds_no_blocks_waits_its_turn() -> None:
    made = places(TimingModel(0.02, kv_blocks=10, kv_block_tokens=10), alone_us=0)
    made.submit(run(1, 20, limit=40), 0)
    made.submit(run(2, 20, limit=40), 0)
    made.submit(run(3, 1, limit=1), 0)
    assert decoding(made, 1) == {1}, "the third would fit, and overtakes nobody"
    assert (made.statistics(None).waiting, made.statistics(None).kv_blocks_used) == (2, 6)
    made.take(bytes([1]), 2)
    made.fill(2)
    assert decoding(made, 3) == {2, 3}
    assert made.statistics(None).kv_blocks_used == 7


def test_without_a_bound_there_are_no_blocks_and_nothing_is_found_again() -> None:
    made = places(TimingModel(0.02), alone_us=0)
    for number in range(2):
        made.submit(again := run(number, 64, chunks=(1,)), 0)
        assert decoding(made, 1) == set(range(number + 1))
        assert again.cached_tokens == 0
    statistics = made.statistics(20_000)
    assert (statistics.kv_blocks_total, statistics.kv_blocks_used, statistics.step_seconds) == (None, None, 0.02)


MOVES = st.lists(
    st.tuples(st.sampled_from(["submit", "submit", "take", "step"]), st.integers(0, 5), st.integers(1, 60)), max_size=60
)


@given(MOVES, st.sampled_from([0.0, 1000.0]), st.sampled_from([0, 12]))
def test_whoever_is_submitted_comes_to_decode_and_leaves_nothing(
    moves: list[tuple[str, int, int]], rate: float, blocks: int
) -> None:
    made = places(TimingModel(0.02, 0.0, rate, blocks, 16), capacity=3)
    there: dict[int, Run] = {}
    now = 0
    for move, number, tokens in moves:
        now += tokens * 500
        if move == "submit" and number not in there:
            there[number] = run(number, tokens, limit=tokens, chunks=tuple(range(tokens // 20)))
            made.submit(there[number], now)
        elif move == "take":
            assert made.take(bytes([number]), now) is there.pop(number, None)
            made.fill(now)
        elif move == "step":
            for gone in decoding(made, now):
                made.end(there.pop(gone))
            made.fill(now)
        assert made.running <= 3
        statistics = made.statistics(None)
        assert statistics.running + statistics.waiting == len(there)
        assert (statistics.kv_blocks_used or 0) <= blocks
        assert made.running or not statistics.waiting, "nobody waits for nothing"
    for _ in range(len(there)):
        now += 60 * MILLISECOND
        for gone in decoding(made, now):
            made.end(there.pop(gone))
        made.fill(now)
    assert not there
    assert (made.running, made.statistics(None).kv_blocks_used or 0) == (0, 0)

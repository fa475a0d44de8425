from hypothesis import given
from hypothesis import strategies as st
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.reading import Reading, unread
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.view import ClusterView, WorkerView

NOW = 1000.0
RATE = 8000.0
ASKED = Request(b"1" * 16, "m", "t", "p", Priority.INTERACTIVE, NOW, NOW + 60, input_tokens=500, output_tokens=16)


def worker(name: str, tokens: int, since: float, active: int = 4, token_seconds: float = 1 / RATE) -> WorkerView:
    return WorkerView(
        name, 1, "m", 32, active, 0, False, NOW + 10,
        prefill_tokens=tokens, reads_since=since, token_seconds=token_seconds,
    )  # fmt: skip


def chosen(workers: list[WorkerView], now: float = NOW) -> str:
    policy = Policy()
    found = place(ASKED, ClusterView.of(workers, policy.weights), {}, policy, now)
    assert isinstance(found, Placement)
    return found.worker


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=20), st.floats(100.0, 100_000.0))
def test_what_an_engine_does_one_after_the_other_says_how_fast_it_reads(prompts: list[int], rate: float) -> None:
    reading, now, left = Reading(), NOW, 0
    for tokens in prompts:
        left += tokens
        reading.changed(left, now)
        now += 0.001
    now = NOW
    for tokens in prompts:
        now, left = now + tokens / rate, left - tokens
        reading.changed(left, now, read=True)
        assert abs(reading.token_seconds * rate - 1) < 1e-3
        assert (reading.tokens, reading.since) == (left, now)


def test_what_was_not_read_says_nothing_of_it_and_idle_time_does_not_count() -> None:
    reading = Reading()
    reading.changed(500, NOW)
    reading.changed(200, NOW + 0.01)  # 300 of it are cancelled
    reading.changed(0, NOW + 0.025, read=True)
    assert abs(reading.token_seconds - 0.025 / 200) < 1e-12
    reading.changed(0, NOW + 30, read=True)
    reading.changed(1000, NOW + 60)
    assert reading.since == NOW + 60
    assert abs(reading.token_seconds - 0.025 / 200) < 1e-12


@given(
    st.integers(0, 10_000), st.floats(0, 1e-2), st.floats(-1, 100), st.floats(0, 10)
)  # fmt: skip
def test_what_is_left_never_grows_until_it_takes_too_long(
    tokens: int, token_seconds: float, passed: float, more: float
) -> None:
    left = unread(tokens, NOW, token_seconds, NOW + passed)
    assert (left == 0) == (tokens == 0)
    assert left <= tokens
    later = unread(tokens, NOW, token_seconds, NOW + passed + more)
    assert later <= left or (later == tokens and passed + more > 1.99 * tokens * token_seconds)
    if not token_seconds or passed <= 0:
        assert left == tokens


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 31)), min_size=1, max_size=8))
def test_of_equals_that_read_the_one_nearest_its_end_is_next(fleet: list[tuple[float, int]]) -> None:
    """Each reads 500 tokens, and is somewhere in the middle of them; slots differ."""
    seconds = 500 / RATE
    workers = [worker(f"w{n}", 500, NOW - part * seconds, active) for n, (part, active) in enumerate(fleet)]
    parts = {name: part for name, (part, _) in zip((one.name for one in workers), fleet, strict=True)}
    taken = {one.name: one.active for one in workers}
    best = chosen(workers)
    for name in parts:
        assert not (parts[name] > parts[best] + 0.01 and taken[name] < taken[best])


def test_one_that_reads_nothing_comes_first_and_one_that_is_stuck_last() -> None:
    nearly, begins = worker("a", 500, NOW - 0.06), worker("b", 500, NOW - 0.001)
    assert chosen([begins, nearly]) == "a"
    assert chosen([begins, nearly, worker("c", 0, 0.0)]) == "c"
    assert chosen([worker("a", 500, NOW - 5), worker("b", 500, NOW - 0.02)]) == "b", "it should have read it long ago"
    unknown = [worker("a", 500, NOW - 0.06, token_seconds=0.0), worker("b", 400, NOW, token_seconds=0.0)]
    assert chosen(unknown) == "b"

import pytest
from inferbus_scheduler.core.drain_rate import ENOUGH, DrainRate


def drained(rate: float, count: int, since: float = 0.0) -> tuple[DrainRate, float]:
    """A queue that moves at ``rate``, and when it was last seen."""
    drain = DrainRate()
    now = since
    for _ in range(count):
        now += 1 / rate
        drain.placed("m", now, waited=5.0, waiting=True)
    return drain, now


@pytest.mark.parametrize("rate", [0.5, 4.0, 200.0])
def test_the_rate_is_that_of_the_queue_once_enough_were_placed(rate: float) -> None:
    drain, now = drained(rate, ENOUGH - 1)
    assert drain.rate("m", now) is None
    drain, now = drained(rate, int(ENOUGH + 200 * rate))
    assert drain.rate("m", now) == pytest.approx(rate, rel=0.05)
    assert drain.wait("m", 100, now) == pytest.approx(100 / rate, rel=0.05)
    assert drain.wait("other", 100, now) is None


def test_what_is_placed_at_once_says_nothing() -> None:
    drain = DrainRate()
    for number in range(1000):
        drain.placed("m", float(number), waited=0.0, waiting=False)
    assert drain.rate("m", 1000.0) is None


def test_time_without_a_queue_does_not_count() -> None:
    drain, now = drained(10.0, 400)
    drain.placed("m", now, waited=1.0, waiting=False)
    assert drain.rate("m", now + 10_000) == pytest.approx(10.0, rel=0.1)


def test_a_queue_that_stands_still_is_seen() -> None:
    drain, now = drained(10.0, 400)
    rates = [drain.rate("m", now + still) for still in (0.05, 1.0, 10.0, 60.0)]
    assert rates == sorted(rates, key=lambda each: -(each or 0.0))
    assert rates[-1] is not None
    assert rates[-1] < 2.0


def test_a_change_of_pace_is_learnt() -> None:
    drain, now = drained(100.0, 10_000)
    for _ in range(240):
        now += 1.0
        drain.placed("m", now, waited=5.0, waiting=True)
    assert drain.rate("m", now) == pytest.approx(1.0, rel=0.5)


def test_models_that_are_not_used_are_forgotten() -> None:
    drain, now = drained(1.0, 3)
    drain.prune(now + 100)
    assert len(drain) == 1
    drain.prune(now + 10_000)
    assert len(drain) == 0

"""The pause before a restart."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_stack.restarts import Restarts

lives = st.lists(st.floats(min_value=0, max_value=1e6), max_size=60)


def after(*lived: float) -> Restarts:
    restarts = Restarts()
    for seconds in lived:
        restarts = restarts.died(seconds)
    return restarts


@given(lives)
def test_the_pause_is_bounded(lived: list[float]) -> None:
    assert 0 <= after(*lived).delay <= 30


@given(st.integers(min_value=1, max_value=2000))
def test_the_pause_never_shrinks_while_it_keeps_dying(deaths: int) -> None:
    assert Restarts(deaths).delay <= Restarts(deaths + 1).delay


@given(lives)
def test_a_healthy_life_is_forgiven_at_once(lived: list[float]) -> None:
    assert after(*lived, 3600.0).delay == 0


def test_the_first_restart_is_at_once_and_the_third_is_not() -> None:
    assert after(5.0).delay == 0
    assert after(0.1, 0.1, 0.1).delay > 0.1

from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_scheduler.core.admission import Limits, Refusal, admit, overdue
from inferbus_scheduler.core.deadlines import Deadlines
from inferbus_scheduler.core.fairness import Shares, after_turn, next_class
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.core.request import Priority, Request

times = st.floats(0, 1e6, allow_nan=False)
limits = st.builds(Limits, max_queued=st.integers(1, 50), queue_timeout=st.floats(0.1, 100), retry_after=st.just(1.0))


def request(arrived_at: float, expires_at: float) -> Request:
    return Request(b"1" * 16, "a", "t", Priority.INTERACTIVE, arrived_at, expires_at)


@given(times, times, times, st.booleans(), st.integers(0, 60), limits)
def test_what_is_refused_has_one_true_reason(
    arrived: float, expires: float, now: float, known: bool, ahead: int, limits: Limits
) -> None:
    refusal = admit(request(arrived, expires), known_model=known, ahead=ahead, limits=limits, now=now)
    assert (refusal is None) == (expires > now and known and ahead < limits.max_queued)
    if refusal is not None:
        assert refusal.reason in ("deadline_exceeded", "model_not_found", "queue_full")
        assert (refusal.retry_after > 0) == (refusal.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED)


@given(times, times, times, st.none() | times, limits)
def test_nobody_waits_past_expiry_nor_too_long_without_a_worker(
    arrived: float, expires: float, now: float, unserved_since: float | None, limits: Limits
) -> None:
    outcome = overdue(request(arrived, expires), unserved_since=unserved_since, limits=limits, now=now)
    if isinstance(outcome, Refusal):
        if expires <= now:
            assert outcome.reason == "deadline_exceeded"
        else:
            assert unserved_since is not None
            assert outcome.reason == "no_worker"
            assert now >= max(arrived, unserved_since) + limits.queue_timeout
    else:
        assert now < outcome <= expires


@given(st.lists(st.sets(st.sampled_from(Priority), min_size=1), min_size=1, max_size=200))
def test_no_waiting_class_is_passed_over_for_ever(rounds: list[set[Priority]]) -> None:
    shares = Shares(background=4, batch=9)
    passed: dict[Priority, int] = {}
    waited: dict[Priority, int] = {}
    for waiting in rounds:
        # A class that stops waiting begins anew.
        waited = {priority: waited.get(priority, 0) for priority in waiting}
        passed = {priority: count for priority, count in passed.items() if priority in waiting}
        served = next_class(sorted(waiting), passed, shares)
        assert served in waiting
        passed = after_turn(served, sorted(waiting - {served}), passed)
        waited = {priority: 0 if priority is served else count + 1 for priority, count in waited.items()}
        assert waited.get(Priority.BACKGROUND, 0) <= shares.background + 1
        assert waited.get(Priority.BATCH, 0) <= shares.batch + 1


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), max_size=100), st.floats(0, 100))
def test_what_is_due_comes_once_and_in_order(entries: list[tuple[float, int]], now: float) -> None:
    deadlines = Deadlines()
    for at, number in entries:
        deadlines.set(at, bytes([number]))
    due = deadlines.due(now)
    assert len(due) == len(set(due))
    assert set(due) == {bytes([number]) for at, number in entries if at <= now}
    assert deadlines.due(now) == []


def test_deadlines_of_what_has_left_are_dropped() -> None:
    deadlines = Deadlines()
    for number in range(5000):
        deadlines.set(float(number), number.to_bytes(4, "big"))
    deadlines.compact(1, lambda request_id: request_id == (7).to_bytes(4, "big"))
    assert len(deadlines) == 1
    assert deadlines.due(10_000.0) == [(7).to_bytes(4, "big")]


def test_the_past_is_bounded_in_count_and_in_time() -> None:
    past: Remembered[int, str] = Remembered(3, 30.0)
    for number in range(5):
        past.put(number, str(number), now=float(number))
    assert len(past) == 3
    assert past.get(1, 5.0) is None
    assert past.get(4, 33.0) == "4"
    assert past.get(4, 35.0) is None
    past.put(9, "9", now=100.0)
    assert len(past) == 1
    assert past.pop(9, 100.0) == "9"
    assert past.pop(9, 100.0) is None

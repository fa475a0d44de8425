import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_scheduler.core.admission import Limits, QueueState, Refusal, admit, overdue
from inferbus_scheduler.core.deadlines import Deadlines
from inferbus_scheduler.core.fairness import Shares, after_turn, in_turn
from inferbus_scheduler.core.remembered import Remembered
from inferbus_scheduler.core.request import Priority, Request

times = st.floats(0, 1e6, allow_nan=False)
limits = st.builds(Limits, max_queued=st.integers(1, 50), queue_timeout=st.floats(0.1, 100), retry_after=st.just(1.0))
queues = st.builds(
    QueueState,
    ahead=st.integers(0, 120),
    own=st.integers(0, 60),
    part=st.floats(0.01, 1.0),
    rate=st.none() | st.floats(0.01, 1000),
)


def request(arrived_at: float, expires_at: float, **fields: object) -> Request:
    return Request(b"1" * 16, "a", "t", "p", Priority.INTERACTIVE, arrived_at, expires_at, **fields)  # type: ignore[arg-type]


@given(times, times, times, st.booleans(), queues, limits, st.integers(1, 2))
def test_what_is_refused_has_one_true_reason(
    arrived: float, expires: float, now: float, known: bool, queue: QueueState, limits: Limits, attempt: int
) -> None:
    asked = request(arrived, expires, attempt=attempt)
    refusal = admit(asked, known_model=known, queue=queue, limits=limits, now=now)
    in_time = not queue.rate or now + queue.before / queue.rate < expires
    if expires > now and known and queue.ahead < limits.max_queued and in_time:
        assert refusal is None, "who is within the bounds is taken"
    if refusal is None:
        assert expires > now
        assert attempt > 1 or (known and queue.ahead < 2 * limits.max_queued)
        return
    if attempt > 1:
        assert (refusal.reason, expires <= now) == ("deadline_exceeded", True), "it was admitted once"
    full = refusal.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    assert full == (refusal.reason == "queue_full")
    if full:
        assert queue.ahead >= limits.max_queued
        assert limits.retry_after <= refusal.retry_after <= limits.max_retry_after
    elif refusal.reason == "deadline_exceeded":
        assert expires <= now or (queue.rate is not None and now + queue.ahead / queue.rate >= expires)
    else:
        assert (refusal.reason, known, refusal.retry_after) == ("model_not_found", False, 0)


def test_a_full_queue_still_takes_who_has_less_than_his_part_of_it() -> None:
    limits = Limits(max_queued=100, queue_timeout=30.0, retry_after=1.0)

    def outcome(queue: QueueState) -> str:
        refusal = admit(request(0, 1000), known_model=True, queue=queue, limits=limits, now=0.0)
        return refusal.reason if refusal is not None else "queued"

    assert outcome(QueueState(ahead=99, own=99)) == "queued"
    assert outcome(QueueState(ahead=100, own=100)) == "queue_full"
    assert outcome(QueueState(ahead=100, own=0, part=0.5)) == "queued", "another tenant's first one"
    assert outcome(QueueState(ahead=120, own=49, part=0.5)) == "queued"
    assert outcome(QueueState(ahead=120, own=50, part=0.5)) == "queue_full"
    assert outcome(QueueState(ahead=200, own=0, part=0.1)) == "queue_full", "twice as many is the end"


def test_who_cannot_make_his_deadline_is_told_at_once_and_only_if_that_is_known() -> None:
    limits = Limits(max_queued=1000, queue_timeout=30.0, retry_after=1.0)
    asked = request(0.0, 10.0)

    def refused(queue: QueueState) -> Refusal | None:
        return admit(asked, known_model=True, queue=queue, limits=limits, now=0.0)

    slow = refused(QueueState(ahead=50, own=50, rate=2.0))
    assert slow is not None
    assert (slow.reason, slow.retry_after) == ("deadline_exceeded", 25.0)
    assert refused(QueueState(ahead=50, own=50, rate=None)) is None
    assert refused(QueueState(ahead=10, own=10, rate=2.0)) is None
    assert refused(QueueState(ahead=5000, own=0, part=0.5, rate=2.0)) is not None, "the queue is full"
    assert refused(QueueState(ahead=500, own=0, part=0.5, rate=2.0)) is None, "a tenant's first one has its turn soon"


@pytest.mark.parametrize(
    ("ahead", "rate", "told"), [(100, None, 1.0), (100, 20.0, 5.0), (100, 0.01, 300.0), (100, 1e4, 1.0)]
)
def test_retry_after_is_what_the_queue_takes_at_its_pace(ahead: int, rate: float | None, told: float) -> None:
    limits = Limits(max_queued=10, queue_timeout=30.0, retry_after=1.0)
    queue = QueueState(ahead=ahead, own=ahead, rate=rate)
    refusal = admit(request(0, 1e9), known_model=True, queue=queue, limits=limits, now=0.0)
    assert refusal is not None
    assert refusal.retry_after == told


@given(times, times, times, st.none() | times, limits, st.none() | st.floats(0.1, 1000))
def test_nobody_waits_past_expiry_nor_too_long_without_a_worker(
    arrived: float, expires: float, now: float, unserved_since: float | None, limits: Limits, patience: float | None
) -> None:
    asked = request(arrived, expires)
    outcome = overdue(asked, unserved_since=unserved_since, limits=limits, now=now, patience=patience)
    if isinstance(outcome, Refusal):
        if expires <= now:
            assert outcome.reason == "deadline_exceeded"
        else:
            assert unserved_since is not None
            assert outcome.reason == "no_worker"
            timeout = limits.queue_timeout if patience is None else patience
            assert now >= max(arrived, unserved_since) + timeout
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
        order = in_turn(sorted(waiting), passed, shares)
        assert sorted(order) == sorted(waiting)
        served = order[0]
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

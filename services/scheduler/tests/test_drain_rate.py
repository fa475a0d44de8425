import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_scheduler.core.admission import Limits, QueueState, admit
from inferbus_scheduler.core.drain_rate import ENOUGH, DrainRate
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.fleet import Fleet


def drained(rate: float, count: int, since: float = 0.0, model: str = "m") -> tuple[DrainRate, float]:
    """A queue that moves at ``rate``, and when it was last seen."""
    drain = DrainRate()
    now = since
    for _ in range(count):
        now += 1 / rate
        drain.placed(model, now, waited=5.0, waiting=True)
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


@given(
    pace=st.floats(0.2, 50.0),
    away=st.floats(0.0, 500.0),
    after=st.floats(0.2, 50.0),
    adapter=st.booleans(),
)
def test_workers_that_have_all_gone_say_nothing_of_those_that_come(
    pace: float, away: float, after: float, adapter: bool
) -> None:
    """Neither how fast they were nor how long nobody was there: only the pace since they came."""
    model = "m:x" if adapter else "m"
    drain, now = drained(pace, ENOUGH + 10, model=model)
    assert drain.rate(model, now) is not None
    drain.serving("m", False, now)
    assert drain.rate(model, now + away) is None
    now += away
    drain.serving("m", True, now)
    came = now
    for _ in range(ENOUGH):
        assert drain.rate(model, now) is None, "it is not measured yet"
        now += 1 / after
        drain.placed(model, now, waited=now - came + away + 100.0, waiting=True)
    assert drain.rate(model, now) == pytest.approx(after, rel=0.01)


def test_other_models_keep_their_pace() -> None:
    drain, now = drained(4.0, 200)
    drain.serving("other", False, now)
    drain.serving("other", True, now)
    assert drain.rate("m", now) == pytest.approx(4.0, rel=0.05)


def test_what_left_the_queue_without_a_place_waits_no_more() -> None:
    drain, now = drained(10.0, 400)
    drain.emptied("m", now)
    assert drain.rate("m", now + 60.0) == pytest.approx(10.0, rel=0.05), "nobody waited meanwhile"
    drain.placed("m", now + 60.0, waited=0.1, waiting=False)
    assert drain.rate("m", now + 60.0) == pytest.approx(10.0, rel=0.05)
    drain.emptied("other", now)
    assert len(drain) == 1


def test_the_time_that_it_stood_still_before_the_last_one_left_counts() -> None:
    drain, now = drained(10.0, 400)
    standing = drain.rate("m", now + 30.0)
    drain.emptied("m", now + 30.0)
    assert drain.rate("m", now + 100.0) == pytest.approx(standing)


def test_a_request_is_not_refused_by_the_pace_of_workers_that_are_gone() -> None:
    fleet = Fleet(heartbeat_timeout=3.0, reconnect_grace=0.0, now=0.0)
    rate = DrainRate()
    fleet.on_serving = rate.serving
    worker = WorkerRecord(worker="w", boot=1, model="m", capacity=1, state=WorkerState.WORKER_STATE_ACTIVE)

    def refused(now: float) -> bool:
        request = Request(b"r" * 16, "m", "t", "p", Priority.INTERACTIVE, now, now + 60.0)
        found = QueueState(ahead=30, own=30, rate=rate.rate("m", now))
        limits = Limits(max_queued=1000, queue_timeout=30.0, retry_after=1.0)
        return admit(request, known_model=True, queue=found, limits=limits, now=now) is not None

    fleet.registered("w", worker, 0.0)
    fleet.heartbeat(Heartbeat(worker="w", boot=1), 0.0)
    for now in range(1, 100):
        rate.placed("m", 10.0 * now, waited=10.0, waiting=True)
    assert refused(991.0), "30 before it, one every ten seconds"
    fleet.lease_ended("w", 992.0)
    assert not refused(993.0), "who comes next may be faster"
    worker.boot = 2
    fleet.registered("w", worker, 1050.0)
    fleet.heartbeat(Heartbeat(worker="w", boot=2), 1050.0)
    for _ in range(4):
        rate.placed("m", 1050.1, waited=60.0, waiting=True)
    assert not refused(1050.2)

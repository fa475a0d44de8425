"""What becomes of a request whose attempt is over, as a pure decision."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.request_pb2 import GenerateRequest, Resume
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_contracts.operations import operation_of
from inferbus_contracts.recovery import Recovered, begun
from inferbus_scheduler.core.migration import (
    PATIENCE,
    TROUBLE_SECONDS,
    TROUBLED_PATIENCE,
    Closed,
    Deaths,
    End,
    Orphan,
    Reason,
    Requeue,
    fate,
    refusal_of,
    with_resume,
)
from inferbus_scheduler.endings import close_of

NOW_US = 1_795_000_000_000_000
REQUEST = bytes(range(16))


def orphan(attempt: int = 1, resume: Resume | None = None, **fields: Any) -> Orphan:
    return Orphan(
        sequence=7, request_id=REQUEST, attempt=attempt, edge="e", model="m", resume=resume or Resume(), stored_us=0,
        **fields,
    )  # fmt: skip


def found(ids: list[int], attempt: int = 1, closed: bool = False) -> Recovered:
    first, last = (NOW_US + 1, NOW_US + 9) if ids else (0, 0)
    texts = [(at, f"{token} ".encode()) for at, token in enumerate(ids)]
    return Recovered(attempt, list(ids), texts, NOW_US, first, last, closed)


def decided(one: Orphan, on_log: Recovered, reason: Reason = Reason.WORKER_LOST, **fields: Any) -> Any:
    return fate(one, on_log, reason, **{"cancelled": False, "patience": PATIENCE, "now_us": NOW_US + 50, **fields})


def test_what_it_waited_for_its_model_is_kept_for_its_next_attempt_and_for_its_end() -> None:
    outcome = decided(orphan(cold_start_us=7_000), found([]))
    assert outcome.resume.cold_start_us == 7_000
    moved = with_resume(GenerateRequest(request_id=REQUEST), outcome.resume, "w")
    assert close_of(moved, None, NOW_US).cold_start_us == 7_000


def test_it_goes_on_with_all_that_counts() -> None:
    outcome = decided(orphan(), found([5, 6, 7]))
    assert isinstance(outcome, Requeue)
    resume = outcome.resume
    assert (resume.attempt, list(resume.token_ids), resume.text) == (2, [5, 6, 7], b"5 6 7 ")
    assert (resume.reason, resume.fruitless_deaths) == ("worker_lost", 0)
    assert resume.first_token_time.ToMicroseconds() == NOW_US + 1
    assert resume.last_token_time.ToMicroseconds() == NOW_US + 9
    assert resume.first_started_time.ToMicroseconds() == NOW_US
    assert resume.interrupted_time.ToMicroseconds() == NOW_US + 50


def test_where_nothing_was_made_no_times_are_said() -> None:
    resume = decided(orphan(), Recovered()).resume
    assert not any(resume.HasField(time) for time in ("first_token_time", "last_token_time", "first_started_time"))


def test_what_had_ended_is_left_alone() -> None:
    assert decided(orphan(), found([5], closed=True), cancelled=True) == Closed()


def test_what_was_cancelled_ends_with_what_it_had() -> None:
    outcome = decided(orphan(), found([5, 6]), cancelled=True)
    assert isinstance(outcome, End)
    assert outcome.refusal is None
    assert list(outcome.resume.token_ids) == [5, 6]


def test_the_second_death_without_a_token_ends_it() -> None:
    first = decided(orphan(), Recovered())
    assert isinstance(first, Requeue)
    assert first.resume.fruitless_deaths == 1
    second = decided(orphan(2, first.resume), begun(first.resume))
    assert isinstance(second, End)
    assert second.refusal is not None
    assert (second.refusal.error_class, second.refusal.reason) == (ErrorClass.ERROR_CLASS_INTERNAL, "worker_lost")
    assert "twice" in second.refusal.message


def test_one_token_makes_up_for_all_deaths_before() -> None:
    suspect = Resume(attempt=2, token_ids=[1], fruitless_deaths=1)
    assert decided(orphan(2, suspect), found([1, 2], 2)).resume.fruitless_deaths == 0
    assert isinstance(decided(orphan(2, suspect), found([1], 2)), End)


@pytest.mark.parametrize("reason", [Reason.DRAINED, Reason.PREEMPTED, Reason.RECALLED])
def test_only_deaths_are_counted(reason: Reason) -> None:
    suspect = Resume(attempt=3, fruitless_deaths=1)
    outcome = decided(orphan(3, suspect), begun(suspect), reason)
    assert isinstance(outcome, Requeue)
    assert outcome.resume.fruitless_deaths == 1


def test_what_never_reached_its_worker_did_not_kill_it() -> None:
    suspect = Resume(attempt=2, fruitless_deaths=1)
    outcome = decided(orphan(2, suspect, delivered=False), begun(suspect))
    assert isinstance(outcome, Requeue)
    assert outcome.resume.fruitless_deaths == 1


def test_the_request_keeps_all_else() -> None:
    request = GenerateRequest(request_id=REQUEST, edge="e", reply=b"form", resume=Resume(attempt=2, token_ids=[1, 2]))
    changed = with_resume(request, Resume(attempt=3, token_ids=[1]), "w")
    assert changed.reply == b"form"
    assert changed.resume == Resume(attempt=3, token_ids=[1], worker="w")


def test_in_a_calm_fleet_two_deaths_are_proof() -> None:
    deaths = Deaths()
    deaths.died(0.0, explained=True)
    assert deaths.patience(1.0) == PATIENCE


def test_where_workers_die_of_other_causes_more_proof_is_asked_for() -> None:
    deaths = Deaths()
    deaths.died(5.0, explained=False)
    assert deaths.patience(6.0) == TROUBLED_PATIENCE
    assert deaths.patience(5.0 + TROUBLE_SECONDS) == TROUBLED_PATIENCE
    assert deaths.patience(6.0 + TROUBLE_SECONDS) == PATIENCE


def test_what_is_not_all_on_the_log_does_not_go_on() -> None:
    on_log = found([1])
    on_log.gap = True
    outcome = decided(orphan(), on_log)
    assert isinstance(outcome, End)
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "token_gap"
    on_log.closed = True
    assert decided(orphan(), on_log) == Closed()


@pytest.mark.parametrize("kind", ["chat", "prompt", "embedding", "inference", None])
def test_what_is_only_to_be_ended_has_all_that_its_end_says_and_nothing_large(kind: str | None) -> None:
    request = GenerateRequest(
        request_id=REQUEST, edge="e", reply=b"form", prefix=b"p" * 1000, cache_salt=b"s" * 1000, asked_model="large"
    )
    request.labels.end_user = "u"
    request.constraint.json_schema = "x" * 1000
    request.sampling.stop.append("x" * 1000)
    if kind is not None:
        getattr(request, kind).SetInParent()
    request.resume.text = b"x" * 1000
    before = operation_of(request)
    outcome = decided(orphan(), found(list(range(1000))), cancelled=True)
    with_resume(request, outcome.resume, "w")
    close = close_of(request, refusal_of(request.resume), NOW_US)
    assert request.ByteSize() < 200
    assert (close.attempt, close.usage.output_tokens, close.operation) == (2, 1000, before)
    assert (close.labels.end_user, request.reply, request.asked_model) == ("u", b"form", "large")
    assert close.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert close.first_token_time.ToMicroseconds() == NOW_US + 1


@pytest.mark.parametrize("end", ["worker_lost", "too_large", "token_gap", "a word of a later version"])
def test_every_end_but_a_cancel_is_a_refusal(end: str) -> None:
    refusal = refusal_of(Resume(attempt=3, end=end, fruitless_deaths=2))
    assert refusal is not None
    assert refusal.reason == ("token_gap" if end == "token_gap" else "worker_lost")
    assert refusal_of(Resume(attempt=3, end="cancelled")) is None


attempts = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(Reason), st.booleans()), max_size=12)


@given(attempts, st.sampled_from([PATIENCE, TROUBLED_PATIENCE]))
def test_attempts_ascend_nothing_is_lost_and_a_killer_is_stopped(
    history: list[tuple[int, Reason, bool]], patience: int
) -> None:
    resume, attempt, tokens, deaths = Resume(), 1, [], 0
    for made, reason, delivered in history:
        on_log = begun(resume)
        fresh = list(range(len(tokens), len(tokens) + made))
        on_log.ids += fresh
        on_log.texts.append((len(tokens), b"x" * made))
        tokens += fresh
        deaths = 0 if made else deaths + (reason is Reason.WORKER_LOST and delivered)
        outcome = decided(orphan(attempt, resume, delivered=delivered), on_log, reason, patience=patience)
        assert list(outcome.resume.token_ids) == tokens
        assert len(outcome.resume.text) == len(tokens)
        assert outcome.resume.attempt == attempt + 1
        if isinstance(outcome, End):
            assert deaths >= patience
            return
        assert deaths < patience or reason is not Reason.WORKER_LOST
        resume, attempt = outcome.resume, attempt + 1

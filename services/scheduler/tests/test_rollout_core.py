"""The life of a rollout: what moves it, what ends it, and what is written down of that."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inferbus.bus.v1.revision_pb2 import RevisionStage, RolloutRecord, RolloutStrategy
from inferbus_scheduler.core.judging import Figure, Verdict
from inferbus_scheduler.core.rollout import (
    MOST_EVENTS,
    MOVES,
    PAUSED,
    PROMOTED,
    ROLLED_BACK,
    RUNNING,
    WARMING,
    Facts,
    Terms,
    decide,
    first,
    paused,
    promoted,
    resumed,
    returned,
    rolled_back,
    stages,
    started,
    terms_of,
)
from inferbus_scheduler.core.traffic import WHOLE, shares

CANARY = RolloutStrategy.ROLLOUT_STRATEGY_CANARY
BLUE_GREEN = RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN
SECOND = 1_000_000
TERMS = Terms(step_seconds=60.0, min_requests=50, min_agreement=0.5, patience_seconds=900.0)
AGREES = Figure("agreement", 0.9, 1.0, 8, 8, None, 0.5, Verdict.GOOD)
DIFFERS = replace(AGREES, candidate=0.1, verdict=Verdict.BAD)
BOTH = {"old": 2, "new": 1}


def figures(verdict: Verdict, requests: int = 100) -> tuple[Figure, ...]:
    return (
        Figure("error_rate", 0.0, 0.0, requests, 900, None, 0.01, Verdict.GOOD),
        Figure("ttft", 0.2, 0.1, requests, 900, 0.001, 0.12, verdict),
    )


def begun(strategy: RolloutStrategy.ValueType = CANARY, *steps: int) -> RolloutRecord:
    return started(RolloutRecord(model="m", stable_revision="old"), "new", strategy, steps, 0, "key")


def decided(record: RolloutRecord, facts: Facts, seconds: float) -> RolloutRecord:
    made = decide(record, TERMS, facts, round(seconds * SECOND))
    assert made is not None
    return made


def test_a_good_one_goes_by_its_steps_to_all_requests() -> None:
    record = begun()
    assert decide(record, TERMS, Facts({"old": 2}), SECOND) is None
    assert decide(record, TERMS, Facts(BOTH), SECOND) is None, "not probed yet"
    record = decided(record, Facts(BOTH, agreement=AGREES), 1)
    assert (record.state, record.weight_permille) == (RUNNING, 50)
    good = Facts(BOTH, figures=figures(Verdict.GOOD))
    assert decide(record, TERMS, good, 30 * SECOND) is None, "the step has a time"
    assert decide(record, TERMS, Facts(BOTH, figures=figures(Verdict.GOOD, 49)), 100 * SECOND) is None
    weights = []
    for number in range(1, 4):
        record = decided(record, good, 70 * number)
        weights.append(record.weight_permille)
    assert weights == [250, WHOLE, 0]
    assert (record.state, record.stable_revision, record.previous_revision) == (PROMOTED, "new", "old")
    assert shares(record) == (("new", WHOLE),)
    told = record.events[-1]
    assert [figure.name for figure in told.figures] == ["error_rate", "ttft"]
    assert [event.action for event in record.events] == ["started", "warm", "advanced", "advanced", "promoted"]
    assert decide(record, TERMS, good, 1000 * SECOND) is None


def test_one_bad_figure_takes_it_back_at_once_whatever_the_step_has_still_to_last() -> None:
    record = decided(begun(), Facts(BOTH, agreement=AGREES), 1)
    record = decided(record, Facts(BOTH, figures=figures(Verdict.BAD, 20)), 3)
    assert (record.state, record.candidate_revision, record.weight_permille) == (ROLLED_BACK, "", 0)
    event = record.events[-1]
    assert (event.action, event.reason, event.revision, event.weight_permille) == ("rolled_back", "ttft", "new", 50)
    assert "allowed 0.12" in event.message
    assert shares(record) == (("old", WHOLE),)


def test_one_that_writes_something_else_never_gets_a_request() -> None:
    record = decided(begun(), Facts(BOTH, agreement=DIFFERS), 1)
    assert (record.state, record.events[-1].reason) == (ROLLED_BACK, "agreement")


def test_one_without_workers_is_waited_for_and_given_up() -> None:
    record = begun()
    assert decide(record, TERMS, Facts({"old": 1}), 899 * SECOND) is None
    assert decided(record, Facts({"old": 1}), 900).events[-1].reason == "no_worker"
    running = decided(record, Facts(BOTH, agreement=AGREES), 1)
    assert decide(running, TERMS, Facts({"old": 1}, absent_seconds=10.0), 15 * SECOND) is None
    assert decided(running, Facts({"old": 1}, absent_seconds=21.0), 25).state == ROLLED_BACK


def test_without_requests_it_waits_for_the_operator() -> None:
    record = decided(begun(), Facts(BOTH, agreement=AGREES), 1)
    few = Facts(BOTH, figures=figures(Verdict.OPEN, 3))
    record = decided(record, few, 902)
    assert (record.state, record.weight_permille, record.events[-1].reason) == (PAUSED, 50, "too_few_requests")
    assert decide(record, TERMS, Facts(BOTH, figures=figures(Verdict.GOOD)), 5000 * SECOND) is None
    assert decided(record, Facts(BOTH, figures=figures(Verdict.BAD)), 5000).state == ROLLED_BACK
    assert resumed(record, 0, "key").state == RUNNING


def test_blue_green_takes_over_when_it_has_as_many_workers_and_can_go_back() -> None:
    record = begun(BLUE_GREEN)
    assert decide(record, TERMS, Facts({"old": 2, "new": 1}, agreement=AGREES), SECOND) is None
    record = decided(record, Facts({"old": 2, "new": 2}, agreement=AGREES), 2)
    assert (record.state, record.stable_revision, record.keep_previous) == (PROMOTED, "new", True)
    assert shares(record) == (("new", WHOLE), ("old", WHOLE))
    back = returned(record, 3 * SECOND, "key")
    assert (back.stable_revision, back.previous_revision) == ("old", "new")
    assert stages(record, back)["new"] == RevisionStage.REVISION_STAGE_DEPRECATED
    assert stages(record, back)["old"] == RevisionStage.REVISION_STAGE_STABLE


def test_a_policy_has_defaults_and_derived_ones_must_agree() -> None:
    record = begun()
    assert terms_of(record, derived=False).min_agreement == 0.0
    assert terms_of(record, derived=True).min_agreement == 0.5
    record.policy.min_agreement = 0.0
    record.policy.step_time.seconds = 5
    terms = terms_of(record, derived=True)
    assert (terms.min_agreement, terms.step_seconds, terms.min_requests) == (0.0, 5.0, 50)


class Life(RuleBasedStateMachine):
    """Whatever is known and whatever operators do, no illegal move is reachable, and the record is never in between."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.record = RolloutRecord(model="m", stable_revision="r0")
        self.number = 0

    @initialize()
    def fresh(self) -> None:
        self.take(first(RolloutRecord(model="m"), "r0", 0, "key"))

    def take(self, made: RolloutRecord | None) -> None:
        if made is None:
            return
        if made.state != self.record.state:
            assert made.state in MOVES[self.record.state]
        assert len(made.events) in (len(self.record.events) + 1, MOST_EVENTS)
        self.record = made

    @precondition(lambda self: not self.record.candidate_revision)
    @rule(
        strategy=st.sampled_from([CANARY, BLUE_GREEN]),
        steps=st.lists(st.integers(1, WHOLE), max_size=4),
    )
    def start(self, strategy: RolloutStrategy.ValueType, steps: list[int]) -> None:
        self.number += 1
        self.take(started(self.record, f"r{self.number}", strategy, steps, self.now, "key"))

    @rule(
        seconds=st.integers(0, 2000),
        candidates=st.integers(0, 3),
        absent=st.floats(0, 60),
        agreement=st.sampled_from([None, AGREES, DIFFERS]),
        verdict=st.sampled_from([None, *Verdict]),
        requests=st.integers(0, 200),
    )
    def look(
        self,
        seconds: int,
        candidates: int,
        absent: float,
        agreement: Figure | None,
        verdict: Verdict | None,
        requests: int,
    ) -> None:
        self.now += seconds * SECOND
        workers: Mapping[str, int] = {self.record.stable_revision: 2, self.record.candidate_revision: candidates}
        known = None if verdict is None else figures(verdict, requests)
        before = self.record
        self.take(decide(before, TERMS, Facts(workers, absent, agreement, known), self.now))
        if before.state == RUNNING and verdict is Verdict.BAD:
            assert self.record.state == ROLLED_BACK

    @precondition(lambda self: self.record.candidate_revision)
    @rule(how=st.sampled_from([promoted, rolled_back]))
    def end(self, how: object) -> None:
        self.take(how(self.record, self.now, "key"))  # type: ignore[operator]

    @precondition(lambda self: self.record.state == RUNNING)
    @rule()
    def pause(self) -> None:
        self.take(paused(self.record, self.now, "key"))

    @precondition(lambda self: self.record.state == PAUSED)
    @rule()
    def resume(self) -> None:
        self.take(resumed(self.record, self.now, "key"))

    @precondition(lambda self: not self.record.candidate_revision and self.record.previous_revision)
    @rule()
    def go_back(self) -> None:
        self.take(returned(self.record, self.now, "key"))

    @invariant()
    def whole(self) -> None:
        record = self.record
        assert record.stable_revision
        assert record.candidate_revision != record.stable_revision
        assert bool(record.candidate_revision) == (record.state in (WARMING, RUNNING, PAUSED))
        assert 0 <= record.weight_permille <= WHOLE
        if record.state in (RUNNING, PAUSED):
            assert record.weight_permille in record.step_permille
        else:
            assert record.weight_permille == 0
        assert len(record.events) <= MOST_EVENTS
        parts = dict(shares(record))
        assert record.stable_revision in parts
        assert all(part > 0 for part in parts.values())


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)

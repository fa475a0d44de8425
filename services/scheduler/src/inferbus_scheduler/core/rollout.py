"""The life of a rollout as a table of moves and pure functions: a record and what is known in, the next record out.

    started → WARMING → RUNNING(step, step, …) → PROMOTED
                 ╰──────────┴─▶ ROLLED_BACK            RUNNING ⇄ PAUSED

A candidate is warm when it has as many workers as its first step needs and its probes were judged. A step is left when
it has lasted its time, has enough requests, and no figure is bad; by one bad figure the whole rollout is left at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.revision_pb2 import (
    RevisionStage,
    RolloutEvent,
    RolloutFigure,
    RolloutRecord,
    RolloutState,
    RolloutStrategy,
    RolloutVerdict,
)

from inferbus_scheduler.core.judging import Bounds, Figure, Verdict
from inferbus_scheduler.core.traffic import WHOLE

WARMING = RolloutState.ROLLOUT_STATE_WARMING
RUNNING = RolloutState.ROLLOUT_STATE_RUNNING
PAUSED = RolloutState.ROLLOUT_STATE_PAUSED
PROMOTED = RolloutState.ROLLOUT_STATE_PROMOTED
ROLLED_BACK = RolloutState.ROLLOUT_STATE_ROLLED_BACK
MOVES: Mapping[int, frozenset[int]] = {
    WARMING: frozenset({RUNNING, PROMOTED, ROLLED_BACK}),
    RUNNING: frozenset({RUNNING, PAUSED, PROMOTED, ROLLED_BACK}),
    PAUSED: frozenset({RUNNING, PROMOTED, ROLLED_BACK}),
    PROMOTED: frozenset({WARMING}),
    ROLLED_BACK: frozenset({WARMING}),
    RolloutState.ROLLOUT_STATE_UNSPECIFIED: frozenset({WARMING, PROMOTED}),
}
"""From where to where; between PROMOTED or ROLLED_BACK and WARMING lies the start of another rollout."""
STEPS = (50, 250, WHOLE)
MOST_EVENTS = 64
# So long a candidate may be without a worker before it is held to be dead: a restart of one takes less.
_ABSENT_SECONDS = 20.0
# Greedy texts part at the first close call. On the probes, of SmolLM2 in F32: F16 1.00, Q8_0 0.80, Q4_0, which is too
# coarse for it, 0.28 (measured).
_AGREEMENT = 0.5
_CANARY = RolloutStrategy.ROLLOUT_STRATEGY_CANARY
_VERDICTS = {
    Verdict.GOOD: RolloutVerdict.ROLLOUT_VERDICT_GOOD,
    Verdict.BAD: RolloutVerdict.ROLLOUT_VERDICT_BAD,
    Verdict.OPEN: RolloutVerdict.ROLLOUT_VERDICT_OPEN,
}


@dataclass(frozen=True, slots=True)
class Terms:
    """A policy with its defaults filled in. Times in seconds. ``min_agreement`` 0: not asked for."""

    step_seconds: float = 60.0
    min_requests: int = 50
    min_agreement: float = 0.0
    patience_seconds: float = 900.0
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known now. ``workers``: that may be chosen, by revision. ``absent_seconds``: since when the candidate has
    none. ``agreement``: of the probes; None: not probed yet. ``figures``: of the step so far; None: not known yet."""

    workers: Mapping[str, int]
    absent_seconds: float = 0.0
    agreement: Figure | None = None
    figures: tuple[Figure, ...] | None = None


def terms_of(record: RolloutRecord, *, derived: bool) -> Terms:
    """``derived``: the candidate is the stable one's weights in another form, so their texts should agree."""
    policy, standard = record.policy, Terms()
    bounds = Bounds(
        slowdown=policy.max_slowdown if policy.HasField("max_slowdown") else standard.bounds.slowdown,
        errors=policy.max_error_increase if policy.HasField("max_error_increase") else standard.bounds.errors,
        significance=policy.significance if policy.HasField("significance") else standard.bounds.significance,
    )
    agreement = _AGREEMENT if derived else 0.0
    return Terms(
        step_seconds=_seconds(policy.step_time) if policy.HasField("step_time") else standard.step_seconds,
        min_requests=policy.min_requests if policy.HasField("min_requests") else standard.min_requests,
        min_agreement=policy.min_agreement if policy.HasField("min_agreement") else agreement,
        patience_seconds=_seconds(policy.patience) if policy.HasField("patience") else standard.patience_seconds,
        bounds=bounds,
    )


def decide(record: RolloutRecord, terms: Terms, facts: Facts, now_us: int) -> RolloutRecord | None:
    """The record as it should be from now on, with the event that says why; None: nothing changes."""
    candidate = record.candidate_revision
    if not candidate or record.state not in (WARMING, RUNNING, PAUSED):
        return None
    if record.state == WARMING:
        return _warmed(record, terms, facts, now_us)
    bad = [figure for figure in facts.figures or () if figure.verdict is Verdict.BAD]
    if bad:
        told = "; ".join(map(_told, bad))
        return _rolled_back(record, bad[0].name, f"{candidate} is worse: {told}", facts.figures or (), now_us)
    if facts.absent_seconds > _ABSENT_SECONDS:
        return _rolled_back(record, "no_worker", f"{candidate} has no worker any more.", facts.figures or (), now_us)
    if record.state == PAUSED or facts.figures is None:
        return None
    lasted = (now_us - _micros(record.step_time)) / 1e6
    seen = next((figure.candidate_samples for figure in facts.figures if figure.name == "error_rate"), 0)
    if lasted >= terms.step_seconds and seen >= terms.min_requests:
        return _advanced(record, facts.figures, now_us)
    if lasted >= max(terms.patience_seconds, terms.step_seconds):
        message = f"Of {candidate} there were {seen} requests, and {terms.min_requests} are needed to judge it."
        return _moved(record, PAUSED, "paused", "too_few_requests", message, facts.figures, now_us)
    return None


def _warmed(record: RolloutRecord, terms: Terms, facts: Facts, now_us: int) -> RolloutRecord | None:
    candidate, blue_green = record.candidate_revision, record.strategy == RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN
    figures = (facts.agreement,) if facts.agreement is not None else ()
    if facts.agreement is not None and facts.agreement.verdict is Verdict.BAD:
        message = f"{candidate} does not write what {record.stable_revision} writes: {_told(facts.agreement)}"
        return _rolled_back(record, "agreement", message, figures, now_us)
    needed = max(1, facts.workers.get(record.stable_revision, 0)) if blue_green else 1
    if facts.workers.get(candidate, 0) >= needed and facts.agreement is not None:
        if blue_green:
            return _promoted(record, "warm", figures, now_us)
        return _stepped(record, record.step_permille[0] if record.step_permille else WHOLE, "warm", figures, now_us)
    if (now_us - _micros(record.step_time)) / 1e6 >= terms.patience_seconds:
        message = f"{candidate} has {facts.workers.get(candidate, 0)} of {needed} workers."
        return _rolled_back(record, "no_worker", message, figures, now_us)
    return None


def _advanced(record: RolloutRecord, figures: Iterable[Figure], now_us: int) -> RolloutRecord:
    following = next((step for step in record.step_permille if step > record.weight_permille), None)
    if following is None or record.weight_permille >= WHOLE:
        return _promoted(record, "judged", figures, now_us)
    return _stepped(record, following, "judged", figures, now_us)


def _stepped(record: RolloutRecord, weight: int, reason: str, figures: Iterable[Figure], now_us: int) -> RolloutRecord:
    made = _copy(record)
    made.weight_permille = weight
    action = "warm" if record.state == WARMING else "advanced"
    message = f"{made.candidate_revision} has {weight / 10:g} % of the requests."
    return _moved(made, RUNNING, action, reason, message, figures, now_us)


def _promoted(
    record: RolloutRecord, reason: str, figures: Iterable[Figure], now_us: int, actor: str = ""
) -> RolloutRecord:
    made = _copy(record)
    made.previous_revision, made.stable_revision = record.stable_revision, record.candidate_revision
    made.keep_previous = record.strategy == RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN
    made.candidate_revision, made.weight_permille = "", 0
    message = f"{made.stable_revision} is stable, in the place of {made.previous_revision or 'nothing'}."
    return _moved(
        made, PROMOTED, "promoted", reason, message, figures, now_us, actor=actor, of=record.candidate_revision
    )


def _rolled_back(
    record: RolloutRecord, reason: str, message: str, figures: Iterable[Figure], now_us: int, actor: str = ""
) -> RolloutRecord:
    made = _copy(record)
    made.candidate_revision, made.weight_permille = "", 0
    return _moved(
        made, ROLLED_BACK, "rolled_back", reason, message, figures, now_us, actor=actor, of=record.candidate_revision,
        weight=record.weight_permille,
    )  # fmt: skip


def started(
    record: RolloutRecord,
    candidate: str,
    strategy: RolloutStrategy.ValueType,
    steps: Iterable[int],
    now_us: int,
    actor: str,
) -> RolloutRecord:
    """A rollout of ``candidate`` begins. ``record``: with its stable revision, and without a candidate."""
    made = _copy(record)
    made.candidate_revision, made.strategy, made.weight_permille = candidate, strategy or _CANARY, 0
    made.step_permille[:] = _steps(steps)
    # Whatever was kept for a return gives its place to what comes.
    made.keep_previous = False
    message = f"{candidate} is to serve in the place of {made.stable_revision}."
    return _moved(made, WARMING, "started", "operator", message, (), now_us, actor=actor)


def first(record: RolloutRecord, revision: str, now_us: int, actor: str) -> RolloutRecord:
    """Of a model that nothing serves: stable at once."""
    made = _copy(record)
    made.stable_revision = revision
    message = f"{revision} is the first to serve this model."
    return _moved(made, PROMOTED, "promoted", "first", message, (), now_us, actor=actor, of=revision)


def promoted(record: RolloutRecord, now_us: int, actor: str) -> RolloutRecord:
    """By hand, whatever the figures say."""
    return _promoted(record, "operator", (), now_us, actor)


def rolled_back(record: RolloutRecord, now_us: int, actor: str) -> RolloutRecord:
    """By hand."""
    message = f"{record.candidate_revision} was taken back."
    return _rolled_back(record, "operator", message, (), now_us, actor)


def paused(record: RolloutRecord, now_us: int, actor: str) -> RolloutRecord:
    return _moved(record, PAUSED, "paused", "operator", "No step is taken by itself.", (), now_us, actor=actor)


def resumed(record: RolloutRecord, now_us: int, actor: str) -> RolloutRecord:
    """Its step begins anew."""
    return _moved(record, RUNNING, "resumed", "operator", "The step begins anew.", (), now_us, actor=actor)


def returned(record: RolloutRecord, now_us: int, actor: str) -> RolloutRecord:
    """What was stable before is stable again, at once: its workers are there with ``keep_previous``, else they are
    started, and until then what is there serves."""
    made = _copy(record)
    made.stable_revision, made.previous_revision = record.previous_revision, record.stable_revision
    made.keep_previous = record.keep_previous
    message = f"{made.stable_revision} is stable again, in the place of {made.previous_revision}."
    return noted(made, "returned", "operator", message, now_us, actor, revision=made.stable_revision)


def noted(
    record: RolloutRecord, action: str, reason: str, message: str, now_us: int, actor: str, *, revision: str = ""
) -> RolloutRecord:
    """With one more event, and in the state that it is in."""
    made = _copy(record)
    made.events.add(
        event_time=_stamp(now_us), action=action, revision=revision, weight_permille=record.weight_permille,
        reason=reason, message=message, actor_key_id=actor,
    )  # fmt: skip
    return _dated(made, now_us)


def stages(before: RolloutRecord | None, after: RolloutRecord) -> dict[str, RevisionStage.ValueType]:
    """Where each revision that the change is about stands after it, as far as it :func:`may_become` that."""
    made: dict[str, RevisionStage.ValueType] = {}
    left = () if before is None else (before.candidate_revision, before.stable_revision)
    for name in (*left, after.previous_revision):
        if name and name not in (after.candidate_revision, after.stable_revision):
            was_tried = before is not None and name == before.candidate_revision
            made[name] = RevisionStage.REVISION_STAGE_DRAFT if was_tried else RevisionStage.REVISION_STAGE_DEPRECATED
    if after.candidate_revision:
        made[after.candidate_revision] = RevisionStage.REVISION_STAGE_CANARY
    if after.stable_revision:
        made[after.stable_revision] = RevisionStage.REVISION_STAGE_STABLE
    return made


def may_become(now: RevisionStage.ValueType, wanted: RevisionStage.ValueType) -> bool:
    """Deprecated is only what has served: what an operator has retired since, or made a draft again, stays so."""
    served = (RevisionStage.REVISION_STAGE_STABLE, RevisionStage.REVISION_STAGE_CANARY)
    return wanted != RevisionStage.REVISION_STAGE_DEPRECATED or now in served


def may_move(record: RolloutRecord, to: int) -> bool:
    return to in MOVES[record.state]


def _moved(
    record: RolloutRecord,
    state: RolloutState.ValueType,
    action: str,
    reason: str,
    message: str,
    figures: Iterable[Figure],
    now_us: int,
    *,
    actor: str = "",
    of: str = "",
    weight: int | None = None,
) -> RolloutRecord:
    made = _copy(record)
    made.state = state
    made.step_time.CopyFrom(_stamp(now_us))
    made.events.add(
        event_time=_stamp(now_us),
        action=action,
        revision=of or made.candidate_revision,
        weight_permille=made.weight_permille if weight is None else weight,
        reason=reason,
        message=message,
        actor_key_id=actor,
        figures=map(wire_figure, figures),
    )
    return _dated(made, now_us)


def _dated(made: RolloutRecord, now_us: int) -> RolloutRecord:
    del made.events[:-MOST_EVENTS]
    made.update_time.CopyFrom(_stamp(now_us))
    if not made.HasField("create_time"):
        made.create_time.CopyFrom(_stamp(now_us))
    return made


def wire_figure(figure: Figure) -> RolloutFigure:
    return RolloutFigure(
        name=figure.name,
        candidate=figure.candidate,
        stable=figure.stable,
        candidate_samples=figure.candidate_samples,
        stable_samples=figure.stable_samples,
        p_value=figure.p_value,
        limit=figure.limit,
        verdict=_VERDICTS[figure.verdict],
    )


def _told(figure: Figure) -> str:
    values = [f"{value:.4g}" if value is not None else "?" for value in (figure.candidate, figure.limit, figure.stable)]
    sure = f", p = {figure.p_value:.2g}" if figure.p_value is not None else ""
    return f"{figure.name} {values[0]}, allowed {values[1]} (the stable one's {values[2]}{sure})"


def last_event(record: RolloutRecord) -> RolloutEvent:
    return record.events[-1]


def _steps(steps: Iterable[int]) -> list[int]:
    given = sorted({step for step in steps if 0 < step <= WHOLE}) or list(STEPS)
    return given if given[-1] == WHOLE else [*given, WHOLE]


def _copy(record: RolloutRecord) -> RolloutRecord:
    made = RolloutRecord()
    made.CopyFrom(record)
    return made


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _micros(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def _stamp(now_us: int) -> Timestamp:
    seconds, micros = divmod(now_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)

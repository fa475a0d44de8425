"""What becomes of a request whose attempt is over before its end: where the next one goes on, or why there is none."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.request_pb2 import GenerateRequest, Resume
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.recovery import Recovered

from inferbus_scheduler.core.admission import Refusal

WORKER_LOST = "worker_lost"
CANCELLED, TOO_LARGE, TOKEN_GAP = "cancelled", "too_large", "token_gap"
"""With ``worker_lost`` the words of ``Resume.end``."""
PATIENCE = 2
"""Fruitless deaths after which a request is ended."""
TROUBLED_PATIENCE = 4
"""The same while workers die of other causes, too."""
TROUBLE_SECONDS = 600.0


class Reason(StrEnum):
    """Why an attempt is over; the wire form of ``Resume.reason``."""

    WORKER_LOST = WORKER_LOST
    DRAINED = "drained"
    PREEMPTED = "preempted"
    RECALLED = "recalled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A placement that its worker is not to end: what WORK says of it, without its input.

    ``attempt``: of the placement. ``stored_us``: when that was stored, by the broker's clock, and not by its copy's.
    ``delivered``: False if its worker certainly never had it. ``cold_start_us``: ``Work.cold_start_us``.
    """

    sequence: int
    request_id: bytes
    attempt: int
    edge: str
    model: str
    resume: Resume
    stored_us: int
    delivered: bool = True
    cold_start_us: int = 0

    @property
    def next_attempt(self) -> int:
        return self.attempt + 1


@dataclass(frozen=True, slots=True)
class Requeue:
    """It goes on where ``resume`` says."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class End:
    """It ends after what ``resume`` has, as ``resume.end`` says."""

    resume: Resume

    @property
    def refusal(self) -> Refusal | None:
        """None: it was cancelled."""
        return refusal_of(self.resume)


@dataclass(frozen=True, slots=True)
class Closed:
    """It had ended before the fence: nothing is to be done."""


Fate = Requeue | End | Closed


def fate(
    orphan: Orphan,
    found: Recovered,
    reason: Reason,
    *,
    cancelled: bool,
    patience: int,
    now_us: int,
    revision: str = "",
) -> Fate:
    """``found``: what counts of the request on the log before the fence of the next attempt. Equal for whoever decides,
    and however often, but for the time: ``now_us``, Unix microseconds, since when it waits. ``revision``: on which the
    attempt was."""
    if found.closed:
        return Closed()
    resume = resume_of(orphan, found, reason, now_us)
    resume.revision = revision
    if reason is Reason.FAILED:
        resume.failed_revisions.append(revision)
    if cancelled:
        return ended(resume, CANCELLED)
    if found.gap:
        return ended(resume, TOKEN_GAP)
    if resume.fruitless_deaths >= patience and reason is Reason.WORKER_LOST:
        return ended(resume, WORKER_LOST)
    return Requeue(resume)


def ended(resume: Resume, end: str) -> End:
    """``resume``, changed in place, as that of a request that does not go on."""
    resume.end = end
    resume.output_tokens = len(resume.token_ids)
    return End(resume)


def resume_of(orphan: Orphan, found: Recovered, reason: Reason, now_us: int) -> Resume:
    """Where the next attempt goes on."""
    resume = Resume(
        attempt=orphan.next_attempt,
        token_ids=found.ids,
        text=b"".join(text for _, text in found.texts),
        fruitless_deaths=fruitless_deaths(orphan, found, reason),
        reason=reason.value,
        interrupted_time=_stamp(now_us),
        failed_revisions=orphan.resume.failed_revisions,
        cold_start_us=orphan.cold_start_us,
    )
    if found.ids:
        resume.first_token_time.CopyFrom(_stamp(found.first_us))
        resume.last_token_time.CopyFrom(_stamp(found.last_us))
    if found.first_started_us:
        resume.first_started_time.CopyFrom(_stamp(found.first_started_us))
    return resume


def fruitless_deaths(orphan: Orphan, found: Recovered, reason: Reason) -> int:
    """Attempts in a row, this one included, whose worker died before they had made a token, or a part of an answer
    that has none."""
    progressed = found.parts or len(found.ids) > len(orphan.resume.token_ids)
    died = reason is Reason.WORKER_LOST and orphan.delivered
    return fruitless_after(orphan.resume.fruitless_deaths, progressed=bool(progressed), died=died)


def fruitless_after(before: int, *, progressed: bool, died: bool) -> int:
    """The count of one attempt more. ``died``: its worker did, with the request on it."""
    return 0 if progressed else before + died


def refusal_of(resume: Resume) -> Refusal | None:
    """Why one with ``resume.end`` ends; None: it was cancelled."""
    match resume.end:
        case "cancelled":
            return None
        case "too_large":
            return too_large()
        case "token_gap":
            return token_gap()
    return poisonous(resume.fruitless_deaths)


def poisonous(deaths: int) -> Refusal:
    """Why a request is not tried again."""
    times = {2: "twice", 3: "three times", 4: "four times"}.get(deaths, f"{deaths} times")
    return Refusal(
        ErrorClass.ERROR_CLASS_INTERNAL,
        WORKER_LOST,
        f"The request was tried {times}, and each time its worker was lost before it had made a token. "
        "It is not tried again; if it is what does that, a changed request may work.",
    )


def too_large() -> Refusal:
    """With what was generated so far it is more than the bus takes in one message."""
    return Refusal(
        ErrorClass.ERROR_CLASS_INTERNAL,
        WORKER_LOST,
        "The worker of the request was lost, and the request is too large to go on elsewhere.",
    )


def token_gap() -> Refusal:
    """The log does not keep as much as it would have to."""
    return Refusal(
        ErrorClass.ERROR_CLASS_INTERNAL,
        TOKEN_GAP,
        "A part of the answer is not on record any more, so that it cannot go on. Ask again.",
    )


def with_resume(request: GenerateRequest, resume: Resume, worker: str) -> GenerateRequest:
    """``request``, changed in place: as it goes back to the queue, last on ``worker``. If it is only to be ended, it is
    without all that can be large and that no end needs: so it always fits."""
    request.resume.CopyFrom(resume)
    request.resume.worker = worker
    if resume.end:
        _strip(request)
    return request


def _strip(request: GenerateRequest) -> None:
    kind = request.WhichOneof("input")
    for field in (*((kind,) if kind else ()), "sampling", "constraint", "cache_salt", "prefix"):
        request.ClearField(field)
    if kind:
        getattr(request, kind).SetInParent()  # it tells the operation, which is on the bill
    request.resume.ClearField("token_ids")
    request.resume.ClearField("text")


class Deaths:
    """Whether workers die of other causes than of requests, by the deaths of the last ten minutes.

    A request that has made no token when its worker dies may be what killed it. In a fleet that is calm otherwise, two
    such deaths in a row are proof enough. But where workers die with nothing on them that could have done it, chance
    alone will hit a request twice, and more proof is asked for.
    """

    def __init__(self) -> None:
        self._unexplained: deque[float] = deque()

    def died(self, now: float, *, explained: bool) -> None:
        """A worker died at ``now`` (monotonic seconds); ``explained``: a request on it had made no token yet."""
        if not explained:
            self._unexplained.append(now)
        self._forget(now)

    def patience(self, now: float) -> int:
        """How many fruitless deaths a request may have."""
        self._forget(now)
        return TROUBLED_PATIENCE if self._unexplained else PATIENCE

    def _forget(self, now: float) -> None:
        while self._unexplained and self._unexplained[0] < now - TROUBLE_SECONDS:
            self._unexplained.popleft()


def _stamp(unix_us: int) -> Timestamp:
    seconds, micros = divmod(unix_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)

"""Whether now at all: what is refused at once, what may wait, and for how long."""

from dataclasses import dataclass

from inferbus.common.v1.error_pb2 import ErrorClass

from inferbus_scheduler.core.request import Request

MODEL_NOT_FOUND = "model_not_found"
QUEUE_FULL = "queue_full"
NO_WORKER = "no_worker"
MODEL_TOO_LARGE = "model_too_large"
DEADLINE_EXCEEDED = "deadline_exceeded"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts. Each bound's behaviour is the reason that :func:`admit` and :func:`overdue` give.

    ``retry_after`` is the least that a refused caller is told to wait, and what it is told where no pace is known.
    """

    max_queued: int
    queue_timeout: float
    retry_after: float
    max_retry_after: float = 300.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits for the model of a request. Lower classes do not count, so that a flood of batch work never makes an
    interactive request be refused."""

    # In its class and above.
    ahead: int = 0
    # Of them, its own tenant's.
    own: int = 0
    # Of the queue, the part that its tenant may have: its weight among the weights of all that wait.
    part: float = 1.0
    # Placements a second, by the queue's own pace; None: not known.
    rate: float | None = None

    @property
    def before(self) -> float:
        """How many go before it: in fair order, no more than its tenant's own ones and as many of others as their part
        allows meanwhile."""
        return min(self.ahead, self.own / self.part if self.part else self.ahead)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request ends here. ``message`` may be shown to the tenant; ``retry_after`` in seconds, 0: no use."""

    error_class: ErrorClass.ValueType
    reason: str
    message: str
    param: str = ""
    retry_after: float = 0.0


def admit(request: Request, *, known_model: bool, queue: QueueState, limits: Limits, now: float) -> Refusal | None:
    """Why ``request`` is refused on arrival; None: it is queued.

    One that has been on a worker was admitted then: it is refused only if it has expired. A full queue (``max_queued``)
    still takes those of tenants that have less than their fair part of it, up to twice as many in all. A request that
    cannot be started before it expires, by the pace at which the queue moves now, is refused at once; where that is not
    known, it waits.
    """
    if request.expires_at <= now:
        return expired()
    if request.attempt > 1:
        return None
    if not known_model:
        return Refusal(
            ErrorClass.ERROR_CLASS_NOT_FOUND, MODEL_NOT_FOUND, f"The model `{request.model}` does not exist.", "model"
        )
    if queue.ahead >= limits.max_queued and not _has_room(queue, limits):
        return Refusal(
            ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
            QUEUE_FULL,
            f"Too many requests wait for the model `{request.model}`; retry later.",
            retry_after=retry_after(queue, limits),
        )
    if queue.rate and now + queue.before / queue.rate >= request.expires_at:
        return Refusal(
            ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
            DEADLINE_EXCEEDED,
            f"So many requests wait for the model `{request.model}` that this one would expire before its turn.",
            retry_after=retry_after(queue, limits),
        )
    return None


def too_large(request: Request) -> Refusal:
    """There will never be memory for a worker of its model, as things stand: waiting is of no use."""
    return Refusal(
        ErrorClass.ERROR_CLASS_UNAVAILABLE,
        MODEL_TOO_LARGE,
        f"The model `{request.model}` needs more memory than there is for it here; it cannot be loaded.",
        "model",
    )


def retry_after(queue: QueueState, limits: Limits) -> float:
    """Seconds after which what is queued now will have gone, within bounds."""
    if not queue.rate:
        return limits.retry_after
    return min(limits.max_retry_after, max(limits.retry_after, queue.ahead / queue.rate))


def overdue(
    request: Request, *, unserved_since: float | None, limits: Limits, now: float, patience: float | None = None
) -> Refusal | float:
    """Why ``request`` must wait no longer, or when (monotonic seconds, later than ``now``) to look again.

    ``unserved_since``: since when its model has had no live worker; None: it has one. ``patience``: how long its
    deployment lets requests wait for the first worker; None: ``queue_timeout``.
    """
    if request.expires_at <= now:
        return expired()
    if unserved_since is None:
        return min(request.expires_at, now + limits.queue_timeout)
    timeout = limits.queue_timeout if patience is None else patience
    gives_up_at = max(request.waits_since, unserved_since) + timeout
    if gives_up_at <= now:
        return Refusal(
            ErrorClass.ERROR_CLASS_UNAVAILABLE,
            NO_WORKER,
            f"No worker serves the model `{request.model}` at the moment; retry later.",
            retry_after=limits.retry_after,
        )
    return min(request.expires_at, gives_up_at)


def expired() -> Refusal:
    return Refusal(
        ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, DEADLINE_EXCEEDED, "The request expired before it could be started."
    )


def _has_room(queue: QueueState, limits: Limits) -> bool:
    return queue.ahead < 2 * limits.max_queued and queue.own < limits.max_queued * queue.part

"""Whether now at all: what is refused at once, what may wait, and for how long."""

from dataclasses import dataclass

from inferbus.common.v1.error_pb2 import ErrorClass

from inferbus_scheduler.core.request import Request

MODEL_NOT_FOUND = "model_not_found"
QUEUE_FULL = "queue_full"
NO_WORKER = "no_worker"
DEADLINE_EXCEEDED = "deadline_exceeded"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts. Each bound's behaviour is the reason that :func:`admit` and :func:`overdue` give."""

    max_queued: int
    queue_timeout: float
    retry_after: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request ends here. ``message`` may be shown to the tenant; ``retry_after`` in seconds, 0: no use."""

    error_class: ErrorClass.ValueType
    reason: str
    message: str
    param: str = ""
    retry_after: float = 0.0


def admit(request: Request, *, known_model: bool, ahead: int, limits: Limits, now: float) -> Refusal | None:
    """Why ``request`` is refused on arrival; None: it is queued.

    ``ahead``: how many requests of its model wait in its class and above. Lower classes do not count, so that a flood
    of batch work never makes an interactive request be refused.
    """
    if request.expires_at <= now:
        return expired()
    if not known_model:
        return Refusal(
            ErrorClass.ERROR_CLASS_NOT_FOUND, MODEL_NOT_FOUND, f"The model `{request.model}` does not exist.", "model"
        )
    if ahead >= limits.max_queued:
        return Refusal(
            ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
            QUEUE_FULL,
            f"Too many requests wait for the model `{request.model}`; retry later.",
            retry_after=limits.retry_after,
        )
    return None


def overdue(request: Request, *, unserved_since: float | None, limits: Limits, now: float) -> Refusal | float:
    """Why ``request`` must wait no longer, or when (monotonic seconds, later than ``now``) to look again.

    ``unserved_since``: since when its model has had no live worker; None: it has one.
    """
    if request.expires_at <= now:
        return expired()
    if unserved_since is None:
        return min(request.expires_at, now + limits.queue_timeout)
    gives_up_at = max(request.arrived_at, unserved_since) + limits.queue_timeout
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

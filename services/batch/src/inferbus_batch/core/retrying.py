"""Which ends of a line are worth another try, and how long a job waits when its lines end so."""

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_dialect.errors import is_final
from inferbus_runtime.errors import InferBusError

MAX_TRIES = 12
"""An id has room for 16."""
# The platform's own state, not the line's. That a worker died of it is INTERNAL, and final.
_RETRYABLE = frozenset(
    {
        ErrorClass.ERROR_CLASS_UNAVAILABLE,
        ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
        ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
    }
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0


def worth_another(error: InferBusError, attempt: int) -> bool:
    """``attempt``: the try that ended so, from 0."""
    return error.error_class in _RETRYABLE and not is_final(error) and attempt + 1 < MAX_TRIES


def pause(failures: int) -> float:
    """Seconds before more is asked, after so many such ends without a good one between them."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 20)) if failures else 0.0

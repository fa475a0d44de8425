"""Which ends of a line are worth another try, and how long a job waits when its lines end so."""

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_dialect.errors import is_final
from inferbus_runtime.errors import InferBusError

MAX_TRIES = 12
"""That got as far as an engine. An id has room for 16."""
# The platform's own state, not the line's. That a worker died of it is INTERNAL, and final.
_RETRYABLE = frozenset(
    {
        ErrorClass.ERROR_CLASS_UNAVAILABLE,
        ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED,
        ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
    }
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0


def worth_another(error: InferBusError, attempt: int, usage: Usage) -> bool:
    """``attempt``: the try that ended so, from 0. One that cost nothing is made again as long as the job has time:
    capacity may come at night."""
    return error.error_class in _RETRYABLE and not is_final(error) and (not worked(usage) or attempt + 1 < MAX_TRIES)


def worked(usage: Usage) -> bool:
    """An engine had begun: the try counts."""
    return bool(usage.input_tokens or usage.output_tokens)


def pause(failures: int) -> float:
    """Seconds before more is asked, after so many such ends without a good one between them."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures, 20)) if failures else 0.0

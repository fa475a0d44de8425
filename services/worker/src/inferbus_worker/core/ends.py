"""Why the worker itself ends a generation, as the tenant is told it."""

from datetime import timedelta

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, unavailable

# Of these no revision is to blame.
_NOBODY = ("deadline_exceeded", "token_gap")


def is_failure(error: InferBusError | None) -> bool:
    """Whether another revision might do what ended so."""
    return error is None or error.reason not in _NOBODY


def engine_failed(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_failed", "The model's engine failed; retry.", retry_after=timedelta(seconds=1), diagnostic=diagnostic
    )


def deadline_exceeded() -> InferBusError:
    message = "The request was not finished in its time. Ask for fewer tokens, or try again later."
    return InferBusError(ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, "deadline_exceeded", message)


def token_gap() -> InferBusError:
    message = "A part of the answer is not on record any more, so that it cannot go on. Ask again."
    return InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "token_gap", message)

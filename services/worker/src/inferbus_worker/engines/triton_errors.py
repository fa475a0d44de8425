"""What goes wrong at a Triton server, told by its words: a model's errors come on the stream as text, with no code."""

import re
from datetime import timedelta
from enum import Enum

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import context_exceeded
from inferbus_worker.engine import Source


class Trouble(Enum):
    GONE = "gone"
    """The model or its process may be: a probe will tell."""
    FULL = "full"
    TOO_LONG = "too_long"
    MISFIT = "misfit"
    """The model does not take what it was sent: ours and its configuration do not agree."""
    OTHER = "other"


_TEXTS = (
    (Trouble.FULL, re.compile(r"exceeds maximum queue size|queue is full|request timeout expired", re.IGNORECASE)),
    (
        Trouble.TOO_LONG,
        re.compile(
            r"(prompt|input|sequence) ?length.{0,80}exceed|exceeds? .{0,40}max_(num_tokens|seq_len|input_len)",
            re.IGNORECASE | re.DOTALL,
        ),
    ),
    (
        Trouble.GONE,
        re.compile(
            r"is not healthy|stub process|unknown model|no available versions|is not ready|server is stopping|"
            r"stopped accepting|unloading|shutting down|shutdown has been requested|shared memory|failed to connect",
            re.IGNORECASE,
        ),
    ),
    (
        Trouble.MISFIT,
        re.compile(
            r"missing required input|expected number of inputs|unexpected (shape|inference input|inference output)|"
            r"batch[ -]size (does not match|must be)|"
            r"inference input .{0,60}data-?type|doesn't support models with decoupled|only supported in decoupled",
            re.IGNORECASE,
        ),
    ),
)
_COUNT = re.compile(r"length \((\d+)\)")


def trouble_of(text: str) -> Trouble:
    """The first that ``text`` speaks of."""
    return next((trouble for trouble, pattern in _TEXTS if pattern.search(text)), Trouble.OTHER)


def error_of(trouble: Trouble, text: str, source: Source, tokens: int) -> InferBusError:
    """The end of one generation. ``tokens``: of its input, as far as we know."""
    match trouble:
        case Trouble.FULL:
            return engine_full(text)
        case Trouble.TOO_LONG:
            said = _COUNT.search(text)
            error = context_exceeded(source, int(said[1]) if said else tokens)
            error.diagnostic = text
            return error
        case Trouble.MISFIT:
            return InferBusError(
                ErrorClass.ERROR_CLASS_INTERNAL,
                "engine_failed",
                "The model cannot run this request; the operator has been told why.",
                diagnostic=text,
            )
    return engine_failed(text)


def engine_full(diagnostic: str) -> InferBusError:
    """It may be tried again later."""
    return InferBusError(
        ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
        "engine_full",
        "The model has too many requests waiting; retry later.",
        retry_after=timedelta(seconds=1),
        diagnostic=diagnostic,
    )

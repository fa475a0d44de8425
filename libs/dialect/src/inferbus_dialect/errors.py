"""The one table from what failed to what an OpenAI client is told: status, body, ``Retry-After``."""

import math
from datetime import timedelta
from typing import Any

import orjson
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid

_DEFAULT_RETRY_AFTER = timedelta(seconds=1)

# Class → (HTTP status, OpenAI's error type). OpenAI's SDK retries 408, 409, 429 and everything from 500 up.
_CLASSES: dict[int, tuple[int, str]] = {
    ErrorClass.ERROR_CLASS_UNSPECIFIED: (500, "server_error"),
    ErrorClass.ERROR_CLASS_INVALID_ARGUMENT: (400, "invalid_request_error"),
    ErrorClass.ERROR_CLASS_UNAUTHENTICATED: (401, "invalid_request_error"),
    ErrorClass.ERROR_CLASS_PERMISSION_DENIED: (403, "permission_error"),
    ErrorClass.ERROR_CLASS_NOT_FOUND: (404, "invalid_request_error"),
    ErrorClass.ERROR_CLASS_CONFLICT: (409, "invalid_request_error"),
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    ErrorClass.ERROR_CLASS_UNAVAILABLE: (503, "server_error"),
    ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED: (504, "server_error"),
    ErrorClass.ERROR_CLASS_CANCELLED: (499, "server_error"),
    ErrorClass.ERROR_CLASS_INTERNAL: (500, "server_error"),
}

# Reasons that HTTP has a status of its own for.
_REASONS = {
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "expectation_failed": 417,
    "headers_too_large": 431,
}

# Of a budget that is used up: no waiting helps, and OpenAI has a type of its own for it.
QUOTA = "insufficient_quota"
# Of a request whose workers died: sent again, it may take more of them down.
LOST = "worker_lost"
_MAY_COME_BACK = (ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, ErrorClass.ERROR_CLASS_UNAVAILABLE)

# What the HTTP library refuses by itself, before or after a route is found.
_OF_STATUS = {
    404: InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND, "unknown_url", "There is no such URL here; the API starts at /v1."
    ),
    405: invalid("This URL does not take that method.", reason="method_not_allowed"),
    408: invalid("The request did not arrive in time.", reason="request_timeout"),
    413: invalid("The request body is too large.", reason="body_too_large"),
    417: invalid("This expectation cannot be met.", reason="expectation_failed"),
    431: invalid("The request headers are too large.", reason="headers_too_large"),
}


def of_status(status: int) -> InferBusError:
    """The error for a status that the HTTP library chose by itself."""
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    if status < 500:
        return invalid("The request is not valid HTTP.", reason="bad_request")
    return internal()


def internal(diagnostic: str = "") -> InferBusError:
    """A fault of ours; nothing about it is shown."""
    return InferBusError(
        ErrorClass.ERROR_CLASS_INTERNAL, "internal_error", "The server had an error; retry.", diagnostic=diagnostic
    )


def is_lost(error: InferBusError) -> bool:
    """It was tried again and again, and its workers died of it."""
    return error.reason == LOST and error.error_class == ErrorClass.ERROR_CLASS_INTERNAL


def is_final(error: InferBusError) -> bool:
    """Sent again at once it comes to the same: clients that retry by the status alone are told not to."""
    return error.reason == QUOTA or is_lost(error)


def http_status(error: InferBusError) -> int:
    return _REASONS.get(error.reason) or _row(error)[0]


def retry_after_seconds(error: InferBusError) -> int | None:
    """Whole seconds for ``Retry-After``, at least 1; None where coming back does not help."""
    if error.retry_after is None and (error.error_class not in _MAY_COME_BACK or error.reason == QUOTA):
        return None
    return max(1, math.ceil((error.retry_after or _DEFAULT_RETRY_AFTER).total_seconds()))


def error_object(error: InferBusError) -> dict[str, Any]:
    """``{"error": {...}}`` as OpenAI writes it; the reason is the code."""
    return {
        "error": {
            "message": _utf8(error.message),
            "type": QUOTA if error.reason == QUOTA else _row(error)[1],
            "param": _utf8(error.param) or None,
            "code": error.reason or None,
        }
    }


def error_body(error: InferBusError, _request_id: bytes = b"") -> bytes:
    """OpenAI's body does not name the request; its header does."""
    return orjson.dumps(error_object(error))


def _utf8(text: str) -> str:
    """``text`` without the surrogates that a caller's broken bytes become."""
    return text.encode(errors="replace").decode()


def _row(error: InferBusError) -> tuple[int, str]:
    return _CLASSES.get(error.error_class, _CLASSES[ErrorClass.ERROR_CLASS_INTERNAL])

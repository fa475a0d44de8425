"""Errors as Anthropic's API writes them; statuses are those of ``core/errors.py``."""

from typing import Any

import orjson
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import uuid_text
from inferbus_runtime.errors import InferBusError

_API_ERROR = "api_error"
_TYPES: dict[int, str] = {
    ErrorClass.ERROR_CLASS_INVALID_ARGUMENT: "invalid_request_error",
    ErrorClass.ERROR_CLASS_UNAUTHENTICATED: "authentication_error",
    ErrorClass.ERROR_CLASS_PERMISSION_DENIED: "permission_error",
    ErrorClass.ERROR_CLASS_NOT_FOUND: "not_found_error",
    ErrorClass.ERROR_CLASS_CONFLICT: "invalid_request_error",
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED: "rate_limit_error",
    # A part is away or full: what clients of that API know as a reason to come again.
    ErrorClass.ERROR_CLASS_UNAVAILABLE: "overloaded_error",
    ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED: "timeout_error",
}


def error_object(error: InferBusError, request_id: bytes | None = None) -> dict[str, Any]:
    """``{"type": "error", "error": {...}, "request_id": ...}``; the reason is ``details.error_code``."""
    details = {"error_code": error.reason}
    if error.param:
        details["param"] = _utf8(error.param)
    return {
        "type": "error",
        "error": {
            "type": _TYPES.get(error.error_class, _API_ERROR),
            "message": _utf8(error.message),
            "details": details,
        },
        "request_id": None if request_id is None else uuid_text(request_id),
    }


def error_body(error: InferBusError, request_id: bytes | None = None) -> bytes:
    return orjson.dumps(error_object(error, request_id))


def _utf8(text: str) -> str:
    """``text`` without the surrogates that a caller's broken bytes become."""
    return text.encode(errors="replace").decode()

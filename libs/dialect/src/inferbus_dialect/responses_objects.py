"""The response object of the Responses API: its ids, its fields, its usage, its errors."""

from collections.abc import Mapping, Sequence
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.errors import error_body

API = "responses"
"""The name of this API in the reply description."""
_PREFIX = "resp_"
# What an id that is not ours may take of an error's message.
_SHOWN_ID = 80
# A response's own error has few codes; the reason is in the message.
_CODES = {
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED: "rate_limit_exceeded",
    ErrorClass.ERROR_CLASS_INVALID_ARGUMENT: "invalid_prompt",
}
# The names by which workers and catalogue know a parameter; this API's own refusals name its own.
_PARAMS = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
}
# What the parser says itself: "prompt" is a parameter of this API, too, and refused under that name.
_OWN_REASONS = ("unsupported_parameter", "unknown_parameter", "missing_required_parameter", "invalid_type")


def response_id(first: bytes) -> str:
    return _PREFIX + first.hex()


def parse_response_id(text: str) -> bytes:
    """The request's id. Raises ValueError."""
    digits = text.removeprefix(_PREFIX)
    if digits == text or len(digits) != 2 * REQUEST_ID_BYTES or digits != digits.lower() or not digits.isalnum():
        raise ValueError("no id of a response")
    return bytes.fromhex(digits)


def response_object(
    first: bytes,
    reply: Mapping[str, Any],
    status: str,
    output: Sequence[Mapping[str, Any]],
    *,
    model: str = "",
    usage: Usage | None = None,
    completed: int | None = None,
    incomplete: str | None = None,
    error: InferBusError | None = None,
) -> dict[str, Any]:
    """``reply``: its ``echo`` is what is said back of the request. ``model``: which one answers; empty: the one that
    was asked. ``completed``: Unix seconds. ``incomplete``: why the
    output was cut off."""
    return {
        "id": response_id(first),
        "object": "response",
        "created_at": reply["created"],
        "status": status,
        "completed_at": completed,
        "error": None if error is None else error_of_response(error),
        "incomplete_details": None if incomplete is None else {"reason": incomplete},
        "model": model or reply["model"],
        "output": list(output),
        "usage": None if usage is None else usage_object(usage),
        **reply["echo"],
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        # Nothing is charged for what a cache keeps.
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def error_of_response(error: InferBusError) -> dict[str, Any]:
    """What a failed response says of its failure."""
    return {"code": _CODES.get(error.error_class, "server_error"), "message": in_words_of_responses(error).message}


def in_words_of_responses(error: InferBusError) -> InferBusError:
    """``error`` with the parameter named as this API names it."""
    name = _PARAMS.get(error.param)
    if name is None or error.reason in _OWN_REASONS:
        return error
    return InferBusError(
        error.error_class,
        error.reason,
        error.message.replace(f"'{error.param}'", f"'{name}'"),
        param=name,
        retry_after=error.retry_after,
        diagnostic=error.diagnostic,
    )


def responses_error_body(error: InferBusError, _request_id: bytes = b"") -> bytes:
    """The body of an HTTP error of this API."""
    return error_body(in_words_of_responses(error))


def no_such_response(name: str) -> InferBusError:
    """The same for one that never was, was deleted, is too old, or is another tenant's or project's."""
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND, "response_not_found", f"Response with id '{name[:_SHOWN_ID]}' not found."
    )


def previous_not_found(name: str) -> InferBusError:
    """OpenAI answers this one with 400."""
    return InferBusError(
        ErrorClass.ERROR_CLASS_INVALID_ARGUMENT,
        "previous_response_not_found",
        f"Previous response with id '{name[:_SHOWN_ID]}' not found.",
        param="previous_response_id",
    )

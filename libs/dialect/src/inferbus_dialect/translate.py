"""The bus's words in OpenAI's: usage, plain answers, errors, models."""

from collections.abc import Sequence
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.errors import internal

# The public name of each good end; any other end is an error.
FINISH_REASONS = {FinishReason.FINISH_REASON_STOP: "stop", FinishReason.FINISH_REASON_LENGTH: "length"}


def completion_id(request_id: bytes) -> str:
    return f"chatcmpl-{request_id.hex()}"


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def add_usage(total: Usage, one: Usage) -> None:
    """Several choices are one answer."""
    total.input_tokens += one.input_tokens
    total.cached_input_tokens += one.cached_input_tokens
    total.output_tokens += one.output_tokens
    total.reasoning_tokens += one.reasoning_tokens
    total.estimated |= one.estimated


def completion_body(
    *, request_id: bytes, created: int, model: str, revision: str, escaped: bytes, finish_reason: str, usage: Usage
) -> bytes:
    """The answer to a unary request. ``created`` in Unix seconds; ``escaped`` is the text as it stands inside JSON."""
    head = orjson.dumps(
        {
            "id": completion_id(request_id),
            "object": "chat.completion",
            "created": created,
            "model": model,
            "system_fingerprint": revision,
            "usage": usage_object(usage),
        }
    )
    end = b'","refusal":null},"logprobs":null,"finish_reason":"%s"}]}' % finish_reason.encode()
    return b"".join((head[:-1], b',"choices":[{"index":0,"message":{"role":"assistant","content":"', escaped, end))


def error_of(close: Close) -> InferBusError | None:
    """The error that a request ended with; None for a good end (see FINISH_REASONS)."""
    if close.finish_reason in FINISH_REASONS:
        return None
    if close.HasField("error"):
        return InferBusError.from_proto(close.error)
    if close.finish_reason == FinishReason.FINISH_REASON_CANCELLED:
        return InferBusError(ErrorClass.ERROR_CLASS_CANCELLED, "cancelled", "The request was cancelled.")
    return internal(f"a request ended as {close.finish_reason} without an error")


def capabilities_of(model: ModelRecord) -> list[str]:
    """A record without any is older than the field."""
    return list(model.capabilities) or ["chat"]


def model_object(model: ModelRecord) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": model.owned_by or "inferbus",
        "capabilities": capabilities_of(model),
    }


def model_list(models: Sequence[ModelRecord]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model) for model in sorted(models, key=lambda one: one.name)]}

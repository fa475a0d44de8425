"""OpenAI's words into the bus's and back: request, usage, answer."""

from collections.abc import Sequence
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Sampling
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass, Usage
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.errors import internal
from inferbus_edge.core.openai import ChatRequest

# OpenAI's newer name for a role that chat templates of open models know as "system".
_ROLES = {"developer": "system"}
# The public name of each good end; any other end is an error.
FINISH_REASONS = {FinishReason.FINISH_REASON_STOP: "stop", FinishReason.FINISH_REASON_LENGTH: "length"}


def completion_id(request_id: bytes) -> str:
    return f"chatcmpl-{request_id.hex()}"


def generate_request(
    chat: ChatRequest, *, request_id: bytes, edge: str, key: KeyRecord, accepted_us: int, expire_us: int
) -> GenerateRequest:
    """The message for the bus. Times are Unix microseconds."""
    message = GenerateRequest(
        request_id=request_id,
        context=RequestContext(tenant_id=key.tenant_id, project_id=key.project_id, key_id=key.key_id, model=chat.model),
        edge=edge,
        priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        chat=ChatInput(
            messages=[
                ChatMessage(role=_ROLES.get(one.role, one.role), content=one.text(), name=one.name or "")
                for one in chat.messages
            ]
        ),
        sampling=_sampling(chat),
    )
    message.accepted_time.FromMicroseconds(accepted_us)
    message.expire_time.FromMicroseconds(expire_us)
    return message


def _sampling(chat: ChatRequest) -> Sampling:
    # None leaves a field absent: the model's own default.
    return Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=None if chat.top_k is None else max(chat.top_k, 0),
        # OpenAI's seeds are signed; the same 64 bits name them on the bus.
        seed=None if chat.seed is None else chat.seed % (1 << 64),
        stop=chat.stop_texts,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        repetition_penalty=chat.repetition_penalty,
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


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


def model_object(model: ModelRecord) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": model.owned_by or "inferbus",
    }


def model_list(models: Sequence[ModelRecord]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model) for model in sorted(models, key=lambda one: one.name)]}

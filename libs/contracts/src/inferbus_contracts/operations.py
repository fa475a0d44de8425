"""What a request asks of its model, told by its input: for traces, and for the row that its bill is made of."""

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.usage_pb2 import Operation

_OPERATIONS: dict[str | None, Operation.ValueType] = {
    "chat": Operation.OPERATION_CHAT,
    "prompt": Operation.OPERATION_TEXT_COMPLETION,
    "embedding": Operation.OPERATION_EMBEDDINGS,
    "inference": Operation.OPERATION_INFERENCE,
}


def operation_of(request: GenerateRequest) -> Operation.ValueType:
    """Unspecified for a request without input, which is refused."""
    return _OPERATIONS.get(request.WhichOneof("input"), Operation.OPERATION_UNSPECIFIED)


def operation_name(request: GenerateRequest) -> str:
    """chat, text_completion or embeddings, as OpenTelemetry's conventions have it, or inference. Empty: no input."""
    operation = operation_of(request)
    return Operation.Name(operation).removeprefix("OPERATION_").lower() if operation else ""

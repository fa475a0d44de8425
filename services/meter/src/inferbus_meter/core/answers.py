"""How much an answer can hold. Pure."""

from typing import TypeVar

from google.protobuf.message import Message
from inferbus_runtime.errors import invalid

# gRPC takes messages of 4 MiB.
MOST_BYTES = (4 << 20) - 1024
MessageT = TypeVar("MessageT", bound=Message)


def fitting(answer: MessageT) -> MessageT:
    """The answer. Raises InferBusError INVALID_ARGUMENT for one that is too large to be sent."""
    if answer.ByteSize() > MOST_BYTES:
        raise invalid(
            "That is more than one answer can hold; ask for fewer buckets at a time, or for fewer groups.",
            reason="too_many_rows",
        )
    return answer

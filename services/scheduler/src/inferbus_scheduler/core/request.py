"""What the scheduler knows of a request when it decides: no prompt, no proto."""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """The order of service; the numbers are those of the proto ``PriorityClass``."""

    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request, before one attempt of it. Times are monotonic seconds of the deciding process, tokens are
    estimates where nobody has counted them."""

    request_id: bytes
    # As it was asked for: ``model`` or ``model:adapter``.
    model: str
    tenant: str
    project: str
    priority: Priority
    # Its acceptance at the edge.
    arrived_at: float
    # Not worth starting at or after this.
    expires_at: float
    # Of the placement to come.
    attempt: int = 1
    # To be read: the input, and the output of earlier attempts.
    input_tokens: int = 0
    # Expected still to come.
    output_tokens: int = 0
    # inferbus_contracts.prefixes.hashes_of, the shortest prefix first.
    prefix: tuple[int, ...] = ()
    # The worker of its last attempt died before there was a token: it may be what killed it.
    suspect: bool = False
    # When it began to wait this time; 0: at its arrival.
    queued_at: float = 0.0
    # Where its last attempt was: of equals, another one.
    avoid: str = ""
    # Output of earlier attempts, which is a part of input_tokens.
    resumed_tokens: int = 0
    # The only one that it may go to; empty: any.
    revision: str = ""
    # Where its last attempt was; empty: nowhere, or not known.
    last_revision: str = ""
    # Those that have failed it.
    failed_revisions: tuple[str, ...] = ()

    @property
    def key(self) -> bytes:
        """Names the placement: the request and its attempt."""
        return self.request_id + self.attempt.to_bytes(2, "big")

    @property
    def tokens(self) -> int:
        """All that it will hold of a KV cache at its end."""
        return self.input_tokens + self.output_tokens

    @property
    def waits_since(self) -> float:
        return self.queued_at or self.arrived_at


def base_of(model: str) -> str:
    """The model that a worker serves: ``model`` of ``model:adapter``."""
    return model.partition(":")[0]

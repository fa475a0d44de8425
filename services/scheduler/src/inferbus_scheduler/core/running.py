"""What runs, or is about to run, on a worker: the part of it that decisions need."""

from dataclasses import dataclass

from inferbus_scheduler.core.request import Priority


@dataclass(frozen=True, slots=True)
class RunningView:
    """One placement. ``placed_at`` is monotonic seconds."""

    request_id: bytes
    attempt: int
    tenant: str
    project: str
    priority: Priority
    # As it was asked for: ``model`` or ``model:adapter``.
    model: str
    worker: str
    boot: int
    # On the stream WORK; 0: its publish is not answered yet.
    sequence: int
    # Read at its start: the input, and the output of earlier attempts.
    input_tokens: int
    # So far, those of earlier attempts included, as its worker told last.
    output_tokens: int
    # Of output, expected at its end, those of earlier attempts included.
    expected_tokens: int
    placed_at: float
    suspect: bool
    # Output of earlier attempts.
    resumed_tokens: int = 0

    @property
    def key(self) -> bytes:
        """As Request.key."""
        return self.request_id + self.attempt.to_bytes(2, "big")

    @property
    def made_tokens(self) -> int:
        """New output of this attempt."""
        return max(0, self.output_tokens - self.resumed_tokens)

    @property
    def held_tokens(self) -> int:
        """Of the KV cache, now: what would be read again by another attempt."""
        return self.input_tokens + self.made_tokens

    @property
    def promised_tokens(self) -> int:
        """Of the KV cache, expected at its end."""
        return self.input_tokens + max(self.made_tokens, self.expected_tokens - self.resumed_tokens)

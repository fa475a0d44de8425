"""How long an engine takes for what, as a formula: the engine ``synthetic`` waits so long, the simulator counts it.

Three rules go with it. Prompts are read one after the other, in the order in which they began, at one rate in all, and
reading slows no step down. Each step gives every generation whose prompt has been read one token. A generation begins
when it has a place, and the KV blocks of its whole length, input and longest output, are free: it never steps back.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TimingModel:
    """Of one engine. ``prefill_tokens_per_second`` 0: a prompt is read at once. ``kv_blocks`` 0: there is no bound."""

    step_seconds: float
    step_seconds_per_sequence: float = 0.0
    prefill_tokens_per_second: float = 0.0
    kv_blocks: int = 0
    kv_block_tokens: int = 16

    def step(self, sequences: int) -> float:
        """Seconds of a step in which so many generations get a token."""
        return self.step_seconds + self.step_seconds_per_sequence * sequences

    def prefill(self, tokens: int) -> float:
        """Seconds for which the engine reads so many tokens, those of its cache not among them."""
        return tokens / self.prefill_tokens_per_second if self.prefill_tokens_per_second else 0.0

    def blocks(self, tokens: int) -> int:
        """KV blocks that so many tokens of one generation take."""
        return -(-tokens // self.kv_block_tokens)

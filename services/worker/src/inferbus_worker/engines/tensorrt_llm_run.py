"""One generation inside the engine: what of it is known, and what comes next of what the engine says.

The engine begins every form at the end of the prompt. So a generation that goes on inside its form is made again from
its first token, greedily or by the same seed; what was delivered is compared, not delivered again. A logits processor
of our own could go on inside it, but with the engine's overlapping steps it sees the tokens one step late (pull request
16785), and it is called for parts of a prompt as well.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from inferbus_worker.core.grammar import Grammar
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import Generation
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.tensorrt_llm_output import Cursor
from inferbus_worker.engines.tensorrt_llm_text import Detokenizer


@dataclass(slots=True, eq=False)
class Run:
    """A submitted generation. ``prompt``: text (of a chat, as its template wrote it) or ids. ``input_bytes``: of its
    text, or of its ids; ``read``: the engine has read it.

    ``follower``: of its grammar, if what the engine sends is watched. ``repeats``: what was delivered before and is
    generated again. ``result``: the engine's, once it is asked.
    """

    generation: Generation
    prompt: str | tuple[int, ...]
    grammar: Grammar | None
    filter: StopFilter
    text: Detokenizer
    cursor: Cursor
    input_tokens: int = 0
    input_bytes: int = 0
    read: bool = False
    cached_tokens: int = 0
    follower: Follower | None = None
    repeats: list[int] = field(default_factory=list)
    result: Any = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> bytes:
        return self.generation.key

    def fits(self, text: str) -> bool:
        """Whether what the engine sends next keeps to the grammar."""
        return self.follower is None or not text or self.follower.takes(text)

    def repeated(self, ids: list[int]) -> int | None:
        """How many of ``ids`` were delivered before, as they must be while ``repeats`` has some; None: they differ."""
        count = min(len(self.repeats), len(ids))
        if self.repeats[:count] != ids[:count]:
            return None
        del self.repeats[:count]
        return count

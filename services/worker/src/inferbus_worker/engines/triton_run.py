"""One generation inside the engine: what of it is known, and what the server is asked for.

A guide begins at the first token that the server makes. So a generation with one that is resumed is made again from its
first token: greedily, or by the same seed. What was delivered is compared, not delivered again; if the new one differs
(a draw among neighbours may), it ends with ``engine_failed``, which may be retried.
"""

import asyncio
from dataclasses import dataclass, field

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.grammar import Grammar
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import Finish, Finished, Generation
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.triton_stream import Delta
from inferbus_worker.engines.triton_tokenizer import TextDecoder, TextTokenizer

Content = str | tuple[int, ...]
# What text has of them, about, where nobody counts.
_BYTES_A_TOKEN = 4


@dataclass(slots=True, eq=False)
class Run:
    """A submitted generation. ``ids``: output tokens so far, those given included. ``by_ids``: the model takes ids.
    ``counted``: the server says how many tokens there are.

    ``moved_at``: when its last response came, None before the first. ``repeats`` and ``repeats_text``: what was
    delivered before and is generated again.
    """

    generation: Generation
    prompt: Content
    grammar: Grammar | None
    filter: StopFilter
    by_ids: bool
    tokenizer: TextTokenizer | None
    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    input_tokens: int = 0
    cached_tokens: int = 0
    estimated: bool = False
    counted: bool = True
    follower: Follower | None = None
    repeats: list[int] = field(default_factory=list)
    repeats_text: str = ""
    moved_at: float | None = None
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.ids = list(self.generation.resume_ids)
        if self.grammar is not None:
            self.repeats, self.repeats_text = list(self.ids), self.given_text()

    @property
    def key(self) -> bytes:
        return self.generation.key

    def given_text(self) -> str:
        """Of what an earlier attempt delivered."""
        if self.by_ids and self.tokenizer is not None:
            return TextDecoder(self.tokenizer).feed(self.generation.resume_ids)
        return self.generation.resume_text

    @property
    def goes_on(self) -> bool:
        """The server is given what the model has said already."""
        return self.grammar is None and bool(self.generation.resume_ids)

    def to_read(self) -> Content:
        """What the model reads: the prompt, and what it has said already unless that is made again."""
        if not self.goes_on:
            return self.prompt
        if isinstance(self.prompt, str):
            return self.prompt + self.generation.resume_text
        return (*self.prompt, *self.ids)

    def left(self) -> int | None:
        """Output tokens that may still be asked for; None: any number."""
        asked = self.generation.sampling.max_tokens
        return None if asked is None else asked - (0 if self.grammar is not None else len(self.ids))

    def seed(self) -> int:
        """A draw that may have to be made again has the same; one that goes on has another."""
        return int.from_bytes(self.key[-8:], "big") + (0 if self.grammar is not None else len(self.ids))

    def count_input(self, add_special: bool) -> int:
        """Tokens of the prompt, by the tokenizer or, with none, about. ``add_special``: some are put around it."""
        if not isinstance(self.prompt, str):
            return len(self.prompt)
        if self.tokenizer is not None:
            return len(self.tokenizer.encode(self.prompt, add_special=add_special))
        self.estimated = True
        return len(self.prompt.encode()) // _BYTES_A_TOKEN + 1

    def fits(self, text: str) -> bool:
        """Whether what comes next keeps to the grammar; the server may not have been able to hold it."""
        return self.follower is None or self.follower.takes(text)

    def fresh(self, delta: Delta) -> Delta | None:
        """What of a delta was not delivered before; None if it differs from what was."""
        if not self.repeats and not self.repeats_text:
            return delta
        ids, text = delta.token_ids, delta.text
        known, seen = self.repeats[: len(ids)], self.repeats_text[: len(text)]
        if ids[: len(known)] != known or text[: len(seen)] != seen:
            return None
        del self.repeats[: len(known)]
        self.repeats_text = self.repeats_text[len(seen) :]
        return Delta(ids[len(known) :], text[len(seen) :])

    def uncounted(self) -> int:
        """Tokens of the new text that no response stood for, where the server counts none: it may send several at a
        time."""
        if self.tokenizer is None:
            self.estimated = True
            return 0
        new = len(self.ids) - len(self.generation.resume_ids)
        return max(0, len(self.tokenizer.encode("".join(self.text), add_special=False)) - new)

    def finished(self, reason: Finish, error: InferBusError | None, stop_index: int | None) -> Finished:
        """Its end. Of one that is cut off, nobody counts what it has."""
        estimated = self.estimated or (reason is Finish.CANCELLED and bool(self.text) and not self.counted)
        return Finished(self.key, reason, self.input_tokens, self.cached_tokens, error, stop_index, estimated)

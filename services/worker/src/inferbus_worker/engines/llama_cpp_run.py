"""One generation inside the engine: what of it is known, and what the child is asked for.

The child cannot begin a grammar in the middle. So a generation with one that is resumed, or stepped back, is made again
from its first token: greedily, or by the same seed. What was delivered is compared, not delivered again; if the new one
differs (a draw among neighbours may), it ends with ``engine_failed``, which may be retried.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferbus_worker.core.grammar import Grammar
from inferbus_worker.core.slots import Content, Lease
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import Generation
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.llama_cpp_stream import Prefill, Task


@dataclass(slots=True, eq=False)
class Run:
    """A submitted generation. ``held``: KV tokens, first a guess from the prompt's size, then exact.

    ``repeats``: what was delivered before and is generated again. ``follower``: of its grammar, once that is compiled.
    ``prefilled``: the child has begun to read the prompt, and so emptied its slot of all else; ``read``: it has read it
    all. ``ended_there``: by the child, which is at it no longer. ``scales``: of each adapter that the child has.
    """

    generation: Generation
    prompt: Content
    grammar: Grammar | None
    ids: list[int]
    filter: StopFilter
    held: int
    scales: tuple[float, ...] = ()
    input_tokens: int = 0
    cached_tokens: int = 0
    filter_knows: bool = False
    follower: Follower | None = None
    prefilled: bool = False
    read: bool = False
    ended_there: bool = False
    repeats: list[int] = field(default_factory=list)
    lease: Lease | None = None
    task: asyncio.Task[None] | None = field(default=None)

    @property
    def key(self) -> bytes:
        return self.generation.key

    @property
    def salt(self) -> bytes:
        """Who may read on from what its slot holds: what an adapter has read is nothing to another one."""
        adapter = self.generation.adapter
        return self.generation.cache_salt + (b"\0" + adapter.encode() if adapter else b"")

    def task_of(self) -> Task:
        """What the child is asked for now. The run has a lease."""
        assert self.lease is not None  # noqa: S101
        sampling = self.generation.sampling
        again = self.grammar is not None
        if self.follower is not None:
            self.follower.restart()
        self.repeats = list(self.ids) if again else []
        resume = [] if again else self.ids
        return Task(
            prompt=self.prompt,
            resume_ids=resume,
            sampling=sampling,
            max_new=None if sampling.max_tokens is None else sampling.max_tokens - len(resume),
            slot=self.lease.slot,
            reuse=self.lease.reuse,
            scales=self.scales,
            grammar=self.grammar.text if self.grammar is not None else "",
            # A draw that may have to be made again.
            seed=int.from_bytes(self.key[-4:], "big") if again else None,
        )

    def prefill(self, prefill: Prefill) -> None:
        """The child reads the prompt."""
        self.held, self.prefilled = prefill.tokens, True
        if not self.input_tokens:  # a second prefill, after stepping back, finds its own tokens cached
            self.input_tokens = prefill.tokens - (0 if self.grammar is not None else len(self.ids))
            self.cached_tokens = min(prefill.cached, self.input_tokens)

    def fits(self, text: str) -> bool:
        """Whether what the child sends next keeps to the grammar; it may have given that up without a word."""
        return self.follower is None or self.follower.takes(text)

    def repeated(self, ids: list[int]) -> bool:
        """Whether these are what was delivered before, as it must be while ``repeats`` has some."""
        if self.repeats[: len(ids)] != ids:
            return False
        del self.repeats[: len(ids)]
        self.held += len(ids)
        return True

    def stopped_before(self, vocabulary: Sequence[bytes]) -> bool:
        """Tells the filter once what an earlier attempt delivered: a stop string may have begun, or ended, in it."""
        if self.filter_knows or not self.generation.resume_ids:
            return False
        self.filter_knows = True
        text = b"".join(vocabulary[token] for token in self.ids).decode(errors="replace")
        return self.filter.feed(text).stopped

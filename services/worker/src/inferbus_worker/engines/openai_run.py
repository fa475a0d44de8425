"""One generation: what of it is known, and how it goes on when an upstream has broken it off.

Either the upstream is given the text so far and goes on with it (CONTINUE), or it makes the answer again, with the same
seed, and what was there already is compared and left out (AGAIN). One that comes out differently ends with
``engine_failed``, which may be retried.

Tokens are counted as exactly as the upstream lets us: by the running count in its events, by the ids or probabilities
in them, else by a tokenizer, else one an event. What its usage says at the end is the truth: tokens that it has more go
out with no text and no id.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import UNKNOWN_LOGPROB, UNKNOWN_TOKEN, Generation, TokenLogprob
from inferbus_worker.engines.openai_events import Chunk
from inferbus_worker.engines.openai_writer import Ledger, LogText, Out
from inferbus_worker.engines.runs import Follows

Count = Callable[[str], int]
"""How many tokens a text is, more or less."""


class Form(Enum):
    """How an answer begins. FRESH: there is no text yet."""

    FRESH = auto()
    CONTINUE = auto()
    AGAIN = auto()


class DiffersError(Exception):
    """An answer that was made again came out differently."""


class LeftFormError(Exception):
    """The output does not keep the form that was asked for. ``error``: what the tenant is told."""

    def __init__(self, error: InferBusError) -> None:
        super().__init__(str(error))
        self.error = error


class Run:
    """A submitted generation.

    ``tokens`` of the output so far, of which ``base`` were there before the present answer began. ``tight``: how often
    the upstream has refused the limit of tokens that we asked for as too much. ``follower``: of its form, if any.
    """

    def __init__(
        self, generation: Generation, stops: StopFilter, *, shows_thoughts: bool, continues: bool, count: Count | None
    ) -> None:
        self.generation = generation
        self.key = generation.key
        self.ledger = Ledger(stops)
        self.text = LogText(generation.resume_text, shows_thoughts=shows_thoughts)
        self.tokens = len(generation.resume_ids)
        self.base = 0
        self.input_tokens: int | None = None
        self.cached_tokens = 0
        self.form = Form.FRESH
        self.retries = 0
        self.tight = 0
        self.follower: Follows | None = None
        self.usage_seen = False
        self.answered = False
        self.task: asyncio.Task[None] | None = None
        self._shows_thoughts = shows_thoughts
        self._continues = continues and generation.constraint is None
        self._count = count
        self._repeats = ""  # text that the present answer has to say once more
        self._total = 0  # tokens by the upstream's count
        self._counted = False  # the present event says how many there are
        self._guessed = False
        self._base_guessed = False
        self._input_guessed = False

    @property
    def max_new(self) -> int | None:
        """Tokens that the present answer may have."""
        wanted = self.generation.sampling.max_tokens
        return None if wanted is None else wanted - self.base

    @property
    def so_far(self) -> str:
        """Its text, of which the last part may be held back still."""
        return self.text.whole

    @property
    def estimated(self) -> bool:
        """Some of its tokens were not counted by the model's own tokenizer."""
        guessed = self._guessed if not self.usage_seen else self._total < self.tokens
        return guessed or self._base_guessed or self._input_guessed

    @property
    def overcounted(self) -> bool:
        """More tokens went out than the usage says there are."""
        return self.usage_seen and self._total < self.tokens

    def begin(self) -> Form:
        """Another answer is about to be asked for."""
        so_far = self.text.whole + self._repeats  # the last answer may have broken off before it was as far as before
        continues = self._continues and not self._repeats and self.text.plain
        guessed = self._guessed or self._base_guessed
        self.base, self._repeats, self._base_guessed = 0, "", False
        self.usage_seen = self._counted = False
        self._total = 0
        if not so_far:
            self.form = Form.FRESH
        elif continues:
            self.form, self.base, self._base_guessed = Form.CONTINUE, self.tokens, guessed
        else:
            self.form, self._repeats = Form.AGAIN, so_far
            self.text.begin_again()
        self._guessed = False
        self.text.break_off()
        return self.form

    def take(self, chunk: Chunk) -> Out:
        """What may go out now. Raises DiffersError, CallError, LeftFormError."""
        self.take_counts(chunk)
        text = self._new(self.text.feed(chunk))
        if text and self.follower is not None and not self.follower.takes(text):
            raise LeftFormError(self.follower.broken())
        ids, logprobs = self._tokens_of(chunk, text)
        self.tokens += len(ids)
        if chunk.reasoning and not text and not self._shows_thoughts:
            return Out(ids, "", logprobs)  # nothing of it ever goes out: the tokens wait for no text
        return self.ledger.feed(text, ids, logprobs)

    def end(self) -> Out:
        """The answer is complete: the marks that close it. Raises DiffersError, CallError."""
        text = self._new(self.text.end())
        if self._repeats:
            raise DiffersError("an answer made again ended too early")
        return self.ledger.feed(text, ()) if text else Out()

    def add_surplus(self) -> None:
        """Tokens of the usage that nobody has seen: of a stop string, the end of the turn, a thought. They go out with
        what is held back, at the end."""
        missing = max(0, self._total - self.tokens) if self.usage_seen else 0
        ids = [UNKNOWN_TOKEN] * missing
        self.tokens += missing
        self.ledger.feed("", ids, self._silent(ids))

    def check_complete(self) -> None:
        """Raises LeftFormError for an output that ended in the middle of its form."""
        if self.follower is not None and not self.follower.complete():
            raise LeftFormError(self.follower.broken())

    def guess_input(self, tokens: int) -> None:
        """The upstream did not say how many there are."""
        if self.input_tokens is None:
            self.input_tokens, self._input_guessed = tokens, True

    # --- counting ---------------------------------------------------------------------------------------------------

    def take_counts(self, chunk: Chunk) -> None:
        """What an event says of tokens so far."""
        if chunk.input_tokens is not None:
            # Of a text gone on with, a part of the prompt is output. It may be cut into tokens differently there, which
            # nobody can see: then the sum is right, and its parts are one off.
            self.input_tokens = max(0, chunk.input_tokens - self.base)
            self.cached_tokens = min(chunk.cached or 0, self.input_tokens)
        self._counted = chunk.output_tokens is not None
        if chunk.output_tokens is not None:
            self._total = self.base + chunk.output_tokens
            self.usage_seen = self.usage_seen or chunk.final

    def _tokens_of(self, chunk: Chunk, text: str) -> tuple[list[int], list[TokenLogprob]]:
        """Ids and probabilities of the tokens that are new with this event."""
        new = self._new_tokens(chunk, text)
        known = chunk.ids if chunk.ids is not None else [one.token_id for one in chunk.logprobs]
        ids = [UNKNOWN_TOKEN] * (new - len(known)) + known[max(0, len(known) - new) :]
        top = self.generation.sampling.logprobs
        if top is None:
            return ids, []
        told = chunk.logprobs[max(0, len(chunk.logprobs) - new) :]
        hidden = self._silent(ids[: new - len(told)])
        if hidden and not told:
            hidden[0] = replace(hidden[0], text=text.encode())
        places = zip(ids[new - len(told) :], told, strict=True)
        return ids, hidden + [_named(token, one, top) for token, one in places]

    def _new_tokens(self, chunk: Chunk, text: str) -> int:
        if self._counted:
            return max(0, self._total - self.tokens)
        if self._repeats or (self.form is Form.AGAIN and not text):
            return 0  # they were counted before
        if chunk.ids is not None:
            return len(chunk.ids)
        if chunk.logprobs:
            return len(chunk.logprobs)
        said = text or chunk.reasoning
        if not said:
            return 0
        self._guessed = True
        wanted = self.generation.sampling.max_tokens
        most = len(said) if wanted is None else wanted - self.tokens
        return max(0, min(self._count(said) if self._count is not None else 1, most))

    def _silent(self, ids: list[int]) -> list[TokenLogprob]:
        """What is said of tokens whose probability the upstream does not tell."""
        wanted = self.generation.sampling.logprobs is not None
        return [TokenLogprob(token, b"", UNKNOWN_LOGPROB) for token in ids] if wanted else []

    def _new(self, text: str) -> str:
        """What of it was not there before. Raises DiffersError."""
        if not self._repeats or not text:
            return text
        size = min(len(text), len(self._repeats))
        if text[:size] != self._repeats[:size]:
            raise DiffersError("an answer made again came out differently")
        self._repeats = self._repeats[size:]
        return text[size:]


def _named(token: int, said: TokenLogprob, top: int) -> TokenLogprob:
    """With its id, also where it is among the most probable ones."""
    own = (said.text, said.logprob)
    others = tuple(
        replace(one, token_id=token) if one.token_id == UNKNOWN_TOKEN and (one.text, one.logprob) == own else one
        for one in said.top[:top]
    )
    return TokenLogprob(token, said.text, said.logprob, others)

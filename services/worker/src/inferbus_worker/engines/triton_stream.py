"""The responses of one request, read as deltas, by the family of the model.

Each reader says of a response what is new in it, and at the end why it ended: no family of A says so, so that it is
told from the tokens.
"""

from codecs import getincrementaldecoder
from dataclasses import dataclass
from typing import Any, Protocol

from inferbus_worker.engine import UNKNOWN_TOKEN, Finish
from inferbus_worker.engines.triton_tokenizer import TextDecoder, TextTokenizer
from inferbus_worker.engines.triton_wire import Outputs

# What decoders put where a character is not complete.
_HALF = "\ufffd"


@dataclass(frozen=True, slots=True)
class Delta:
    """``token_ids``: UNKNOWN_TOKEN for each that the server does not say."""

    token_ids: list[int]
    text: str


class Reader(Protocol):
    """``input_tokens``: None if the server has not said. ``reused_blocks``: of the KV cache, likewise 0.
    ``counted``: it says how many tokens there are."""

    input_tokens: int | None
    reused_blocks: int
    counted: bool
    done: bool

    def feed(self, response: Any) -> Delta | None:
        """What a response adds. Once ``done``, nothing may follow."""
        ...

    def end(self) -> tuple[Delta | None, Finish]:
        """After the last response: what is left, and why it ended."""
        ...


class IdsReader:
    """Of a core model: ids of this response only, with the end token, which is nobody's."""

    def __init__(self, tokenizer: TextTokenizer, given: list[int]) -> None:
        """``given``: output tokens before this request, of which the last may be inside a character."""
        self.input_tokens: int | None = None
        self.reused_blocks = 0
        self.counted = True
        self.done = False
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer)
        self._decoder.feed(given)

    def feed(self, response: Any) -> Delta | None:
        outputs = Outputs(response)
        ids = outputs.integers("output_ids")
        lengths = outputs.integers("sequence_length")
        ids = ids[: lengths[0]] if lengths else tuple(token for token in ids if token >= 0)
        self.reused_blocks = int(outputs.number("kv_cache_reused_blocks") or self.reused_blocks)
        for place, token in enumerate(ids):
            if token in self._tokenizer.end_ids:
                ids, self.done = ids[:place], True
                break
        return Delta(list(ids), self._decoder.feed(ids)) if ids else None

    def end(self) -> tuple[Delta | None, Finish]:
        # The server may have had less room than we thought: then, too, it was the length.
        return None, Finish.STOP if self.done else Finish.LENGTH


class TextReader:
    """Of a text model of family A: a delta or, ``cumulative``, the whole text so far; counts if the model says them.

    Without counts a response counts as a token. The end token comes as one without text, and is nobody's; but so does a
    token inside a character, which is why such a token is held back until more follows.
    """

    def __init__(self, *, cumulative: bool, max_new: int) -> None:
        self.input_tokens: int | None = None
        self.reused_blocks = 0
        self.counted = False
        self.done = False
        self._text = _Cumulative() if cumulative else _Deltas()
        self._left = max_new
        self._held = 0

    def feed(self, response: Any) -> Delta | None:
        outputs = Outputs(response)
        if (tokens := outputs.number("num_input_tokens")) is not None:
            self.input_tokens = int(tokens)
        said = outputs.number("num_output_tokens")
        self.counted = self.counted or said is not None
        self.reused_blocks = int(outputs.number("kv_cache_reused_blocks") or self.reused_blocks)
        raw = outputs.text("text_output")
        if raw is None and said is None:
            return None  # the final flag alone
        count = 1 if said is None else int(said)
        text = self._text.new(raw or b"")
        self._left -= count
        if not text:
            self._held += count
            return None
        count, self._held = count + self._held, 0
        return Delta([UNKNOWN_TOKEN] * count, text)

    def end(self) -> tuple[Delta | None, Finish]:
        left = self._text.rest()
        if left:
            return Delta([UNKNOWN_TOKEN] * self._held, left), self._reason()
        # One token without a text at the very end is the end token.
        if self._held:
            rest = Delta([UNKNOWN_TOKEN] * (self._held - 1), "") if self._held > 1 else None
            return rest, Finish.STOP
        return None, self._reason()

    def _reason(self) -> Finish:
        return Finish.LENGTH if self._left <= 0 else Finish.STOP


class LlmApiReader:
    """Of family B: the whole text so far, a reason at the end, and no counts: a response counts as a token."""

    _REASONS = {b"length": Finish.LENGTH, b"stop": Finish.STOP}  # noqa: RUF012

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.reused_blocks = 0
        self.counted = False
        self.done = False
        self._text = _Cumulative()
        self._held = 0
        self._reason = Finish.STOP

    def feed(self, response: Any) -> Delta | None:
        outputs = Outputs(response)
        self.reused_blocks = int(outputs.number("kv_cache_reused_block") or self.reused_blocks)
        raw = outputs.text("text_output")
        if raw is None:
            return None
        self._reason = self._REASONS.get(outputs.text("finish_reason") or b"", self._reason)
        text = self._text.new(raw)
        if not text:
            self._held += 1
            return None
        count, self._held = 1 + self._held, 0
        return Delta([UNKNOWN_TOKEN] * count, text)

    def end(self) -> tuple[Delta | None, Finish]:
        # The end token is the last response if it has no text and the model stopped by itself.
        held = self._held - (1 if self._held and self._reason is Finish.STOP else 0)
        left = self._text.rest()
        return (Delta([UNKNOWN_TOKEN] * held, left) if held or left else None), self._reason


class _Deltas:
    """Texts that follow each other."""

    def __init__(self) -> None:
        self._utf8 = getincrementaldecoder("utf-8")(errors="replace")

    def new(self, raw: bytes) -> str:
        return self._utf8.decode(raw)

    def rest(self) -> str:
        return ""


class _Cumulative:
    """Texts of which each begins with the one before, but for a character that was not complete."""

    def __init__(self) -> None:
        self._seen = 0
        self._whole = ""

    def new(self, raw: bytes) -> str:
        self._whole = raw.decode(errors="replace")
        sure = self._whole.rstrip(_HALF)
        text, self._seen = sure[self._seen :], max(self._seen, len(sure))
        return text

    def rest(self) -> str:
        """Half characters at the very end are text after all."""
        return self._whole[self._seen :]

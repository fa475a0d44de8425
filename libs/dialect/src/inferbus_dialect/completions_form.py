"""The answer to an older completion: stream and body have one shape."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.chat_form import finite
from inferbus_dialect.errors import error_object
from inferbus_dialect.form import DONE, event
from inferbus_dialect.translate import FINISH_REASONS, add_usage, usage_object


@dataclass(slots=True)
class _Logprobs:
    """Of the tokens of one event, or of all, in the shape that these completions have."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def extend(self, more: "_Logprobs") -> None:
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


@dataclass(slots=True)
class _Choice:
    """``model``: which one answers. ``total``, ``tokens``: of the log-probabilities, for the mean. ``offset``: in
    characters of the text."""

    model: str
    text: list[str] = field(default_factory=list)
    logprobs: _Logprobs = field(default_factory=_Logprobs)
    finish_reason: str | None = None
    opened: bool = False
    offset: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    total: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else float("-inf")


class CompletionForm:
    """See :class:`inferbus_dialect.form.Form`. ``reply`` is made by ``completions``: of each prompt's ``per_prompt``
    choices, the best ``kept`` are given."""

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        self._first = first
        self._reply = reply
        self._stream = stream
        self._choices = [_Choice(reply["model"]) for _ in range(reply["n"])]
        self._revision = ""
        self._usage = Usage()
        self._tokens = 0

    def accept(self) -> Sequence[bytes]:
        return ()

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        self._revision = revision
        one = self._choices[choice]
        one.model = model or one.model
        if one.opened:
            return ()
        one.opened = True
        echo = self._reply.get("echo")
        if echo is None:
            return ()
        prompt = echo[choice // self._reply["per_prompt"]]
        return self._events(choice, prompt, None, None)

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        one = self._choices[choice]
        self._tokens += tokens
        for token in logprobs:
            one.total += finite(token.logprob)
            one.tokens += 1
        found = None
        if self._reply.get("logprobs") is not None and logprobs:
            found = self._logprobs(one, logprobs)
            if not self._stream:
                one.logprobs.extend(found)
        if not text and found is None:
            return ()
        return self._events(choice, text, found, None)

    def binary(self, index: int, data: bytes) -> None:
        """A completion has none."""

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        one = self._choices[choice]
        events = [*self.open(choice, revision, model)]
        add_usage(self._usage, close.usage)
        one.finish_reason = FINISH_REASONS[close.finish_reason]
        return [*events, *self._events(choice, "", None, one.finish_reason)]

    def finish(self) -> Sequence[bytes]:
        if not self._stream:
            return ()
        if not self._reply.get("include_usage"):
            return [DONE]
        return [event(self._object([], usage_object(self._usage), self._choices[0].model)), DONE]

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        return [event(error_object(error))]

    def body(self) -> bytes:
        wanted = self._reply.get("logprobs") is not None
        choices = []
        for index, one in enumerate(self._best()):
            logprobs = one.logprobs if wanted else None
            choices.append(_choice_object(index, "".join(one.text), logprobs, one.finish_reason))
        return orjson.dumps(self._object(choices, None, self._choices[0].model) | {"usage": usage_object(self._usage)})

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _best(self) -> list[_Choice]:
        """Of each prompt's choices the best, in the order of the prompts."""
        per_prompt, kept = self._reply["per_prompt"], self._reply["kept"]
        best: list[_Choice] = []
        for start in range(0, len(self._choices), per_prompt):
            made = self._choices[start : start + per_prompt]
            best += made if kept == per_prompt else sorted(made, key=lambda one: -one.mean)[:kept]
        return best

    def _logprobs(self, one: _Choice, tokens: Sequence[TokenLogprob]) -> _Logprobs:
        found = _Logprobs()
        for token in tokens:
            name = token_name(token.text)
            found.tokens.append(name)
            found.token_logprobs.append(finite(token.logprob))
            top = {token_name(other.text): finite(other.logprob) for other in token.top}
            found.top_logprobs.append({**top, name: finite(token.logprob)})
            found.text_offset.append(one.offset)
            one.offset += len(one.decoder.decode(token.text))
        return found

    def _events(self, choice: int, text: str, logprobs: _Logprobs | None, finish_reason: str | None) -> list[bytes]:
        if not self._stream:
            self._choices[choice].text.append(text)
            return []
        part = _choice_object(choice, text, logprobs, finish_reason)
        return [event(self._object([part], self._usage_so_far(), self._choices[choice].model))]

    def _usage_so_far(self) -> dict[str, Any] | None:
        """The input is counted with the end of each choice; until then it is 0."""
        if not self._reply.get("continuous_usage"):
            return None
        return usage_object(Usage(input_tokens=self._usage.input_tokens, output_tokens=self._tokens))

    def _object(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, model: str) -> dict[str, Any]:
        completion = {
            "id": f"cmpl-{self._first.hex()}",
            "object": "text_completion",
            "created": self._reply["created"],
            "model": model,
            "system_fingerprint": self._revision,
            "choices": choices,
        }
        return completion | {"usage": usage} if self._stream and self._reply.get("include_usage") else completion


def token_name(text: bytes) -> str:
    """A token as text; a part of a character as OpenAI writes it: ``bytes:\\xe2\\x80``."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{code:02x}" for code in text)


def _choice_object(index: int, text: str, logprobs: _Logprobs | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

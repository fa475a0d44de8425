"""The answer to a chat completion with more to it than text: calls, reasoning, log-probabilities, usage all along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import choice_id
from inferbus_contracts.pieces import CallArguments, CallStart, Piece, Pieces, Reasoning, Said, Text
from inferbus_runtime.errors import InferBusError

from inferbus_dialect.errors import error_object
from inferbus_dialect.form import DONE, event
from inferbus_dialect.translate import FINISH_REASONS, add_usage, completion_id, usage_object

# JSON has no infinity; OpenAI writes this for what is out of the question.
_LEAST_LOGPROB = -9999.0


@dataclass(slots=True)
class _Choice:
    """``model``: which one answers. ``pending``: log-probabilities of text that is held back."""

    pieces: Pieces
    model: str
    said: Said = field(default_factory=Said)
    opened: bool = False
    finish_reason: str | None = None
    pending: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ChatForm:
    """See :class:`inferbus_dialect.form.Form`. ``reply`` is made by ``chat_plan``."""

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        reading = {mark: bool(reply.get(mark)) for mark in ("tools", "reasoning", "must_call")}
        self._first = first
        self._reply = reply
        self._stream = stream
        # Besides the events the answer as one body is only wanted for the store.
        self._keeps = not stream or bool(reply.get("stored"))
        self._choices = [_Choice(Pieces(**reading), reply["model"]) for _ in range(reply["n"])]
        self._revision = ""
        self._usage = Usage()
        self._tokens = 0
        self._finished = False

    def accept(self) -> Sequence[bytes]:
        return ()

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        self._revision = revision
        one = self._choices[choice]
        one.model = model or one.model
        if one.opened:
            return ()
        one.opened = True
        return self._events(choice, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        one = self._choices[choice]
        self._tokens += tokens
        if self._reply.get("logprobs"):
            one.pending += [logprob_object(token) for token in logprobs]
        return self._said(choice, one.pieces.feed(text))

    def binary(self, index: int, data: bytes) -> None:
        """A chat has none."""

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        one = self._choices[choice]
        events = [*self.open(choice, revision, model)]
        events += self._said(choice, one.pieces.end())
        if one.pending:  # of tokens without a text of their own
            events += self._said(choice, [Text("")])
        add_usage(self._usage, close.usage)
        reason = FINISH_REASONS[close.finish_reason]
        one.finish_reason = "tool_calls" if reason == "stop" and one.pieces.called else reason
        events += self._events(choice, {}, finish_reason=one.finish_reason)
        return events

    def finish(self) -> Sequence[bytes]:
        self._finished = True
        if not self._stream:
            return ()
        if not self._reply.get("include_usage"):
            return [DONE]
        return [event(self._chunk([], usage_object(self._usage), self._choices[0].model)), DONE]

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        return [event(error_object(error))]

    def body(self) -> bytes:
        """Nothing before the end: a chat completion has no form for that."""
        if not (self._finished and self._keeps):
            return b""
        return orjson.dumps(
            {
                **self._head("chat.completion", self._choices[0].model),
                "choices": [self._choice_object(at, one) for at, one in enumerate(self._choices)],
                "usage": usage_object(self._usage),
                **({"metadata": self._reply["metadata"]} if self._reply.get("metadata") else {}),
            }
        )

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _said(self, choice: int, pieces: Sequence[Piece]) -> list[bytes]:
        one = self._choices[choice]
        if self._keeps:
            one.said.add(pieces)
        events = []
        for piece in pieces:
            logprobs, one.pending = one.pending, []
            if not isinstance(piece, Text):
                logprobs = []  # they belong to what is said, not to what is thought or called
            one.logprobs += logprobs if self._keeps else ()
            delta = self._delta(choice, piece)
            if delta is not None:
                events += self._events(choice, delta, logprobs)
        if one.pieces.silent:
            one.pending = []
        return events

    def _delta(self, choice: int, piece: Piece) -> dict[str, Any] | None:
        match piece:
            case Text(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallStart(index, name):
                call = {"index": index, **call_object(self._first, choice, index, name, "")}
                return {"tool_calls": [call]}
            case CallArguments(index, fragment):
                return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
            case _:
                return None

    def _events(
        self,
        choice: int,
        delta: dict[str, Any],
        logprobs: Sequence[dict[str, Any]] = (),
        finish_reason: str | None = None,
    ) -> list[bytes]:
        if not self._stream:
            return []
        content = {"content": logprobs, "refusal": None} if logprobs else None
        part = {"index": choice, "delta": delta, "logprobs": content, "finish_reason": finish_reason}
        return [event(self._chunk([part], self._usage_so_far(), self._choices[choice].model))]

    def _usage_so_far(self) -> dict[str, Any] | None:
        """The input is counted with the end of each choice; until then it is 0."""
        if not self._reply.get("continuous_usage"):
            return None
        usage = Usage(input_tokens=self._usage.input_tokens, output_tokens=self._tokens)
        usage.cached_input_tokens = self._usage.cached_input_tokens
        return usage_object(usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, model: str) -> dict[str, Any]:
        chunk = {**self._head("chat.completion.chunk", model), "choices": choices}
        # As OpenAI does it: null in every chunk before the one that has it.
        return chunk | {"usage": usage} if self._reply.get("include_usage") else chunk

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        head = {
            "id": completion_id(self._first),
            "object": kind,
            "created": self._reply["created"],
            "model": model,
            "system_fingerprint": self._revision,
        }
        tier = self._reply.get("service_tier")
        return head | {"service_tier": tier} if tier else head

    def _choice_object(self, index: int, one: _Choice) -> dict[str, Any]:
        said = one.said
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["content"] = said.text or None
            message["tool_calls"] = [
                call_object(self._first, index, at, call.name, call.arguments) for at, call in enumerate(said.calls)
            ]
        logprobs = {"content": one.logprobs, "refusal": None} if self._reply.get("logprobs") else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": one.finish_reason}


def call_object(first: bytes, choice: int, index: int, name: str, arguments: str) -> dict[str, Any]:
    """A call as OpenAI writes it. Its id follows from the request's, so that it is the same at every edge."""
    name_of_call = f"call_{choice_id(first, choice).hex()}_{index}"
    return {"id": name_of_call, "type": "function", "function": {"name": name, "arguments": arguments}}


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(token.text, token.logprob),
        "top_logprobs": [_token(one.text, one.logprob) for one in token.top],
    }


def _token(text: bytes, logprob: float) -> dict[str, Any]:
    """A part of a character is no text by itself: ``bytes`` says what it is."""
    return {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": finite(logprob)}


def finite(logprob: float) -> float:
    return logprob if logprob >= _LEAST_LOGPROB else _LEAST_LOGPROB

"""An answer as Anthropic's API writes it: a message of blocks (thinking, text, tool_use), streamed or in one piece."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.pieces import CallArguments, CallEnd, CallStart, Piece, Pieces, Reasoning, Text
from inferbus_dialect.form import event
from inferbus_runtime.errors import InferBusError
from pydantic_core import from_json

from inferbus_edge.core.messages_errors import error_object


class MessagesForm:
    """See :class:`.form.Form`. The log counts tokens at the end of a request, so ``message_start`` says 0."""

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        self._first = first
        self._model = reply["model"]
        self._max_tokens = reply["max_tokens"]
        self._stream = stream
        must_call = reply.get("must_call", False)
        self._pieces = Pieces(tools=reply["tools"], reasoning=reply["reasoning"], must_call=must_call)
        self._blocks: list[_Block] = []
        self._begun = False
        self._calls = 0  # whole ones
        self._stops: list[str] = reply["stops"]
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._usage = Usage()

    def accept(self) -> Sequence[bytes]:
        return ()

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        self._model = model or self._model
        if self._begun:  # a worker was lost: the message goes on
            return ()
        self._begun = True
        return self._events(("message_start", {"message": self._message([])}))

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        return self._add(self._pieces.feed(text))

    def binary(self, index: int, data: bytes) -> None:
        """A message has none."""

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        start = self.open(choice, revision, model)
        rest = self._add(self._pieces.end())
        self._usage = close.usage
        self._stop_reason = self._why(close)
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        last = ("message_delta", {"delta": delta, "usage": _usage_object(close.usage)})
        return (*start, *rest, *self._end_block(), *self._events(last))

    def finish(self) -> Sequence[bytes]:
        return self._events(("message_stop", {}))

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        return (event(error_object(error, self._first), "error"),) if self._stream else ()

    def body(self) -> bytes:
        return orjson.dumps(self._message([block.content() for block in self._blocks]))

    # --- parts ------------------------------------------------------------------------------------------------------

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._first.hex()}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": self._stop_reason,
            "stop_sequence": self._stop_sequence,
            "usage": {**_usage_object(self._usage), "service_tier": "standard"},
        }

    def _why(self, close: Close) -> str:
        if close.HasField("stop_index") and close.stop_index < len(self._stops):
            self._stop_sequence = self._stops[close.stop_index]
            return "stop_sequence"
        if close.finish_reason == FinishReason.FINISH_REASON_LENGTH:
            whole = close.usage.output_tokens >= self._max_tokens
            return "max_tokens" if whole else "model_context_window_exceeded"
        return "tool_use" if self._calls and self._pieces.called else "end_turn"

    def _add(self, pieces: Iterable[Piece]) -> list[bytes]:
        out: list[bytes] = []
        for piece in pieces:
            match piece:
                case Text(text):
                    out += self._append("text", "text_delta", "text", text)
                case Reasoning(text):
                    out += self._append("thinking", "thinking_delta", "thinking", text)
                case CallStart(index, name):
                    out += self._begin(_Block("tool_use", f"toolu_{self._first.hex()}_{index}", name))
                case CallArguments(_, fragment):
                    out += self._append("tool_use", "input_json_delta", "partial_json", fragment)
                case CallEnd():
                    self._blocks[-1].whole = True
                    self._calls += self._blocks[-1].arguments() is not None
                    out += self._end_block()
        return out

    def _append(self, kind: str, delta: str, field: str, text: str) -> list[bytes]:
        out = []
        if not self._blocks or self._blocks[-1].kind != kind or self._blocks[-1].ended:
            out = self._begin(_Block(kind))
        self._blocks[-1].parts.append(text)
        fields = {"index": len(self._blocks) - 1, "delta": {"type": delta, field: text}}
        return out + self._events(("content_block_delta", fields))

    def _begin(self, block: "_Block") -> list[bytes]:
        out = self._end_block()
        self._blocks.append(block)
        fields = {"index": len(self._blocks) - 1, "content_block": block.content()}
        return out + self._events(("content_block_start", fields))

    def _end_block(self) -> list[bytes]:
        if not self._blocks or self._blocks[-1].ended:
            return []
        self._blocks[-1].ended = True
        return self._events(("content_block_stop", {"index": len(self._blocks) - 1}))

    def _events(self, *events: tuple[str, dict[str, Any]]) -> list[bytes]:
        return [event({"type": name, **fields}, name) for name, fields in events] if self._stream else []


class _Block:
    """One block of the message as it grows; ``parts`` are its text, or the JSON text of its arguments."""

    __slots__ = ("call_id", "ended", "kind", "name", "parts", "whole")

    def __init__(self, kind: str, call_id: str = "", name: str = "") -> None:
        self.kind = kind
        self.call_id = call_id
        self.name = name
        self.parts: list[str] = []
        self.ended = False
        self.whole = False  # its arguments are

    def arguments(self) -> bytes | None:
        """JSON text of the object, as far as it came; None if it is none: not every engine has grammars."""
        text = "".join(self.parts) or "{}"
        try:
            value = from_json(text, allow_inf_nan=False, allow_partial=not self.whole)
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        return text.encode() if self.whole else json.dumps(value).encode()

    def content(self) -> dict[str, Any]:
        text = "".join(self.parts)
        if self.kind == "text":
            return {"type": "text", "text": text}
        if self.kind == "thinking":
            # Nothing is checked when it comes back, so there is nothing to sign.
            return {"type": "thinking", "thinking": text, "signature": ""}
        arguments = self.arguments()
        if arguments is None:
            return {"type": "text", "text": f'<tool_call>\n{{"name": {json.dumps(self.name)}, "arguments": {text}'}
        return {"type": "tool_use", "id": self.call_id, "name": self.name, "input": orjson.Fragment(arguments)}


def _usage_object(usage: Usage) -> dict[str, Any]:
    """All input is the sum of the three input counts."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }

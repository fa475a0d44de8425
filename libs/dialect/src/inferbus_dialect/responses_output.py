"""The output items of a response while they grow: messages, calls of functions, reasoning.

Each says what it is (``item``) and what a stream tells of it: the payloads of events, ``(type, fields)``, without their
sequence numbers.
"""

from collections.abc import Sequence
from typing import Any

from inferbus.bus.v1.frame_pb2 import TokenLogprob

from inferbus_dialect.chat_form import finite

Payload = tuple[str, dict[str, Any]]

COMPLETED, INCOMPLETE, IN_PROGRESS = "completed", "incomplete", "in_progress"


class MessageItem:
    """Text of the assistant: one content part."""

    __slots__ = ("_logprobs", "_parts", "_where", "at", "id")

    def __init__(self, hexed: str, at: int) -> None:
        """``hexed``: of the response's id; ``at``: which output item it is."""
        self.id = f"msg_{hexed}_{at}"
        self.at = at
        self._where = {"item_id": self.id, "output_index": at, "content_index": 0}
        self._parts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begun(self) -> list[Payload]:
        item = {"id": self.id, "type": "message", "role": "assistant", "status": IN_PROGRESS, "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [
            ("response.output_item.added", {"output_index": self.at, "item": item}),
            ("response.content_part.added", {**self._where, "part": part}),
        ]

    def grow(self, text: str, logprobs: list[dict[str, Any]]) -> Payload:
        self._parts.append(text)
        self._logprobs += logprobs
        return "response.output_text.delta", {**self._where, "delta": text, "logprobs": logprobs}

    def ended(self, status: str) -> list[Payload]:
        part = self._part()
        return [
            ("response.output_text.done", {**self._where, "text": part["text"], "logprobs": self._logprobs}),
            ("response.content_part.done", {**self._where, "part": part}),
            ("response.output_item.done", {"output_index": self.at, "item": self.item(status)}),
        ]

    def item(self, status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": [self._part()]}

    def _part(self) -> dict[str, Any]:
        text = "".join(self._parts)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs}


class CallItem:
    """A call of a function. ``whole``: its arguments are."""

    __slots__ = ("_call_id", "_name", "_parts", "_where", "at", "id", "whole")

    def __init__(self, hexed: str, at: int, name: str) -> None:
        self.id = f"fc_{hexed}_{at}"
        self.at = at
        self.whole = False
        self._call_id = f"call_{hexed}_{at}"
        self._name = name
        self._where = {"item_id": self.id, "output_index": at}
        self._parts: list[str] = []

    def begun(self) -> list[Payload]:
        return [("response.output_item.added", {"output_index": self.at, "item": self.item(IN_PROGRESS)})]

    def grow(self, fragment: str) -> Payload:
        self._parts.append(fragment)
        return "response.function_call_arguments.delta", {**self._where, "delta": fragment}

    def ended(self, status: str) -> list[Payload]:
        done = {**self._where, "name": self._name, "arguments": "".join(self._parts)}
        return [
            ("response.function_call_arguments.done", done),
            ("response.output_item.done", {"output_index": self.at, "item": self.item(status)}),
        ]

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status if self.whole or status == IN_PROGRESS else INCOMPLETE,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._parts),
        }


class ThoughtItem:
    """Reasoning, in the open: one content part, and no summary, since nobody writes one."""

    __slots__ = ("_parts", "_where", "at", "id")

    def __init__(self, hexed: str, at: int) -> None:
        self.id = f"rs_{hexed}_{at}"
        self.at = at
        self._where = {"item_id": self.id, "output_index": at, "content_index": 0}
        self._parts: list[str] = []

    def begun(self) -> list[Payload]:
        item = {"id": self.id, "type": "reasoning", "status": IN_PROGRESS, "summary": [], "content": []}
        return [
            ("response.output_item.added", {"output_index": self.at, "item": item}),
            ("response.content_part.added", {**self._where, "part": {"type": "reasoning_text", "text": ""}}),
        ]

    def grow(self, text: str) -> Payload:
        self._parts.append(text)
        return "response.reasoning_text.delta", {**self._where, "delta": text}

    def ended(self, status: str) -> list[Payload]:
        text = "".join(self._parts)
        return [
            ("response.reasoning_text.done", {**self._where, "text": text}),
            ("response.content_part.done", {**self._where, "part": {"type": "reasoning_text", "text": text}}),
            ("response.output_item.done", {"output_index": self.at, "item": self.item(status)}),
        ]

    def item(self, status: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": "".join(self._parts)}]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": content}


OutputItem = MessageItem | CallItem | ThoughtItem


def logprob_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """One a token. A part of a character has no text of its own: ``bytes`` says what it is."""
    return [{**_token(one), "top_logprobs": [_token(other) for other in one.top]} for one in logprobs]


def _token(one: Any) -> dict[str, Any]:
    return {"token": one.text.decode(errors="replace"), "bytes": list(one.text), "logprob": finite(one.logprob)}

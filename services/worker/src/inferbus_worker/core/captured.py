"""What was asked, as a captured request's first frame says it."""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, PromptInput, TokenIds

MAX_INPUT_BYTES = 64 << 10
# What is taken of the request, so that its JSON fits as a rule; and what JSON writes around a message.
_TAKEN_BYTES, _AROUND = 48 << 10, 32
# JSON writes a token id in so many bytes at most.
_TOKEN_BYTES = 8


def captured_input(request: GenerateRequest) -> tuple[str, bool]:
    """(JSON text, whether there was more): the newest messages of a chat, and its tools; the beginning of a prompt. Of
    several choices the first one says it; embeddings say nothing.

    Its work is bounded, however long the request is: the engine's tokens wait meanwhile.
    """
    if not request.context.captured or request.input_counted_elsewhere:
        return "", False
    kind = request.WhichOneof("input")
    if kind == "chat":
        given, truncated = _newest(request.chat)
    elif kind == "prompt":
        given, truncated = _beginning(request.prompt)
    else:
        return "", False
    data = json.dumps(given, ensure_ascii=False).encode()
    if len(data) <= MAX_INPUT_BYTES:
        return data.decode(), truncated
    return data[:MAX_INPUT_BYTES].decode(errors="ignore"), True


def _newest(chat: ChatInput) -> tuple[dict[str, Any], bool]:
    left, truncated = _TAKEN_BYTES, False
    messages: list[ChatMessage] = []
    for message in reversed(chat.messages):
        size = message.ByteSize() + _AROUND
        if size > left:
            truncated = True
            if not messages:
                messages.append(ChatMessage(role=message.role, content=_cut(message.content, left)))
            break
        messages.append(message)
        left -= size
    shown = ChatInput(
        messages=reversed(messages), tool_mode=chat.tool_mode, tool_name=chat.tool_name,
        parallel_tool_calls=chat.parallel_tool_calls, reasoning_effort=chat.reasoning_effort,
    )  # fmt: skip
    for tool in chat.tools:
        left -= tool.ByteSize() + _AROUND
        if left < 0:
            truncated = True
            break
        shown.tools.append(tool)
    return MessageToDict(shown, preserving_proto_field_name=True), truncated


def _beginning(prompt: PromptInput) -> tuple[dict[str, Any], bool]:
    if prompt.HasField("text"):
        text = _cut(prompt.text, _TAKEN_BYTES)
        shown = PromptInput(text=text)
        truncated = len(text) < len(prompt.text)
    else:
        ids = prompt.tokens.ids[: _TAKEN_BYTES // _TOKEN_BYTES]
        shown = PromptInput(tokens=TokenIds(ids=ids))
        truncated = len(ids) < len(prompt.tokens.ids)
    return MessageToDict(shown, preserving_proto_field_name=True), truncated


def _cut(text: str, size: int) -> str:
    """The beginning that fits into ``size`` bytes."""
    return text[:size].encode()[:size].decode(errors="ignore")

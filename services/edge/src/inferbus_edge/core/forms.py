"""The table of answer forms, one for each API, by the name in the reply description."""

from collections.abc import Callable, Mapping
from typing import Any

from inferbus_edge.core.form import Form

Maker = Callable[[bytes, Mapping[str, Any], bool], Form]
"""(id of the first choice, reply description, whether events are wanted) → form."""


def _chat(first: bytes, reply: Mapping[str, Any], stream: bool) -> Form:
    from inferbus_edge.core.chat_form import ChatForm

    return ChatForm(first, reply, stream)


def _messages(first: bytes, reply: Mapping[str, Any], stream: bool) -> Form:
    from inferbus_edge.core.messages_form import MessagesForm

    return MessagesForm(first, reply, stream)


def _responses(first: bytes, reply: Mapping[str, Any], stream: bool) -> Form:
    from inferbus_edge.core.responses_form import ResponsesForm

    return ResponsesForm(first, reply, stream)


FORMS: dict[str, Maker] = {"chat": _chat, "messages": _messages, "responses": _responses}


def form_of(first: bytes, reply: Mapping[str, Any], *, stream: bool) -> Form:
    """A fresh form. KeyError for an API that this edge does not know."""
    return FORMS[reply["api"]](first, reply, stream)

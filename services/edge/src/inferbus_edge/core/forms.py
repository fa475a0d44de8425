"""The table of answer forms, one for each API, by the name in the reply description."""

from collections.abc import Callable, Mapping
from typing import Any

from inferbus_dialect.chat_form import ChatForm
from inferbus_dialect.completions_form import CompletionForm
from inferbus_dialect.embeddings import EmbeddingsForm
from inferbus_dialect.form import Form
from inferbus_dialect.responses_form import ResponsesForm

from inferbus_edge.core.inference_v2_form import InferenceForm
from inferbus_edge.core.messages_form import MessagesForm

# (id of the first choice, reply description, whether events are wanted) → form
FORMS: dict[str, Callable[[bytes, Mapping[str, Any], bool], Form]] = {
    "chat": ChatForm,
    "completions": CompletionForm,
    "embeddings": EmbeddingsForm,
    "inference": InferenceForm,
    "messages": MessagesForm,
    "responses": ResponsesForm,
}

# These come in one piece, however they are asked for.
WHOLE = frozenset({"embeddings", "inference"})


def form_of(first: bytes, reply: Mapping[str, Any], *, stream: bool) -> Form:
    """A fresh form. KeyError for an API that this edge does not know."""
    return FORMS[reply["api"]](first, reply, stream)

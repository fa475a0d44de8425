"""What the input of a response may hold: items and their parts, checked strictly.

An item may come as the SDK's helpers write it by hand, or as an earlier answer gave it: so the fields that only answers
have are known here as well.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from inferbus_edge.core.schema import BY_SHAPE, LIST, STRICT, TEXT, refused

MAX_ITEMS = 2048
_MAX_PARTS = 2048
_MAX_NAME = 64
_MAX_ID = 128

Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
Id = Annotated[str, Field(min_length=1, max_length=_MAX_ID)]
Status = Literal["in_progress", "completed", "incomplete"]
_AnswersField = Field(default=None, description="What an answer's item carries; without an effect here.")
_NotServed = Annotated[Any, refused()]


class _Advice(dict[str, str]):
    """The context of a discriminator's error, which must be hashable to stand inside a union."""

    __hash__ = object.__hash__


def by_kind(*kinds: str, absent: Callable[[Any], str] | None = None) -> Discriminator:
    """Chooses between members tagged ``<kind>`` by ``type``; ``absent`` says which, of a value without one."""

    def kind(value: Any) -> str | None:
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        if found is None and absent is not None:
            found = absent(value)
        return f"<{found}>" if found in kinds else None

    shown = ", ".join(f"'{one}'" for one in kinds)
    return Discriminator(kind, "unknown_kind", "{advice}", _Advice(advice=f"should be one of {shown}", field="type"))


class TextPart(BaseModel):
    model_config = STRICT
    type: Literal["input_text", "output_text"]
    text: str
    annotations: Any = _AnswersField
    logprobs: Any = _AnswersField
    prompt_cache_breakpoint: Any = Field(default=None, description="A hint without an effect: prefixes are cached anyway.")


class RefusalPart(BaseModel):
    model_config = STRICT
    type: Literal["refusal"]
    refusal: str


class ImagePart(BaseModel):
    """Known, so that a model without vision is named as what is wrong with it."""

    model_config = STRICT
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: _NotServed = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    prompt_cache_breakpoint: Any = Field(default=None, description="A hint without an effect.")


Part = Annotated[
    Annotated[TextPart, Tag("<input_text>")]
    | Annotated[TextPart, Tag("<output_text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<input_image>")],
    by_kind("input_text", "output_text", "refusal", "input_image"),
]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(max_length=_MAX_PARTS), Tag(LIST)], BY_SHAPE
]


class MessageItem(BaseModel):
    model_config = STRICT
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = _AnswersField


class FunctionCallItem(BaseModel):
    model_config = STRICT
    type: Literal["function_call"]
    call_id: Id
    name: Name
    arguments: str
    id: Id | None = None
    status: Status | None = None
    namespace: _NotServed = None
    caller: Annotated[Any, refused({"type": "direct"})] = None
    # A reserved word in Python, so by its alias.
    asynchronous: Annotated[Any, refused(False)] = Field(default=None, alias="async")
    created_by: Any = _AnswersField
    parsed_arguments: Any = Field(default=None, description="What the SDK's parse() adds; without an effect here.")


class FunctionOutputItem(BaseModel):
    model_config = STRICT
    type: Literal["function_call_output"]
    call_id: Id
    output: Content
    id: Id | None = None
    status: Status | None = None
    name: str | None = _AnswersField
    namespace: _NotServed = None
    caller: Annotated[Any, refused({"type": "direct"})] = None
    created_by: Any = _AnswersField


class ReasoningItem(BaseModel):
    """Kept in the conversation, and not shown to the model again: chat templates leave out what was thought earlier."""

    model_config = STRICT
    type: Literal["reasoning"]
    summary: list[dict[str, Any]] = Field(default_factory=list)
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    id: Id | None = None
    status: Status | None = None


class ItemReference(BaseModel):
    """An item of a stored response, by its id."""

    model_config = STRICT
    type: Literal["item_reference"] | None = None
    id: Id


def _without_type(value: Any) -> str:
    """Messages and references may leave it out."""
    if isinstance(value, dict):
        return "item_reference" if value.keys() <= {"type", "id"} else "message"
    return "item_reference" if isinstance(value, ItemReference) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    by_kind(
        "message", "function_call", "function_call_output", "reasoning", "item_reference", absent=_without_type
    ),
]
Input = Annotated[
    Annotated[str, Field(min_length=1), Tag(TEXT)]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS), Tag(LIST)],
    BY_SHAPE,
]

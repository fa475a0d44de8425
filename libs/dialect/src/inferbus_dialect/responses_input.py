"""What the input of a response may hold: items and their parts, checked strictly.

An item may come as the SDK's helpers write it by hand, or as an earlier answer gave it: so the fields that only answers
have are known here as well.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from inferbus_dialect.schema import BY_SHAPE, LIST, STRICT, TEXT, by_kind, kind, refused

MAX_ITEMS = 2048
_MAX_PARTS = 2048
_MAX_NAME = 64
_MAX_ID = 128

Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
Id = Annotated[str, Field(min_length=1, max_length=_MAX_ID)]
Status = Literal["in_progress", "completed", "incomplete"]
_AnswersField = Field(default=None, description="What an answer's item carries; without an effect here.")
_NotServed = Annotated[Any, refused()]


_PARTS = ("input_text", "output_text", "refusal", "input_image")
_PART_TYPE = kind(_PARTS, ("input_file", "input_audio", "input_video", "computer_screenshot"), "send text")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_ITEM_TYPE = kind(
    _ITEMS,
    (
        "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
        "computer_call", "computer_call_output", "custom_tool_call", "custom_tool_call_output", "file_search_call",
        "image_generation_call", "local_shell_call", "local_shell_call_output", "mcp_approval_request",
        "mcp_approval_response", "mcp_call", "mcp_list_tools", "shell_call", "shell_call_output", "tool_search_call",
        "tool_search_output", "web_search_call",
    ),
    "tools here are functions that you call yourself",
)  # fmt: skip


class TextPart(BaseModel):
    model_config = STRICT
    type: Annotated[Literal["input_text", "output_text"], _PART_TYPE]
    text: str
    annotations: Any = _AnswersField
    logprobs: Any = _AnswersField
    parsed: Any = Field(default=None, description="What the SDK's parse() adds; without an effect here.")
    prompt_cache_breakpoint: Any = Field(
        default=None, description="A hint without an effect: prefixes are cached anyway."
    )


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
    by_kind(*_PARTS),
]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Field(max_length=_MAX_PARTS), Tag(LIST)], BY_SHAPE
]


class MessageItem(BaseModel):
    model_config = STRICT
    type: Annotated[Literal["message"] | None, _ITEM_TYPE] = None
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
    # A reserved word in Python: the SDK's own dumps of answers have it both ways.
    asynchronous: Annotated[Any, refused(False)] = Field(default=None, alias="async")
    async_: Annotated[Any, refused(False)] = None
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


def _item_tag(value: Any) -> str:
    """Messages and references may leave their type out."""
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else {}
    found = given.get("type")
    if found is None:
        found = "item_reference" if "id" in given and given.keys() <= {"type", "id"} else "message"
    return f"<{found}>" if found in _ITEMS else "<message>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(_item_tag),
]
Input = Annotated[
    Annotated[str, Field(min_length=1), Tag(TEXT)]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS), Tag(LIST)],
    BY_SHAPE,
]

"""What a Messages request may say: Anthropic's schema, checked strictly.

As with OpenAI's, a field is served, or a hint without effect by its nature, or refused by name. Nothing that a caller
asked for is silently ignored.
"""

import re
from typing import Annotated, Any, Literal

from inferbus_contracts.sampling_bounds import MAX_STOPS
from inferbus_dialect.labels import END_USER
from inferbus_dialect.schema import BY_SHAPE, LIST, STRICT, TEXT, bad_value, by_kind, kind, refused
from pydantic import BaseModel, BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

_MAX_TOKENS = (1 << 31) - 1
_MAX_MESSAGES, _MAX_BLOCKS, _MAX_ALL_BLOCKS, _MAX_TOOLS = 2048, 2048, 10_000, 128
_HINT = "A hint without effect: prefixes are cached by themselves."
_NULL = "Refused (400 unsupported_parameter)."
_KIND = re.compile(r"[a-z0-9_]{1,64}")
# Blocks that Anthropic's API has as well; of any other type is said which ones there are.
_OTHER_BLOCKS = frozenset(
    (
        "document", "search_result", "redacted_thinking", "server_tool_use", "web_search_tool_result",
        "web_fetch_tool_result", "code_execution_tool_result", "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result", "tool_search_tool_result", "container_upload", "tool_reference",
        "browser_state", "mcp_tool_use", "mcp_tool_result", "compaction",
    )
)  # fmt: skip


def _unsupported(advice: str) -> PydanticCustomError:
    return PydanticCustomError("unsupported_parameter", "{advice}", {"advice": advice})


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def _block(*served: str) -> BeforeValidator:
    """A block of one of these types: what stands where a block may."""

    def check(value: Any) -> Any:
        named = _type_of(value)
        if named is None or named in served:
            return value
        if isinstance(named, str) and named in _OTHER_BLOCKS:
            raise _unsupported(f"blocks of type '{named}' are not served here")
        raise bad_value(f"should be a block of type {' or '.join(served)}")

    return BeforeValidator(check)


def _own_tool(value: Any) -> Any:
    named = _type_of(value)
    if isinstance(named, str) and named != "custom":
        these = f"tools of type '{named}'" if _KIND.fullmatch(named) else "tools of this type"
        raise _unsupported(f"{these} are not served here, only tools of type 'custom'")
    return value


def _blocks(value: Any) -> int:
    """In ``content``, those of tool results included."""
    content = value.get("content") if isinstance(value, dict) else None
    return len(content) + sum(map(_blocks, content)) if isinstance(content, list) else 0


def _bounded(value: Any) -> Any:
    """Before each block is looked at: each costs a few microseconds, and a body has room for a hundred thousand."""
    if isinstance(value, list) and sum(map(_blocks, value)) > _MAX_ALL_BLOCKS:
        raise bad_value(f"should have at most {_MAX_ALL_BLOCKS} blocks in all")
    return value


class CacheControl(BaseModel):
    model_config = STRICT
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


Cached = Annotated[CacheControl | None, Field(description=_HINT)]


class TextBlock(BaseModel):
    model_config = STRICT
    type: Literal["text"]
    text: str
    cache_control: Cached = None
    citations: Annotated[Any, refused([])] = Field(
        None, description="Refused (400 unsupported_parameter) unless empty."
    )


class ImageBlock(BaseModel):
    """Refused by a model without vision."""

    model_config = STRICT
    type: Literal["image"]
    source: dict[str, Any]
    cache_control: Cached = None
    transformations: Annotated[Any, refused({})] = Field(
        None, description="Refused (400 unsupported_parameter) unless empty."
    )


class ThinkingBlock(BaseModel):
    """Of an earlier answer; the model's template decides whether it is shown to the model again."""

    model_config = STRICT
    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", description="Not checked.")


class ToolUseBlock(BaseModel):
    model_config = STRICT
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any]
    cache_control: Cached = None
    caller: Annotated[Any, refused({"type": "direct"})] = Field(
        None, description="Refused (400 unsupported_parameter) unless of the type 'direct'."
    )
    toolset_name: Annotated[Any, refused()] = Field(None, description=_NULL)


ResultPart = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")],
    by_kind("text", "image"),
    _block("text", "image"),
]


class ToolResultBlock(BaseModel):
    model_config = STRICT
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: (
        Annotated[
            Annotated[str, Tag(TEXT)] | Annotated[list[ResultPart], Field(max_length=_MAX_BLOCKS), Tag(LIST)],
            BY_SHAPE,
        ]
        | None
    ) = None
    is_error: bool | None = Field(None, description="The model is told by the word 'Error:' before the content.")
    cache_control: Cached = None
    toolset_name: Annotated[Any, refused()] = Field(None, description=_NULL)


SystemBlock = Annotated[TextBlock, _block("text")]
UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    by_kind("text", "image", "tool_result"),
    _block("text", "image", "tool_result"),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")],
    by_kind("text", "thinking", "tool_use"),
    _block("text", "thinking", "tool_use"),
]
SystemContent = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[SystemBlock], Field(max_length=_MAX_BLOCKS), Tag(LIST)],
    BY_SHAPE,
]


class UserMessage(BaseModel):
    model_config = STRICT
    role: Annotated[str, kind(("user", "assistant", "system"))]
    content: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[list[UserBlock], Field(max_length=_MAX_BLOCKS), Tag(LIST)],
        BY_SHAPE,
    ]


class AssistantMessage(BaseModel):
    model_config = STRICT
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[list[AssistantBlock], Field(max_length=_MAX_BLOCKS), Tag(LIST)],
        BY_SHAPE,
    ]


class SystemMessage(BaseModel):
    model_config = STRICT
    role: Literal["system"]
    content: SystemContent


Message = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[SystemMessage, Tag("<system>")],
    by_kind("user", "assistant", "system", field="role"),
]


class ToolParam(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Cached = None
    strict: bool | None = Field(None, description="A call's input always has the schema, also without it.")
    eager_input_streaming: Annotated[Any, refused(True)] = Field(
        None, description="Input is always streamed; refused (400 unsupported_parameter) if false."
    )
    defer_loading: Annotated[Any, refused(False)] = Field(
        None, description="Refused (400 unsupported_parameter) unless false."
    )
    input_examples: Annotated[Any, refused([])] = Field(
        None, description="Refused (400 unsupported_parameter) unless empty."
    )
    allowed_callers: Annotated[Any, refused(["direct"])] = Field(
        None, description="Refused (400 unsupported_parameter) unless ['direct']."
    )


class ToolChoice(BaseModel):
    model_config = STRICT
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    model_config = STRICT
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1024, le=_MAX_TOKENS)] | None = Field(
        None, description="Not a bound of its own: thinking counts towards max_tokens."
    )
    display: Annotated[Any, refused("summarized")] = Field(
        None, description="Thinking is shown; refused (400 unsupported_parameter) unless 'summarized'."
    )


class OutputFormat(BaseModel):
    model_config = STRICT
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(BaseModel):
    model_config = STRICT
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="The effort of reasoning; refused by a model without."
    )
    format: OutputFormat | None = Field(
        None, description="Enforced by grammar; a schema that cannot be is refused (400 invalid_schema)."
    )


class Conversation(BaseModel):
    """What a message is made from: common to making one and to counting its tokens."""

    model_config = STRICT
    model: Annotated[str, Field(min_length=1)] = Field(description="404 model_not_found if it is not served.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES), BeforeValidator(_bounded)] = (
        Field(description="Turns of the user and the assistant; it ends with the user's.")
    )
    system: SystemContent | None = Field(None, description="A text, or blocks of text.")
    tools: Annotated[list[Annotated[ToolParam, BeforeValidator(_own_tool)]], Field(max_length=_MAX_TOOLS)] | None = (
        Field(
            None, description="Custom tools; needs a model with tools. Others are refused (400 unsupported_parameter)."
        )
    )
    tool_choice: ToolChoice | None = Field(None, description="A forced choice is enforced by grammar.")
    thinking: Thinking | None = Field(None, description="Needs a model with reasoning, unless disabled.")
    output_config: OutputConfig | None = Field(None, description="The form of the output.")
    cache_control: Cached = None
    speed: Annotated[Any, refused("standard")] = Field(
        None, description="Refused (400 unsupported_parameter) unless 'standard'."
    )


class Metadata(BaseModel):
    model_config = STRICT
    user_id: Annotated[str, Field(max_length=512)] | None = Field(None, description=END_USER)


class MessageRequest(Conversation):
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = Field(description="Bound of the output.")
    stream: bool | None = Field(None, description="Server-sent events instead of one body.")
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Its text ends before one of them; its stop_reason is then 'stop_sequence'."
    )
    temperature: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="0: always the most probable token."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Only the most probable tokens that make up this share."
    )
    top_k: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] | None = Field(None, description="0: no bound.")
    metadata: Metadata | None = Field(None, description="Labels.")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="All is served as 'standard'.")
    container: Annotated[Any, refused()] = Field(None, description=_NULL)
    context_management: Annotated[Any, refused()] = Field(None, description=_NULL)
    diagnostics: Annotated[Any, refused()] = Field(None, description=_NULL)
    inference_geo: Annotated[Any, refused()] = Field(None, description=_NULL)
    mcp_servers: Annotated[Any, refused([])] = Field(
        None, description="Refused (400 unsupported_parameter) unless empty."
    )


class CountRequest(Conversation):
    """The tokens of a conversation are to be counted."""

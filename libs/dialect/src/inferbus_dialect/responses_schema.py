"""What a request to make a response may say: OpenAI's schema, checked strictly."""

from typing import Annotated, Any, Literal

from inferbus_runtime.errors import invalid
from pydantic import BaseModel, Field, Tag, field_validator

from inferbus_dialect.labels import END_USER
from inferbus_dialect.responses_input import Input, Name
from inferbus_dialect.schema import BY_SHAPE, OBJECT, STRICT, TEXT, bad_value, by_kind, kind, parse, refused

LOGPROBS = "message.output_text.logprobs"
_MAX_TOKENS = (1 << 31) - 1
_MAX_TOOLS = 128
_MAX_METADATA, _MAX_METADATA_KEY, _MAX_METADATA_VALUE = 16, 64, 512
_Label = Annotated[str, Field(max_length=512)]

_FUNCTIONS_ONLY = "tools here are functions that you call yourself"
_TOOL_TYPE = kind(
    ("function",),
    (
        "apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search",
        "image_generation", "local_shell", "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search",
        "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
    ),
    _FUNCTIONS_ONLY,
)  # fmt: skip
_CHOICES = ("function", "allowed_tools")
_CHOICE_TYPE = kind(
    _CHOICES,
    (
        "apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search",
        "image_generation", "mcp", "programmatic_tool_calling", "shell", "web_search_preview",
    ),
    _FUNCTIONS_ONLY,
)  # fmt: skip
_FORMATS = ("text", "json_object", "json_schema")


class FunctionTool(BaseModel):
    model_config = STRICT
    type: Annotated[Literal["function"], _TOOL_TYPE]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None,
        description="JSON Schema of the arguments; one that cannot be enforced is refused (400 invalid_schema).",
    )
    strict: bool | None = Field(default=None, description="OpenAI's rules for strict schemas hold as well.")
    allowed_callers: Annotated[Any, refused([], ["direct"])] = None
    asynchronous: Annotated[Any, refused(False)] = Field(default=None, alias="async")
    defer_loading: Annotated[Any, refused(False)] = None
    output_schema: Annotated[Any, refused()] = None


class NamedFunction(BaseModel):
    model_config = STRICT
    type: Annotated[Literal["function"], _CHOICE_TYPE]
    name: Name


class AllowedTools(BaseModel):
    model_config = STRICT
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, max_length=_MAX_TOOLS)]


_Chosen = Annotated[
    Annotated[NamedFunction, Tag("<function>")] | Annotated[AllowedTools, Tag("<allowed_tools>")],
    by_kind(*_CHOICES),
]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[_Chosen, Tag(OBJECT)], BY_SHAPE
]


class PlainText(BaseModel):
    model_config = STRICT
    type: Annotated[Literal["text"], kind(_FORMATS, ("grammar", "python"))]


class JsonObject(BaseModel):
    model_config = STRICT
    type: Literal["json_object"]


class JsonSchema(BaseModel):
    model_config = STRICT
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    definition: dict[str, Any] = Field(
        alias="schema", description="Enforced by grammar; one that cannot be is refused (400 invalid_schema)."
    )
    description: str | None = None
    strict: bool | None = Field(default=None, description="OpenAI's rules for strict schemas hold as well.")


Format = Annotated[
    Annotated[PlainText, Tag("<text>")]
    | Annotated[JsonObject, Tag("<json_object>")]
    | Annotated[JsonSchema, Tag("<json_schema>")],
    by_kind(*_FORMATS),
]


class TextConfig(BaseModel):
    model_config = STRICT
    format: Format | None = Field(default=None, description="Enforced by grammar; needs structured_output.")
    verbosity: Annotated[Any, refused("medium", advice="say in the instructions how long an answer should be")] = None


class Reasoning(BaseModel):
    model_config = STRICT
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="Needs a model with reasoning; 'none' asks for nothing."
    )
    summary: Annotated[Any, refused(advice="leave it out: reasoning is given in full")] = None
    generate_summary: Annotated[Any, refused(advice="leave it out: reasoning is given in full")] = None
    context: Annotated[Any, refused("auto", "current_turn")] = None
    mode: Annotated[Any, refused("standard")] = None


class StreamOptions(BaseModel):
    model_config = STRICT
    include_obfuscation: Annotated[Any, refused(False)] = None


class Conversation(BaseModel):
    """What the model is shown, and how it is to answer."""

    model_config = STRICT
    model: Annotated[str, Field(min_length=1)] = Field(description="404 model_not_found if it is not served.")
    input: Input = Field(
        description="A text, or items: messages, calls of functions and their outputs, reasoning, references."
    )
    instructions: str | None = Field(default=None, description="For this response only: not inherited by the next.")
    previous_response_id: _Label | None = Field(
        default=None, description="Goes on after a stored response: its input and output come first."
    )
    text: TextConfig | None = Field(default=None, description="The form of the output.")
    tools: Annotated[list[FunctionTool], Field(max_length=_MAX_TOOLS)] | None = Field(
        default=None, description="Functions that you call yourself; needs a model with tools."
    )
    tool_choice: ToolChoice | None = Field(default=None, description="A forced choice is enforced by grammar.")
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call in an answer.")
    reasoning: Reasoning | None = Field(default=None, description="Needs a model with reasoning.")
    truncation: Annotated[Any, refused("disabled", advice="send less input, or leave it out")] = None
    conversation: Annotated[Any, refused(advice="chain responses by 'previous_response_id'")] = None

    @property
    def effort(self) -> str:
        return (self.reasoning and self.reasoning.effort) or ""


class InputTokensRequest(Conversation):
    """Input to be counted."""

    personality: Annotated[Any, refused(advice="say it in the instructions")] = None


class ResponsesRequest(Conversation):
    store: bool | None = Field(default=None, description="True unless said otherwise.")
    background: bool | None = Field(default=None, description="Needs 'store'.")
    stream: bool | None = Field(default=None, description="Server-sent events instead of one body.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    include: list[str] | None = Field(
        default=None, description="Nothing but 'message.output_text.logprobs'; needs a model with logprobs."
    )
    max_output_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = Field(
        default=None, description="Bound of the output; absent: the context's end."
    )
    max_tool_calls: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Bounds calls of built-in tools, of which there are none here."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="0: always the most probable token."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Only the most probable tokens that make up this share."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        default=None, description="Needs a model with logprobs."
    )
    service_tier: Literal["auto", "default", "flex", "priority"] | None = Field(
        default=None, description="flex: after all others; priority: never after others."
    )
    metadata: dict[str, str] | None = Field(default=None, description="A label: kept and given back.")
    user: _Label | None = Field(default=None, description=END_USER)
    safety_identifier: _Label | None = Field(default=None, description=f"{END_USER} Goes before 'user'.")
    prompt_cache_key: _Label | None = Field(default=None, description="A hint without an effect.")
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        default=None, description="A hint without an effect."
    )
    # OpenAI's own products.
    access_programs: Annotated[Any, refused()] = None
    background_options: Annotated[Any, refused()] = None
    context_management: Annotated[Any, refused([])] = None
    image: Annotated[Any, refused()] = None
    moderation: Annotated[Any, refused()] = None
    prompt: Annotated[Any, refused(advice="send the text itself")] = None
    prompt_cache_options: Annotated[Any, refused()] = None

    @field_validator("include")
    @classmethod
    def _included(cls, value: list[str] | None) -> list[str] | None:
        if any(one != LOGPROBS for one in value or ()):
            raise bad_value(f"should hold nothing but '{LOGPROBS}'")
        return value

    @field_validator("metadata")
    @classmethod
    def _labels(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and len(value) > _MAX_METADATA:
            raise bad_value(f"should have at most {_MAX_METADATA} entries")
        for key, text in (value or {}).items():
            if len(key) > _MAX_METADATA_KEY or len(text) > _MAX_METADATA_VALUE:
                raise bad_value(
                    f"should have keys of at most {_MAX_METADATA_KEY} characters and values of at most "
                    f"{_MAX_METADATA_VALUE}"
                )
        return value

    @property
    def stored(self) -> bool:
        return self.store is not False


def parse_responses_request(body: bytes) -> ResponsesRequest:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    request = parse(ResponsesRequest, body)
    if request.stream_options is not None and not request.stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if request.background and not request.stored:
        raise invalid("A background response must be stored: leave 'store' out or true.", param="background")
    _check_tools(request)
    return request


def parse_input_tokens_request(body: bytes) -> InputTokensRequest:
    """Like :func:`parse_responses_request`."""
    request = parse(InputTokensRequest, body)
    _check_tools(request)
    return request


def _check_tools(request: Conversation) -> None:
    names: set[str] = set()
    for at, tool in enumerate(request.tools or ()):
        if tool.name in names:
            raise invalid("Every function needs a name of its own.", param=f"tools[{at}].name")
        names.add(tool.name)
    choice = request.tool_choice
    if choice is None or choice in ("none", "auto"):
        return
    if not names:
        raise invalid("'tool_choice' asks for functions: send 'tools'.", param="tool_choice")
    if isinstance(choice, NamedFunction) and choice.name not in names:
        raise invalid("'tool_choice' names a function that is not in 'tools'.", param="tool_choice.name")
    if isinstance(choice, AllowedTools):
        for at, one in enumerate(choice.tools):
            if one.name not in names:
                raise invalid(
                    "'tool_choice' allows a function that is not in 'tools'.", param=f"tool_choice.tools[{at}].name"
                )

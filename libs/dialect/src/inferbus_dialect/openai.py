"""What a chat completion request may say: OpenAI's schema, checked strictly. The descriptions say what each does."""

from typing import Annotated, Any, Literal

from inferbus_runtime.errors import invalid
from pydantic import BaseModel, Field, Tag

from inferbus_dialect.labels import END_USER
from inferbus_dialect.schema import BY_SHAPE, LIST, OBJECT, STRICT, TEXT, by_kind, kind, parse, refused, unsupported

MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_CHOICES = 128
MAX_BIASES = 1024
_MAX_TOKENS = (1 << 31) - 1
_MAX_TOP_K = (1 << 31) - 1
_MAX_TOP_LOGPROBS = 20

Temperature = Annotated[float, Field(ge=0, le=2)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Tokens = Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
TopK = Annotated[int, Field(ge=-1, le=_MAX_TOP_K)]
Repetition = Annotated[float, Field(gt=0, le=10)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[Annotated[StopText, Tag(TEXT)] | Annotated[list[StopText], Field(max_length=4), Tag(LIST)], BY_SHAPE]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
LogitBias = Annotated[dict[TokenName, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)]
Label = Annotated[str, Field(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]

# --- messages ---------------------------------------------------------------------------------------------------------

_PARTS = ("text", "image_url", "refusal")
_OTHER_PARTS = ("input_audio", "file", "video_url", "audio_url")
PartKind = kind(_PARTS, _OTHER_PARTS, "send text")


class TextPart(BaseModel):
    model_config = STRICT
    type: Annotated[str, PartKind]
    text: str
    prompt_cache_breakpoint: Any = Field(None, description="A hint without effect: prefixes are cached by themselves.")


class ImageUrl(BaseModel):
    model_config = STRICT
    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    """Refused (400 unsupported_parameter) by a model without vision."""

    model_config = STRICT
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Any = Field(None, description="A hint without effect: prefixes are cached by themselves.")


class RefusalPart(BaseModel):
    model_config = STRICT
    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    by_kind(*_PARTS),
]
Content = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[Part], Tag(LIST)], BY_SHAPE]


class CalledFunction(BaseModel):
    model_config = STRICT
    name: FunctionName
    arguments: str = Field(description="JSON text, as the model wrote it.")
    parsed_arguments: Any = Field(None, description="What OpenAI's SDK adds for itself; without effect.")


class AssistantCall(BaseModel):
    model_config = STRICT
    id: Annotated[str, Field(min_length=1)]
    type: Annotated[str, kind(("function",), ("custom",), "only functions are called here")] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="What streams add; without effect.")


class Message(BaseModel):
    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(None, description="Given to the chat template.")
    tool_calls: list[AssistantCall] | None = Field(None, description="Calls that the assistant made before.")
    tool_call_id: str | None = Field(None, description="Which call a tool's message answers.")
    refusal: str | None = Field(None, description="What the assistant said instead of an answer: its text.")
    # What OpenAI's SDK writes besides when an answer is sent back as a message.
    audio: Annotated[Any, refused()] = None
    annotations: Annotated[Any, refused([])] = None
    function_call: Annotated[Any, refused(advice="use 'tool_calls'")] = None
    parsed: Any = Field(None, description="What OpenAI's SDK adds for itself; without effect.")
    reasoning_content: str | None = Field(None, description="Earlier reasoning; not shown to the model again.")

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        said = [part.text if isinstance(part, TextPart) else part.refusal if isinstance(part, RefusalPart) else ""
                for part in self.content or ()]  # fmt: skip
        return "".join(said) + (self.refusal or "")


# Messages with these fields and no others need no further check.
_SIMPLE = frozenset(("role", "content", "name"))

# --- tools and formats ------------------------------------------------------------------------------------------------


class Function(BaseModel):
    model_config = STRICT
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON Schema of the arguments; one that cannot be enforced is refused (400 invalid_schema)."
    )
    strict: bool | None = Field(None, description="The schema must keep to OpenAI's rules for strict schemas.")


class FunctionTool(BaseModel):
    model_config = STRICT
    type: Annotated[str, kind(("function",), ("custom",), "describe a function instead")]
    function: Function


class FunctionRef(BaseModel):
    model_config = STRICT
    name: FunctionName


class NamedTool(BaseModel):
    model_config = STRICT
    type: Annotated[str, kind(("function", "allowed_tools"), ("custom",), "name a function instead")]
    function: FunctionRef


class AllowedTools(BaseModel):
    model_config = STRICT
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(BaseModel):
    model_config = STRICT
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)]
    | Annotated[
        Annotated[NamedTool, Tag("<function>")] | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
        by_kind("function", "allowed_tools"),
        Tag(OBJECT),
    ],
    BY_SHAPE,
]


class PlainFormat(BaseModel):
    model_config = STRICT
    type: Annotated[str, kind(("text", "json_object", "json_schema"), ("grammar", "python"), "use 'json_schema'")]


class JsonSchema(BaseModel):
    model_config = STRICT
    name: FunctionName
    description: str | None = Field(None, description="A label without effect: say it in a message.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="Enforced by grammar; one that cannot be is refused (400 invalid_schema)."
    )
    strict: bool | None = Field(None, description="The schema must keep to OpenAI's rules for strict schemas.")


class JsonSchemaFormat(BaseModel):
    model_config = STRICT
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("<text>")] | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    by_kind("text", "json_schema"),
]


class StreamOptions(BaseModel):
    model_config = STRICT
    include_usage: bool | None = Field(None, description="A last chunk with the usage.")
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: usage in every chunk; the input is counted with the last one."
    )
    include_obfuscation: Annotated[Any, refused(False)] = Field(None, description="Refused unless false.")


# --- the request ------------------------------------------------------------------------------------------------------


class ChatRequest(BaseModel):
    model_config = STRICT
    model: Annotated[str, Field(min_length=1)] = Field(description="404 model_not_found if it is not served.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="Of the roles system, developer, user, assistant and tool; text parts."
    )
    stream: bool | None = Field(None, description="Server-sent events instead of one body.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    n: Choices | None = Field(None, description="So many choices; each is sampled by itself.")
    temperature: Temperature | None = Field(None, description="0: always the most probable token.")
    top_p: Probability | None = Field(None, description="Only the most probable tokens that make up this share.")
    frequency_penalty: Penalty | None = Field(None, description="Less of what was said often.")
    presence_penalty: Penalty | None = Field(None, description="Less of what was said at all.")
    seed: Seed | None = Field(None, description="The same seed samples the same; choice k has seed + k.")
    stop: Stop | None = Field(None, description="Up to 4 texts that end the output; they are no part of it.")
    max_completion_tokens: Tokens | None = Field(None, description="Bound of the output; absent: the context's end.")
    max_tokens: Tokens | None = Field(None, description="The old name of max_completion_tokens.")
    logit_bias: LogitBias | None = Field(None, description="Needs a model with logit_bias.")
    logprobs: bool | None = Field(None, description="Needs a model with logprobs.")
    top_logprobs: Annotated[int, Field(ge=0, le=_MAX_TOP_LOGPROBS)] | None = Field(None, description="With logprobs.")
    response_format: ResponseFormat | None = Field(None, description="Enforced by grammar; needs structured_output.")
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions; needs a model with tools."
    )
    tool_choice: ToolChoice | None = Field(None, description="A forced choice is enforced by grammar.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call in an answer.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="Needs a model with reasoning; 'none' asks for nothing."
    )
    service_tier: Literal["auto", "default", "flex", "priority"] | None = Field(
        None, description="flex: served after interactive requests; the others: interactive."
    )
    store: bool | None = Field(None, description="The answer can be fetched and deleted by its id for a while.")
    metadata: Metadata | None = Field(None, description="Labels; part of a stored answer.")
    user: Label | None = Field(None, description=END_USER)
    safety_identifier: Label | None = Field(None, description=f"{END_USER} Goes before 'user'.")
    prompt_cache_key: Label | None = Field(None, description="A hint without effect: prefixes are found by themselves.")
    prompt_cache_retention: Label | None = Field(None, description="A hint without effect.")
    prompt_cache_options: dict[str, Any] | None = Field(None, description="A hint without effect.")
    # Not OpenAI's, but common among servers of open models.
    top_k: TopK | None = Field(None, description="0 and -1: no bound.")
    min_p: Probability | None = Field(None, description="No tokens below this share of the most probable one.")
    repetition_penalty: Repetition | None = Field(None, description="Less of what stands in the input or the output.")
    # Known and refused.
    audio: Annotated[Any, refused()] = Field(None, description="Refused (400 unsupported_parameter): text only.")
    function_call: Annotated[Any, refused("none", "auto", advice="use 'tool_choice'")] = Field(
        None, description="Refused (400 unsupported_parameter): use tool_choice."
    )
    functions: Annotated[Any, refused([], advice="use 'tools'")] = Field(
        None, description="Refused (400 unsupported_parameter): use tools."
    )
    modalities: Annotated[Any, refused(["text"])] = Field(
        None, description="Refused (400 unsupported_parameter) unless ['text']."
    )
    moderation: Annotated[Any, refused()] = Field(None, description="Refused (400 unsupported_parameter).")
    prediction: Annotated[Any, refused()] = Field(None, description="Refused (400 unsupported_parameter).")
    verbosity: Annotated[Any, refused(advice="say it in a message")] = Field(
        None, description="Refused (400 unsupported_parameter): say it in a message."
    )
    web_search_options: Annotated[Any, refused()] = Field(None, description="Refused (400 unsupported_parameter).")

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def output_bound(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    request = parse(ChatRequest, body)
    for at, message in enumerate(request.messages):
        simple = isinstance(message.content, str) and message.role != "tool" and message.model_fields_set <= _SIMPLE
        if not simple:
            _check_message(message, f"messages[{at}].")
    check_stream_options(request.stream, request.stream_options)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid("Set 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    if request.tools or request.tool_choice is not None:
        _check_tools(request)
    return request


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    if options is None:
        return
    if not stream:
        raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if options.continuous_usage_stats and not options.include_usage:
        param = "stream_options.continuous_usage_stats"
        raise invalid(f"'{param}' is only allowed when 'include_usage' is true.", param=param)


def _check_message(message: Message, path: str) -> None:
    assistant = message.role == "assistant"
    # SDKs send an assistant's message without text back as null.
    said = message.content is not None or (assistant and "content" in message.model_fields_set)
    if not said and not (assistant and (message.tool_calls or message.refusal)):
        param = f"{path}content"
        raise invalid(f"Missing required parameter: '{param}'.", param=param, reason="missing_required_parameter")
    if message.role == "tool" and not message.tool_call_id:
        param = f"{path}tool_call_id"
        raise invalid(f"Missing required parameter: '{param}'.", param=param, reason="missing_required_parameter")
    for name in ("tool_calls", "refusal"):
        if getattr(message, name) and not assistant:
            param = path + name
            raise invalid(f"'{param}' is only allowed in an assistant's message.", param=param)
    if message.role != "user" and isinstance(message.content, list):
        for at, part in enumerate(message.content):
            if isinstance(part, ImagePart):
                raise unsupported(f"{path}content[{at}]", f"'{path}content[{at}]': images belong in a user's message.")


def _check_tools(request: ChatRequest) -> None:
    names = [tool.function.name for tool in request.tools or ()]
    for at, name in enumerate(names):
        if name in names[:at]:
            param = f"tools[{at}].function.name"
            raise invalid(f"'{param}': each function needs a name of its own.", param=param)
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        _check_named(choice, names, "tool_choice")
    elif isinstance(choice, AllowedToolsChoice):
        for at, one in enumerate(choice.allowed_tools.tools):
            _check_named(one, names, f"tool_choice.allowed_tools.tools[{at}]")
    elif choice == "required" and not names:
        raise invalid("'tool_choice' is 'required', and there are no 'tools'.", param="tool_choice")


def _check_named(choice: NamedTool, names: list[str], path: str) -> None:
    if choice.function.name not in names:
        param = f"{path}.function.name"
        raise invalid(f"'{param}' names no function of 'tools'.", param=param)

"""What a chat completion request may say: OpenAI's schema, checked strictly.

Three kinds of field: served; known to OpenAI's API and not served yet (refused by name unless the value is neutral);
unknown (refused by name). Nothing that a caller asked for is silently ignored.
"""

from typing import Annotated, Any, Literal

from inferbus_runtime.errors import InferBusError, invalid
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
# A parameter name in an error is the caller's own text: enough of it to find it again.
_SHOWN_NAME = 64
_MAX_TOKENS = (1 << 31) - 1
_MAX_TOP_K = (1 << 31) - 1


# Which member of a union was meant. They appear in pydantic's error paths, and are no part of ours.
_TEXT, _LIST = "<text>", "<list>"


def _tag(value: Any) -> str:
    return _LIST if isinstance(value, list) else _TEXT


class TextPart(BaseModel):
    model_config = _STRICT
    type: Literal["text"]
    text: str


Content = Annotated[Annotated[str, Tag(_TEXT)] | Annotated[list[TextPart], Tag(_LIST)], Discriminator(_tag)]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopText, Tag(_TEXT)] | Annotated[list[StopText], Field(max_length=4), Tag(_LIST)],
    Discriminator(_tag),
]


class Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None
    tool_call_id: str | None = None
    # What OpenAI's SDK writes when an answer is sent back as a message; see _NEUTRAL.
    refusal: Any = None
    audio: Any = None
    annotations: Any = None
    function_call: Any = None
    tool_calls: Any = None

    @field_validator("content", mode="before")
    @classmethod
    def _said_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        """SDKs send an assistant's message without text back as null."""
        return "" if value is None and info.data.get("role") == "assistant" else value

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    model_config = _STRICT
    include_usage: bool | None = None
    include_obfuscation: Any = None


class ChatRequest(BaseModel):
    model_config = _STRICT
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | None = None
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    # Not OpenAI's, but common among servers of open models. 0 and -1: no bound.
    top_k: Annotated[int, Field(ge=-1, le=_MAX_TOP_K)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    # Without an effect here by their nature: labels and hints.
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    # Not served yet; see _NEUTRAL.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    min_p: Any = None
    modalities: Any = None
    n: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


# Values, besides null, that ask for nothing: a caller may say them.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0, 0.0),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
_NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
# Content parts of OpenAI's API that are no text.
_PARTS_TO_COME = frozenset(("image_url", "input_audio", "file", "refusal", "video_url", "audio_url"))


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0]) from None
    _refuse_unserved(request, request.model_fields_set, _NEUTRAL, "")
    for at, message in enumerate(request.messages):
        _refuse_unserved(message, message.model_fields_set, _NEUTRAL_IN_MESSAGE, f"messages[{at}].")
    if request.stream_options is not None:
        if not request.stream:
            raise invalid("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        _refuse_unserved(
            request.stream_options,
            request.stream_options.model_fields_set,
            {"include_obfuscation": (False,)},
            "stream_options.",
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise invalid("Set 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
    return request


def _refuse_unserved(model: BaseModel, given: set[str], neutral: dict[str, tuple[Any, ...]], path: str) -> None:
    for name in sorted(given & neutral.keys()):
        value = getattr(model, name)
        # The type is compared as well: true is no 1.
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral[name]):
            raise _unsupported(path + name, f"'{path}{name}' is not supported yet; leave it out.")


def _unsupported(param: str, message: str) -> InferBusError:
    return invalid(message, param=param, reason="unsupported_parameter")


def _refusal(fault: Any) -> InferBusError:
    """One of pydantic's faults in a caller's words. The offending value is never repeated: it may be prompt text."""
    kind, param = fault["type"], _path(fault["loc"])
    if kind == "json_invalid":
        return invalid(f"The body is not valid JSON ({fault['ctx']['error']}).", reason="invalid_json")
    if not fault["loc"]:
        return invalid("The body must be a JSON object.", reason="invalid_type")
    if kind == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param=param, reason="missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param=param, reason="unknown_parameter")
    if kind == "literal_error" and fault["loc"][-1] == "type" and str(fault["input"]) in _PARTS_TO_COME:
        return _unsupported(param, f"Content parts of type '{fault['input']}' are not supported yet; send text.")
    text = fault["msg"].removeprefix("Input should").strip()
    reason = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(
        f"'{param}' should {text}." if text != fault["msg"] else f"'{param}': {text}.", param=param, reason=reason
    )


def _path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "content", "<list>", 1, "text")`` → ``messages[0].content[1].text``."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in (_TEXT, _LIST):
            path += f".{step[:_SHOWN_NAME]}" if path else step[:_SHOWN_NAME]
    return path

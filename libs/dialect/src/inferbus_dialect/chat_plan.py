"""A chat completion request as a plan."""

from collections.abc import Iterator
from typing import Any

import orjson
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, Constraint, GenerateRequest, Sampling, Tool, ToolMode
from inferbus.bus.v1.request_pb2 import ToolCall as BusToolCall
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_runtime.errors import invalid

from inferbus_dialect.labels import end_user_of
from inferbus_dialect.openai import (
    AllowedToolsChoice,
    ChatRequest,
    ImagePart,
    JsonSchemaFormat,
    Message,
    NamedTool,
    stop_texts,
)
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.schemas_json import arguments_texts, schema_text

# OpenAI's newer name for a role that chat templates of open models know as "system".
_ROLES = {"developer": "system"}
# A token has about four characters in most texts; only a limit's reservation hangs on it.
CHARACTERS_PER_TOKEN = 4
_SEEDS = 1 << 64
MAX_BYTES = 7 << 20
# What "auto" comes to is said in the answer, as OpenAI does it.
_TIERS = {"auto": "default"}


def plan_chat(chat: ChatRequest) -> Plan:
    """Raises InferBusError INVALID_ARGUMENT ``invalid_schema`` for a schema that cannot be enforced."""
    n = chat.n or 1
    request = GenerateRequest(
        priority_class=_priority_class(chat.service_tier),
        chat=ChatInput(messages=[_message(one) for one in chat.messages]),
        sampling=_sampling(chat),
    )
    if chat.tools:
        _add_tools(request.chat, chat)
    if chat.reasoning_effort is not None:
        request.chat.reasoning_effort = chat.reasoning_effort
    constraint = _constraint(chat, request.chat.tool_mode)
    if constraint is not None:
        request.constraint.CopyFrom(constraint)
    return Plan(
        operation="chat",
        model=chat.model,
        stream=bool(chat.stream),
        requests=choices(request, n),
        reply=_reply(chat, n, request.chat.tool_mode),
        needs=tuple(_needs(chat)),
        input_estimate=_characters(request.chat) // CHARACTERS_PER_TOKEN,
        output_bound=None if chat.output_bound is None else n * chat.output_bound,
        stored=_stored(chat) if chat.store else None,
        end_user=end_user_of(chat.safety_identifier, chat.user),
    )


def choices(request: GenerateRequest, n: int) -> tuple[GenerateRequest, ...]:
    """``request`` once for each choice. With a seed each has one of its own, or all would be the same. Raises
    InferBusError INVALID_ARGUMENT for more than the bus and this process should carry for one call."""
    if n > 1 and n * request.ByteSize() > MAX_BYTES:
        raise invalid(
            "The input is too long for so many choices; send less, or ask for fewer.",
            param="n", reason="request_too_large",
        )  # fmt: skip
    made = [request]
    for choice in range(1, n):
        one = GenerateRequest()
        one.CopyFrom(request)
        one.input_counted_elsewhere = True
        if request.sampling.HasField("seed"):
            one.sampling.seed = (request.sampling.seed + choice) % _SEEDS
        made.append(one)
    return tuple(made)


def _reply(chat: ChatRequest, n: int, mode: ToolMode.ValueType) -> dict[str, Any]:
    """What the form needs. Plain: an answer of nothing but text, which has a faster way."""
    reply: dict[str, Any] = {"api": "chat", "n": n, "include_usage": chat.include_usage}
    options = {
        "tools": bool(chat.tools) and chat.tool_choice != "none",
        "must_call": mode == ToolMode.TOOL_MODE_REQUIRED,
        "logprobs": bool(chat.logprobs),
        "top_logprobs": chat.top_logprobs or 0,
        "continuous_usage": bool(chat.stream_options and chat.stream_options.continuous_usage_stats),
        "service_tier": chat.service_tier and _TIERS.get(chat.service_tier, chat.service_tier),
        "reasoning": chat.reasoning_effort not in (None, "none"),
        "stored": bool(chat.store),
        "metadata": chat.metadata if chat.store else None,
    }
    given = {name: value for name, value in options.items() if value}
    return reply | (given or {"plain": True})


def _needs(chat: ChatRequest) -> Iterator[Need]:
    yield Need("chat", "model")
    if chat.tools:
        yield Need("tools", "tools")
    if chat.response_format is not None and chat.response_format.type != "text":
        yield Need("structured_output", "response_format")
    if chat.logprobs:
        yield Need("logprobs", "logprobs")
    if chat.logit_bias:
        yield Need("logit_bias", "logit_bias")
    if chat.reasoning_effort not in (None, "none"):
        yield Need("reasoning", "reasoning_effort")
    for at, message in enumerate(chat.messages):
        if isinstance(message.content, list):
            for index, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield Need("vision", f"messages[{at}].content[{index}]")


def _message(message: Message) -> ChatMessage:
    said = ChatMessage(
        role=_ROLES.get(message.role, message.role),
        content=message.text,
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
    )
    for call in message.tool_calls or ():
        said.tool_calls.append(BusToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments))
    return said


def _add_tools(chat_input: ChatInput, chat: ChatRequest) -> None:
    choice = chat.tool_choice
    allowed = None
    if isinstance(choice, NamedTool):
        chat_input.tool_mode, chat_input.tool_name = ToolMode.TOOL_MODE_REQUIRED, choice.function.name
    elif isinstance(choice, AllowedToolsChoice):
        allowed = {one.function.name for one in choice.allowed_tools.tools}
        chat_input.tool_mode = _tool_mode(choice.allowed_tools.mode)
    else:
        chat_input.tool_mode = _tool_mode(choice or "auto")
    chat_input.parallel_tool_calls = chat.parallel_tool_calls is not False
    functions = [tool.function for tool in chat.tools or ()]
    texts = arguments_texts(
        (one.parameters, f"tools[{at}].function.parameters", bool(one.strict)) for at, one in enumerate(functions)
    )
    for one, parameters in zip(functions, texts, strict=True):
        if allowed is None or one.name in allowed:
            chat_input.tools.append(Tool(name=one.name, description=one.description or "", parameters=parameters))


def _tool_mode(choice: str) -> ToolMode.ValueType:
    modes = {"none": ToolMode.TOOL_MODE_NONE, "required": ToolMode.TOOL_MODE_REQUIRED}
    return modes.get(choice, ToolMode.TOOL_MODE_AUTO)


def _constraint(chat: ChatRequest, mode: ToolMode.ValueType) -> Constraint | None:
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return None
    constraint = Constraint(json_object=True)
    if isinstance(wanted, JsonSchemaFormat) and wanted.json_schema.schema_ is not None:
        param = "response_format.json_schema.schema"
        schema = schema_text(wanted.json_schema.schema_, param, strict=bool(wanted.json_schema.strict))
        constraint = Constraint(json_schema=schema)
    # Where there must be calls there is no text to be constrained.
    return None if mode == ToolMode.TOOL_MODE_REQUIRED else constraint


def _priority_class(tier: str | None) -> PriorityClass.ValueType:
    flex = tier == "flex"
    return PriorityClass.PRIORITY_CLASS_BACKGROUND if flex else PriorityClass.PRIORITY_CLASS_INTERACTIVE


def _sampling(chat: ChatRequest) -> Sampling:
    # None leaves a field absent: the model's own default.
    sampling = Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=bus_top_k(chat.top_k),
        min_p=chat.min_p,
        seed=bus_seed(chat.seed),
        stop=stop_texts(chat.stop),
        max_tokens=chat.output_bound,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        repetition_penalty=chat.repetition_penalty,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
    )
    if chat.logit_bias:
        add_biases(sampling, chat.logit_bias)
    return sampling


def bus_top_k(top_k: int | None) -> int | None:
    return None if top_k is None else max(top_k, 0)


def bus_seed(seed: int | None) -> int | None:
    """OpenAI's seeds are signed; the same 64 bits name them on the bus."""
    return None if seed is None else seed % _SEEDS


def add_biases(sampling: Sampling, biases: dict[str, float]) -> None:
    for token, bias in biases.items():
        sampling.logit_bias[min(int(token), (1 << 32) - 1)] = bias


def _characters(chat_input: ChatInput) -> int:
    said = sum(
        len(one.content) + sum(len(call.name) + len(call.arguments) for call in one.tool_calls)
        for one in chat_input.messages
    )
    return said + sum(len(one.description) + len(one.parameters) for one in chat_input.tools)


def _stored(chat: ChatRequest) -> bytes:
    messages = [one.model_dump(mode="json", exclude_unset=True) for one in chat.messages]
    return orjson.dumps({"messages": messages})

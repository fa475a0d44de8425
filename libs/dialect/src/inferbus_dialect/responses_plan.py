"""A request to make a response as a plan."""

from collections.abc import Sequence
from typing import Any

import orjson
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, Constraint, GenerateRequest, Sampling, Tool, ToolMode
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_runtime.errors import invalid
from pydantic import BaseModel

from inferbus_dialect.labels import end_user_of
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.responses_items import Item, image_place, messages_of_items
from inferbus_dialect.responses_objects import API
from inferbus_dialect.responses_schema import (
    LOGPROBS,
    AllowedTools,
    Conversation,
    FunctionTool,
    InputTokensRequest,
    JsonObject,
    JsonSchema,
    NamedFunction,
    ResponsesRequest,
)
from inferbus_dialect.schemas_json import arguments_text, schema_text

_CHARACTERS_PER_TOKEN = 4
# The broker's largest message has 8 MiB, some of them for what is added to it.
_MAX_MESSAGE_BYTES = 7 << 20
_CLASSES = {
    "flex": PriorityClass.PRIORITY_CLASS_BACKGROUND,
    "default": PriorityClass.PRIORITY_CLASS_INTERACTIVE,
    "priority": PriorityClass.PRIORITY_CLASS_INTERACTIVE,
}


def plan_responses(
    request: ResponsesRequest, items: Sequence[Item], earlier: Sequence[Item] = (), previous: bytes = b""
) -> Plan:
    """``items``: the request's own, without references; ``earlier``: the conversation before it, of the response
    ``previous`` (its request's id) and those before it. Raises InferBusError INVALID_ARGUMENT."""
    chat = _chat(request, items, earlier)
    wants_logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
    message = GenerateRequest(
        priority_class=_class_of(request),
        chat=chat,
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_output_tokens,
            logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        ),
        constraint=_constraint(request),
    )
    reply = {
        "api": API,
        "n": 1,
        "background": bool(request.background),
        # Whether calls are looked for in the text.
        "tools": bool(chat.tools) and chat.tool_mode != ToolMode.TOOL_MODE_NONE,
        "must_call": chat.tool_mode == ToolMode.TOOL_MODE_REQUIRED,
        "logprobs": wants_logprobs,
        "echo": _echo(request),
    }
    _check_size(message, reply, request)
    needs = _needs(request, items, earlier)
    if wants_logprobs:
        needs.append(Need("logprobs", "top_logprobs" if request.top_logprobs else "include"))
    return Plan(
        operation="chat",
        model=request.model,
        stream=bool(request.stream),
        requests=(message,),
        reply=reply,
        needs=tuple(needs),
        input_estimate=_characters(chat) // _CHARACTERS_PER_TOKEN,
        output_bound=request.max_output_tokens,
        stored=orjson.dumps(list(items)) if request.stored else None,
        store_asked=bool(request.store or request.background),
        previous=previous,
        detached=bool(request.background),
        end_user=end_user_of(request.safety_identifier, request.user),
    )


def plan_input_tokens(request: InputTokensRequest, items: Sequence[Item], earlier: Sequence[Item] = ()) -> Plan:
    """What is to be counted is in ``requests[0].chat``; it is never published. Raises like :func:`plan_responses`."""
    _constraint(request)
    message = GenerateRequest(chat=_chat(request, items, earlier))
    needs = tuple(_needs(request, items, earlier))
    return Plan("input_tokens", request.model, False, (message,), {"api": API, "n": 0}, needs)


def _chat(request: Conversation, items: Sequence[Item], earlier: Sequence[Item]) -> ChatInput:
    chat = ChatInput(messages=messages_of_items(earlier, items), reasoning_effort=request.effort)
    if request.instructions:
        chat.messages.insert(0, ChatMessage(role="system", content=request.instructions))
    _add_tools(chat, request)
    return chat


def _check_size(message: GenerateRequest, reply: dict[str, Any], request: ResponsesRequest) -> None:
    if message.ByteSize() + len(orjson.dumps(reply)) > _MAX_MESSAGE_BYTES:
        raise invalid(
            "Input, instructions and tools are too long together; send less.",
            param="input" if request.previous_response_id is None else "previous_response_id",
            reason="request_too_large",
        )


def _class_of(request: ResponsesRequest) -> PriorityClass.ValueType:
    tier = request.service_tier or "auto"
    # Nobody waits for a background response, unless by its stream.
    waiting = bool(request.stream) or not request.background
    return _CLASSES.get(tier, _CLASSES["default"] if waiting else _CLASSES["flex"])


def _add_tools(chat: ChatInput, request: Conversation) -> None:
    tools = request.tools or []
    if not tools:
        return
    choice = request.tool_choice or "auto"
    mode = ToolMode.TOOL_MODE_REQUIRED
    allowed: set[str] | None = None
    match choice:
        case NamedFunction():
            chat.tool_name = choice.name
        case AllowedTools():
            allowed = {one.name for one in choice.tools}
            mode = ToolMode.TOOL_MODE_AUTO if choice.mode == "auto" else mode
        case "auto":
            mode = ToolMode.TOOL_MODE_AUTO
        case "none":
            mode = ToolMode.TOOL_MODE_NONE
    chat.tool_mode = mode
    chat.parallel_tool_calls = request.parallel_tool_calls is not False
    for at, tool in enumerate(tools):
        if allowed is None or tool.name in allowed:  # what may not be called is not shown
            parameters = _parameters(tool, f"tools[{at}].parameters")
            chat.tools.append(Tool(name=tool.name, description=tool.description or "", parameters=parameters))


def _parameters(tool: FunctionTool, param: str) -> str:
    if tool.parameters is None:
        return ""
    return arguments_text(tool.parameters, param, strict=tool.strict is True)


def _constraint(request: Conversation) -> Constraint | None:
    match request.text and request.text.format:
        case JsonObject():
            return Constraint(json_object=True)
        case JsonSchema(definition=definition, strict=strict):
            return Constraint(json_schema=schema_text(definition, "text.format.schema", strict=strict is True))
    return None


def _needs(request: Conversation, items: Sequence[Item], earlier: Sequence[Item]) -> list[Need]:
    needs = [Need("chat", "model")]
    if request.tools:
        needs.append(Need("tools", "tools"))
    if _constraint_asked(request):
        needs.append(Need("structured_output", "text.format"))
    if request.effort not in ("", "none"):
        needs.append(Need("reasoning", "reasoning.effort"))
    place = image_place(items) or ("previous_response_id" if image_place(earlier) else None)
    if place is not None:
        needs.append(Need("vision", place))
    return needs


def _constraint_asked(request: Conversation) -> bool:
    return isinstance(request.text and request.text.format, JsonObject | JsonSchema)


def _characters(chat: ChatInput) -> int:
    said = sum(len(one.content) + sum(len(call.arguments) for call in one.tool_calls) for one in chat.messages)
    return said + sum(len(tool.description) + len(tool.parameters) for tool in chat.tools)


def _echo(request: ResponsesRequest) -> dict[str, Any]:
    """What the response object says back of the request."""
    tier = request.service_tier or "auto"
    choice = request.tool_choice or "auto"
    return {
        "background": bool(request.background),
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "prompt_cache_retention": request.prompt_cache_retention,
        "reasoning": {"effort": request.effort or None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default" if tier == "auto" else tier,
        "store": request.stored,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}, **_said(request.text)},
        "tool_choice": choice if isinstance(choice, str) else _said(choice),
        "tools": [_tool_echo(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _tool_echo(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def _said(model: BaseModel | None) -> dict[str, Any]:
    return {} if model is None else model.model_dump(mode="json", by_alias=True, exclude_none=True)

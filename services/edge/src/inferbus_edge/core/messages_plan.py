"""A Messages request as a plan: Anthropic's turns of blocks as the bus's messages."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferbus.bus.v1.request_pb2 import (
    ChatInput,
    ChatMessage,
    Constraint,
    GenerateRequest,
    Sampling,
    Tool,
    ToolCall,
    ToolMode,
)
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_dialect.labels import end_user_of
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.schema import unsupported
from inferbus_dialect.schemas_json import arguments_texts, schema_text
from inferbus_runtime.errors import invalid

from inferbus_edge.core.messages_schema import (
    AssistantMessage,
    Conversation,
    CountRequest,
    ImageBlock,
    MessageRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

# A token has about four characters in most texts; only a limit's reservation hangs on it.
_CHARACTERS_PER_TOKEN = 4
_MODES = {
    "auto": ToolMode.TOOL_MODE_AUTO,
    "any": ToolMode.TOOL_MODE_REQUIRED,
    "tool": ToolMode.TOOL_MODE_REQUIRED,
    "none": ToolMode.TOOL_MODE_NONE,
}
_BUDGET = "thinking.budget_tokens"
# Templates know OpenAI's names of efforts.
_EFFORTS = {"max": "xhigh"}
# What they are told when thinking is asked for without an effort, and when it is not wanted.
_EFFORT, _NO_EFFORT = "medium", "none"


def plan_message(asked: MessageRequest) -> Plan:
    """Raises InferBusError INVALID_ARGUMENT naming the parameter."""
    chat, needs = _chat(asked)
    if asked.thinking is not None and (asked.thinking.budget_tokens or 0) >= asked.max_tokens:
        raise invalid("'thinking.budget_tokens' has to be less than 'max_tokens'.", param=_BUDGET)
    request = GenerateRequest(
        priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        chat=chat,
        sampling=Sampling(  # None leaves a field absent: the model's own default
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=asked.stop_sequences,
            max_tokens=asked.max_tokens,
        ),
        constraint=_constraint(asked),
    )
    return Plan(
        operation="chat",
        model=asked.model,
        stream=bool(asked.stream),
        requests=(request,),
        reply={
            "api": "messages",
            "n": 1,
            "tools": _calls_possible(chat),
            "must_call": chat.tool_mode == ToolMode.TOOL_MODE_REQUIRED,
            "max_tokens": asked.max_tokens,
            "stops": asked.stop_sequences or [],
        },
        needs=needs,
        input_estimate=_characters(chat) // _CHARACTERS_PER_TOKEN,
        output_bound=asked.max_tokens,
        end_user=end_user_of(None if asked.metadata is None else asked.metadata.user_id),
    )


def plan_count(asked: CountRequest) -> Plan:
    """What is to be counted is in ``requests[0].chat``; it is never published. Raises like :func:`plan_message`."""
    chat, needs = _chat(asked)
    _constraint(asked)
    return Plan("count_tokens", asked.model, False, (GenerateRequest(chat=chat),), {"api": "messages", "n": 0}, needs)


def _chat(asked: Conversation) -> tuple[ChatInput, tuple[Need, ...]]:
    turns = _Turns()
    if asked.system is not None:
        turns.say("system", _text(asked.system))
    for at, message in enumerate(asked.messages):
        path = f"messages[{at}].content"
        if isinstance(message, UserMessage):
            turns.add_user(message, path)
        elif isinstance(message, AssistantMessage):
            turns.add_assistant(message, path)
        else:
            turns.say("system", _text(message.content))
    if isinstance(asked.messages[-1], AssistantMessage):
        last = f"messages[{len(asked.messages) - 1}]"
        raise unsupported(last, f"'{last}' is the assistant's: going on with it is not supported; end with the user's.")
    chat = ChatInput(messages=turns.messages(), reasoning_effort=_effort(asked))
    _add_tools(chat, asked)
    return chat, (Need("chat", "model"), *turns.needs, *_needs(asked))


def _needs(asked: Conversation) -> Iterator[Need]:
    if asked.tools:
        yield Need("tools", "tools")
    if asked.thinking is not None and asked.thinking.type != "disabled":
        yield Need("reasoning", "thinking")
    if asked.output_config is not None and asked.output_config.effort is not None:
        yield Need("reasoning", "output_config.effort")
    if asked.output_config is not None and asked.output_config.format is not None:
        yield Need("structured_output", "output_config.format")


def _effort(asked: Conversation) -> str:
    wanted = asked.output_config.effort if asked.output_config is not None else None
    effort = wanted and _EFFORTS.get(wanted, wanted)
    if asked.thinking is not None and (asked.thinking.type == "enabled") is (asked.thinking.budget_tokens is None):
        message = "'thinking.budget_tokens' is required with the type 'enabled', and only allowed with it."
        raise invalid(message, param=_BUDGET)
    if asked.thinking is None:
        return effort or ""
    if asked.thinking.type != "disabled":
        return effort or _EFFORT
    if effort is not None:
        raise invalid(
            "'output_config.effort' has no effect when 'thinking' is disabled; leave one of them out.",
            param="output_config.effort",
        )
    return _NO_EFFORT


def _constraint(asked: Conversation) -> Constraint | None:
    if asked.output_config is None or asked.output_config.format is None:
        return None
    constraint = Constraint(json_schema=schema_text(asked.output_config.format.schema_, "output_config.format.schema"))
    # Where there must be calls there is no text to be constrained.
    forced = asked.tool_choice is not None and asked.tool_choice.type in ("any", "tool")
    return None if forced else constraint


def _add_tools(chat: ChatInput, asked: Conversation) -> None:
    tools, choice = asked.tools or [], asked.tool_choice
    names = [one.name for one in tools]
    for at, one in enumerate(tools):
        if one.name in names[:at]:
            raise invalid(f"'tools[{at}].name' is the name of another tool.", param=f"tools[{at}].name")
    texts = arguments_texts([(one.input_schema, f"tools[{at}].input_schema", False) for at, one in enumerate(tools)])
    for at, (one, text) in enumerate(zip(tools, texts, strict=True)):
        parameters = text
        if one.strict:  # nothing of it may be left to the model
            parameters = schema_text({**one.input_schema, "type": "object"}, f"tools[{at}].input_schema")
        chat.tools.append(Tool(name=one.name, description=one.description or "", parameters=parameters))
    if choice is None:
        if tools:
            chat.tool_mode, chat.parallel_tool_calls = ToolMode.TOOL_MODE_AUTO, True
        return
    if not tools and choice.type != "none":
        raise invalid("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
    if choice.type == "tool" and choice.name not in names:
        raise invalid("'tool_choice.name' has to be the name of one of the 'tools'.", param="tool_choice.name")
    if choice.type != "tool" and choice.name is not None:
        raise invalid("'tool_choice.name' is only allowed with the type 'tool'.", param="tool_choice.name")
    if tools:
        chat.tool_mode, chat.tool_name = _MODES[choice.type], choice.name or ""
        chat.parallel_tool_calls = not choice.disable_parallel_tool_use


@dataclass(slots=True)
class _Turn:
    """One of the bus's messages as it grows."""

    role: str
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    name: str = ""
    call_id: str = ""

    def message(self) -> ChatMessage:
        # What the assistant said came in pieces around its calls; what others say are texts of their own.
        between = "" if self.role == "assistant" else "\n"
        return ChatMessage(
            role=self.role,
            content=between.join(self.texts),
            tool_calls=self.calls,
            name=self.name,
            tool_call_id=self.call_id,
        )


class _Turns:
    """``needs``: what the blocks ask of the model. Successive turns of the user are one, and so are the assistant's."""

    def __init__(self) -> None:
        self.needs: list[Need] = []
        self._turns: list[_Turn] = []
        self._names: dict[str, str] = {}  # id of a call → what was called

    def messages(self) -> list[ChatMessage]:
        return [one.message() for one in self._turns]

    def say(self, role: str, text: str) -> None:
        self._turn(role).texts.append(text)

    def add_user(self, message: UserMessage, path: str) -> None:
        if isinstance(message.content, str):
            self.say("user", message.content)
            return
        for at, block in enumerate(message.content):
            match block:
                case TextBlock():
                    self.say("user", block.text)
                case ImageBlock():
                    self.needs.append(Need("vision", f"{path}[{at}]"))
                case ToolResultBlock():
                    self._result(block, f"{path}[{at}]")

    def add_assistant(self, message: AssistantMessage, path: str) -> None:
        turn = self._turn("assistant")
        if isinstance(message.content, str):
            turn.texts.append(message.content)
            return
        for at, block in enumerate(message.content):
            match block:
                case TextBlock():
                    turn.texts.append(block.text)
                case ThinkingBlock():
                    # As a reasoning model wrote it: its template knows what to do with an earlier turn's.
                    turn.texts.append(f"<think>\n{block.thinking}\n</think>\n\n")
                    self.needs.append(Need("reasoning", f"{path}[{at}]"))
                case ToolUseBlock():
                    self._names[block.id] = block.name
                    turn.calls.append(ToolCall(id=block.id, name=block.name, arguments=_json(block.input)))

    def _result(self, block: ToolResultBlock, path: str) -> None:
        name = self._names.get(block.tool_use_id)
        if name is None:
            param = f"{path}.tool_use_id"
            raise invalid(f"'{param}' has to be the id of a 'tool_use' block before it.", param=param)
        content = block.content or ""
        if not isinstance(content, str):
            seen = (at for at, one in enumerate(content) if isinstance(one, ImageBlock))
            self.needs += [Need("vision", f"{path}.content[{at}]") for at in seen]
        text = f"Error: {_text(content)}" if block.is_error else _text(content)
        self._turns.append(_Turn("tool", [text], name=name, call_id=block.tool_use_id))

    def _turn(self, role: str) -> _Turn:
        """The turn that goes on, or a new one."""
        if role == "system" or not self._turns or self._turns[-1].role != role:
            self._turns.append(_Turn(role))
        return self._turns[-1]


def _text(content: str | Sequence[TextBlock | ImageBlock]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _calls_possible(chat: ChatInput) -> bool:
    return bool(chat.tools) and chat.tool_mode != ToolMode.TOOL_MODE_NONE


def _characters(chat: ChatInput) -> int:
    said = sum(len(one.content) + sum(len(call.arguments) for call in one.tool_calls) for one in chat.messages)
    return said + sum(len(one.description) + len(one.parameters) for one in chat.tools)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)

"""Tools for a model whose chat template knows none: the Hermes form, which many open models were trained on.

The tools go into the system message, earlier calls into the assistant's text, and their results into a user's turn. The
model's own calls have the same form (see :mod:`.grammar`).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from inferbus_worker.engine import Chat, Message, Tool, ToolCall

_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_AFTER = """
</tools>

For each function call return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def plain_turns(chat: Chat) -> list[Message]:
    """The messages with all that concerns tools written into their text: roles system, user and assistant only."""
    turns: list[Message] = []
    if chat.tools and chat.messages:
        first = chat.messages[0]
        system = f"{first.content}\n\n" if first.role == "system" else ""
        turns.append(Message("system", system + tools_text(chat.tools)))
    answers: list[str] = []
    for message in chat.messages[1 if turns and chat.messages[0].role == "system" else 0 :]:
        if message.role == "tool":
            answers.append(f"<tool_response>\n{message.content}\n</tool_response>")
            continue
        _add_answers(turns, answers)
        calls = [call_text(call) for call in message.tool_calls]
        content = "\n".join([message.content, *calls] if message.content else calls) if calls else message.content
        turns.append(replace(message, content=content, tool_calls=()))
    _add_answers(turns, answers)
    return turns


def _add_answers(turns: list[Message], answers: list[str]) -> None:
    """Results that follow each other are one turn of the user."""
    if answers:
        turns.append(Message("user", "\n".join(answers)))
        answers.clear()


def tools_text(tools: Sequence[Tool]) -> str:
    return _BEFORE + "\n".join(json.dumps(tool_json(tool), ensure_ascii=False) for tool in tools) + _AFTER


def tool_json(tool: Tool) -> dict[str, Any]:
    """As OpenAI's API has it, which is what chat templates expect."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = parsed(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def call_text(call: ToolCall) -> str:
    body = json.dumps({"name": call.name, "arguments": parsed(call.arguments or "{}")}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def parsed(text: str) -> Any:
    """The value of JSON text; a text that is none (an earlier model wrote it) stays a string."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

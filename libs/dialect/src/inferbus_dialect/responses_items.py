"""Items of a conversation as they are stored and listed, and what the model is shown of them.

An item is a JSON object in the form that answers have: messages with lists of parts. What a caller sent comes to that
form by :func:`items_of`; output items have it by birth.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from inferbus.bus.v1.request_pb2 import ChatMessage, ToolCall
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_dialect.responses_input import (
    FunctionCallItem,
    FunctionOutputItem,
    ImagePart,
    ItemReference,
    MessageItem,
    ReasoningItem,
    RefusalPart,
    TextPart,
)
from inferbus_dialect.responses_output import COMPLETED

Item = dict[str, Any]

_ROLES = {"developer": "system"}
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_SHOWN_ID = 80


# --- from a request ---------------------------------------------------------------------------------------------------


def items_of(given: str | Sequence[Any]) -> list[Item]:
    """The input of a request as items. References stay as they are: their items are elsewhere."""
    if isinstance(given, str):
        return [_message("user", [{"type": "input_text", "text": given}], None)]
    return [_item(one) for one in given]


def _item(one: Any) -> Item:
    match one:
        case MessageItem():
            item = _message(one.role, _content(one.content, one.role), one.status)
        case FunctionCallItem():
            item = {"type": "function_call", "status": one.status or COMPLETED, "call_id": one.call_id,
                    "name": one.name, "arguments": one.arguments}  # fmt: skip
        case FunctionOutputItem():
            output = one.output if isinstance(one.output, str) else _content(one.output, "user")
            item = {"type": "function_call_output", "status": one.status or COMPLETED, "call_id": one.call_id,
                    "output": output}  # fmt: skip
        case ReasoningItem():
            item = {"type": "reasoning", "status": one.status or COMPLETED, "summary": one.summary}
            item |= {"content": one.content} if one.content is not None else {}
            item |= {"encrypted_content": one.encrypted_content} if one.encrypted_content is not None else {}
        case ItemReference():
            item = {"type": "item_reference"}
        case _:
            raise TypeError(f"no item: {type(one)}")
    return item if one.id is None else {"id": one.id, **item}


def _message(role: str, content: list[Item], status: str | None) -> Item:
    return {"type": "message", "role": role, "status": status or COMPLETED, "content": content}


def _content(content: str | Sequence[Any], role: str) -> list[Item]:
    if isinstance(content, str):
        return [_text(content, role)]
    parts = []
    for part in content:
        match part:
            case TextPart(text=text):
                parts.append(_text(text, role))
            case RefusalPart(refusal=text):
                parts.append({"type": "refusal", "refusal": text} if role == "assistant" else _text(text, role))
            case ImagePart():
                parts.append({"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"})
    return parts


def _text(text: str, role: str) -> Item:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


# --- to the model -----------------------------------------------------------------------------------------------------


def messages_of_items(earlier: Sequence[Item], items: Sequence[Item]) -> list[ChatMessage]:
    """What the model is shown. Raises InferBusError INVALID_ARGUMENT for an answer to a call that was never made."""
    messages: list[ChatMessage] = []
    calls: set[str] = set()
    before = len(earlier)
    for at, item in enumerate((*earlier, *items)):
        kind = item["type"]
        if kind == "message":
            role = item["role"]
            messages.append(ChatMessage(role=_ROLES.get(role, role), content=_shown(item["content"])))
        elif kind == "function_call":
            calls.add(item["call_id"])
            # A turn of the assistant is one message: its text, and its calls.
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage(role="assistant"))
            call = ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            messages[-1].tool_calls.append(call)
        elif kind == "function_call_output":
            if item["call_id"] not in calls:
                param = f"input[{at - before}].call_id" if at >= before else "previous_response_id"
                raise invalid(
                    "A 'function_call_output' answers a call that is not in the conversation before it: send the "
                    "'function_call' item too, or 'previous_response_id'.",
                    param=param,
                )
            output = item["output"]
            shown = output if isinstance(output, str) else _shown(output)
            messages.append(ChatMessage(role="tool", content=shown, tool_call_id=item["call_id"]))
    return messages


def _shown(content: Iterable[Item]) -> str:
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def image_place(items: Sequence[Item]) -> str | None:
    """The first image in an input, by the name of the parameter; None if there is none."""
    for at, item in enumerate(items):
        name = "output" if item["type"] == "function_call_output" else "content"
        parts = item.get(name)
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            if part.get("type") == "input_image":
                return f"input[{at}].{name}[{number}]"
    return None


# --- by their ids -----------------------------------------------------------------------------------------------------


def with_ids(first: bytes, items: Sequence[Item]) -> list[Item]:
    """The input items of a response, each with an id: the caller's, or one that names the response and the place."""
    hexed = first.hex()
    return [
        item if "id" in item else {"id": f"{_PREFIXES[item['type']]}_{hexed}_i{at}", **item}
        for at, item in enumerate(items)
    ]


def distinct(first: bytes, items: Sequence[Item]) -> list[Item]:
    """``items`` with another id for each that repeats one: a list is paged by ids."""
    seen: set[str] = set()
    out = []
    for at, item in enumerate(items):
        name = item["id"]
        if name in seen:
            name = f"{_PREFIXES[item['type']]}_{first.hex()}_r{at}"
            item = {**item, "id": name}
        seen.add(name)
        out.append(item)
    return out


def owner_of(item_id: str) -> bytes | None:
    """The id of the response whose item it is; None if the id is not one of ours."""
    parts = item_id.split("_")
    if len(parts) != 3 or len(parts[1]) != 2 * REQUEST_ID_BYTES:
        return None
    try:
        return bytes.fromhex(parts[1])
    except ValueError:
        return None


def no_such_item(item_id: str, at: int) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND,
        "item_not_found",
        f"Item with id '{item_id[:_SHOWN_ID]}' not found: only items of stored responses can be referred to.",
        param=f"input[{at}].id",
    )


def page(items: Sequence[Item], *, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """One page of a list. Raises InferBusError INVALID_ARGUMENT if ``after`` is no item of it."""
    rows = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if after is not None:
        start = next((at + 1 for at, item in enumerate(rows) if item["id"] == after), 0)
        if start == 0:
            raise invalid("'after' should be the id of an item of this list.", param="after")
    data = rows[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(rows) > start + limit,
    }

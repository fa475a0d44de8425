"""Stored chat completions: their ids, and their messages as OpenAI lists them."""

from collections.abc import Mapping
from typing import Any

import orjson
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_dialect.translate import completion_id
from inferbus_runtime.errors import invalid

_PREFIX = "chatcmpl-"
_DEFAULT_LIMIT, _MAX_LIMIT = 20, 100
_QUERY = ("after", "limit", "order")


def first_of(name: str) -> bytes | None:
    """The request id in a completion's id; None if it is none."""
    digits = name.removeprefix(_PREFIX)
    if digits == name or len(digits) != 2 * REQUEST_ID_BYTES or not digits.isascii() or not digits.isalnum():
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None


def is_chat(reply: bytes) -> bool:
    """Other APIs store their answers in the same place."""
    return bool(orjson.loads(reply).get("api") == "chat")


def message_page(first: bytes, stored: bytes, query: Mapping[str, str]) -> bytes:
    """One page of the messages that were asked. Raises InferBusError INVALID_ARGUMENT for a bad query."""
    for name in query:
        if name not in _QUERY:
            raise invalid(f"Unknown parameter: '{name[:64]}'.", param=name[:64], reason="unknown_parameter")
    order = query.get("order", "asc")
    if order not in ("asc", "desc"):
        raise invalid("'order' should be 'asc' or 'desc'.", param="order")
    limit = _limit(query.get("limit"))
    messages = [_message(first, at, one) for at, one in enumerate(orjson.loads(stored)["messages"])]
    if order == "desc":
        messages.reverse()
    after = query.get("after")
    if after is not None:
        place = next((at for at, one in enumerate(messages) if one["id"] == after), None)
        if place is None:
            raise invalid("'after' should be the id of one of these messages.", param="after")
        messages = messages[place + 1 :]
    page = messages[:limit]
    return orjson.dumps(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(messages) > limit,
        }
    )


def deleted(first: bytes) -> bytes:
    return orjson.dumps({"object": "chat.completion.deleted", "id": completion_id(first), "deleted": True})


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:4]) <= _MAX_LIMIT:
        raise invalid(f"'limit' should be a number from 1 to {_MAX_LIMIT}.", param="limit")
    return int(text[:4])


def _message(first: bytes, index: int, asked: dict[str, Any]) -> dict[str, Any]:
    content = asked.get("content")
    parts = content if isinstance(content, list) else None
    if parts is not None:
        content = "".join(part.get("text") or part.get("refusal") or "" for part in parts)
    return {
        **asked,
        "id": f"{completion_id(first)}-{index}",
        "content": content,
        "refusal": asked.get("refusal"),
        "content_parts": parts,
    }

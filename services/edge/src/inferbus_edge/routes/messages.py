"""Protobuf messages as the JSON of the operator's API, and back."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import orjson
from aiohttp import web
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from inferbus_runtime.errors import invalid

from inferbus_edge.server import Call, json_response, read_body

MessageT = TypeVar("MessageT", bound=Message)


def answer(call: Call, message: Message, status: int = 200) -> web.Response:
    return json_response(orjson.dumps(as_dict(message)), call.request_id, status)


def as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def parse(values: Mapping[str, Any], message: MessageT) -> MessageT:
    """``values`` as ``message``. Raises InferBusError INVALID_ARGUMENT; protobuf names the field."""
    try:
        return ParseDict(dict(values), message)
    except ParseError as error:
        raise invalid(f"{error}") from error


async def body_object(call: Call, timeout: timedelta) -> dict[str, Any]:
    """The body's JSON object; empty without a body. Raises InferBusError like read_body, or INVALID_ARGUMENT."""
    body = await read_body(call, timeout)
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise invalid("The body is not valid JSON.", reason="invalid_json") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.", reason="invalid_type")
    return value


def only(values: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """Raises InferBusError INVALID_ARGUMENT for a name that is not in ``allowed``."""
    for name in values:
        if name not in allowed:
            shown = name[:64]
            raise invalid(f"'{shown}' cannot be set; {', '.join(allowed)} can.", param=shown)

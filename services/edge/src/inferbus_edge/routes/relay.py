"""What another service answers over gRPC, passed on over HTTP in protobuf's JSON."""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import orjson
from aiohttp import web
from google.protobuf.message import Message
from inferbus_dialect.errors import error_body
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from inferbus_runtime.rpc import error_of

from inferbus_edge.routes.messages import answer, as_dict
from inferbus_edge.server import Call, own_headers

log = logging.getLogger(__name__)
CALL_SECONDS = 30.0
RETRY_AFTER = timedelta(seconds=2)


def configured(stub: Any, service: str) -> Any:
    """The stub. Raises InferBusError UNAVAILABLE if the operator named no such ``service``."""
    if stub is None:
        raise unavailable(
            f"{service}_unavailable", f"No {service} is configured at this edge.", retry_after=RETRY_AFTER
        )
    return stub


def named(call: Call, names: dict[str, str]) -> dict[str, Any]:
    """The query's parameters under the message's names. Raises InferBusError for one that is not in ``names``."""
    unknown = next((name for name in call.http.query if name not in names), None)
    if unknown is not None:
        raise invalid(f"Unknown parameter: '{unknown[:64]}'.", param=unknown[:64], reason="unknown_parameter")
    return {names[name]: value for name, value in call.http.query.items() if value}


async def ask(method: Any, request: Message, seconds: float = CALL_SECONDS) -> Any:
    """One call. Raises the InferBusError that the service answered with."""
    try:
        return await method(request, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


async def relay(
    call: Call, method: Any, request: Message, status: int = 200, seconds: float = CALL_SECONDS
) -> web.Response:
    return answer(call, await ask(method, request, seconds), status)


async def ndjson(call: Call, events: AsyncIterator[Message], what: str) -> web.StreamResponse:
    """One line an event as it comes; a failure half-way is a last line with ``error``. ``what``: for the log."""
    response = web.StreamResponse(headers=own_headers(call.request_id))
    response.content_type = "application/x-ndjson"
    try:
        async for event in events:
            if not response.prepared:
                await response.prepare(call.http)
            await response.write(orjson.dumps(as_dict(event)) + b"\n")
    except grpc.aio.AioRpcError as error:
        known: InferBusError = error_of(error)
        if not response.prepared:
            raise known from error
        log.warning("an answer ended early", extra={"answer": what, "reason": known.reason})
        await response.write(error_body(known) + b"\n")
    finally:
        events.cancel()  # type: ignore[attr-defined]
    if not response.prepared:
        await response.prepare(call.http)
    await response.write_eof()
    return response

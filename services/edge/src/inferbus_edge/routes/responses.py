"""/v1/responses: making one, and what is asked of stored ones."""

import asyncio
from datetime import timedelta

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_contracts.ids import is_detached
from inferbus_dialect.responses_items import page
from inferbus_dialect.responses_objects import no_such_response, responses_error_body
from inferbus_dialect.responses_plan import plan_responses
from inferbus_dialect.responses_schema import (
    LOGPROBS,
    parse_responses_request,
)
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.inference import Inference
from inferbus_edge.resume import resumed
from inferbus_edge.routes.responses_history import History
from inferbus_edge.server import Call, Handler, Routes, json_response, read_body
from inferbus_edge.stored import Stored

PATH = "/v1/responses"
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_ENDED = ("completed", "failed", "cancelled", "incomplete")
# How long a cancel waits for its effect, and how often it is said again: one that came before its request was placed
# reached nobody.
_CANCEL_SECONDS = 3.0
_CANCEL_AGAIN_SECONDS = 0.5
_CANCEL_LOOK_SECONDS = 0.05


class ResponsesRoutes:
    def __init__(self, auth: Auth, inference: Inference, stored: Stored, body_timeout: timedelta) -> None:
        self._auth = auth
        self._inference = inference
        self._stored = stored
        self._history = History(stored, inference)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        one = PATH + "/{response_id}"
        table: list[tuple[str, str, Handler]] = [
            ("POST", PATH, self.create),
            ("GET", one, self.get),
            ("DELETE", one, self.delete),
            ("POST", one + "/cancel", self.cancel),
            ("GET", one + "/input_items", self.input_items),
        ]
        for method, path, handler in table:
            routes.add(method, path, handler, errors=responses_error_body)

    async def create(self, call: Call) -> web.StreamResponse:
        """The response, or InferBusError as long as nothing of it was sent."""
        key = self._auth.require(call.http.headers, INFERENCE)
        body = await read_body(call, self._body_timeout)
        if (response := await resumed(self._inference, call, key)) is not None:
            return response
        request = parse_responses_request(body)
        plan = plan_responses(request, *await self._history.conversation(key, request))
        return await self._inference.answer(call, key, plan, body)

    async def get(self, call: Call) -> web.StreamResponse:
        """As it is now; or with ``stream=true`` its events after the one numbered ``starting_after``."""
        key = self._auth.require(call.http.headers, INFERENCE)
        query = _query(call, "stream", "starting_after", "include", "include[]", "include_obfuscation")
        stream = _flag(query, "stream")
        if _flag(query, "include_obfuscation"):
            raise invalid("'include_obfuscation' is not supported; leave it out.", param="include_obfuscation")
        after = _count(query, "starting_after", 0, 1 << 53)
        if after is not None and not stream:
            raise invalid("'starting_after' is only allowed when 'stream' is true.", param="starting_after")
        record = await self._history.record(key, call.path["response_id"])
        if stream:
            # Sequence numbers count from 0, events from 1.
            number = 0 if after is None else after + 1
            waits = not record.body and is_detached(record.request_id)
            return await self._inference.resume(call, key, record.request_id, number, wait=waits)
        return json_response(await self._body(call, key, record.request_id), call.request_id)

    async def delete(self, call: Call) -> web.StreamResponse:
        """What still runs without a client is cancelled: nobody could ask for it any more."""
        key = self._auth.require(call.http.headers, INFERENCE)
        _query(call)
        name = call.path["response_id"]
        record = await self._history.record(key, name)
        if not await self._stored.delete(key, record.request_id):
            raise no_such_response(name)
        if is_detached(record.request_id) and not record.body:
            self._inference.cancel(record.request_id)
        return json_response(orjson.dumps({"id": name, "object": "response", "deleted": True}), call.request_id)

    async def cancel(self, call: Call) -> web.StreamResponse:
        """The response as it has ended; cancelling what has ended already changes nothing."""
        key = self._auth.require(call.http.headers, INFERENCE)
        _query(call)
        record = await self._history.record(key, call.path["response_id"])
        if not is_detached(record.request_id):
            raise invalid("Only a background response can be cancelled; end another by closing its connection.")
        until = clock.monotonic() + _CANCEL_SECONDS
        body = await self._body(call, key, record.request_id)
        while orjson.loads(body)["status"] not in _ENDED and clock.monotonic() < until:
            self._inference.cancel(record.request_id)
            # Nothing is on the log yet of one that is queued: then there is nothing to wait on either.
            await asyncio.sleep(_CANCEL_LOOK_SECONDS)
            body = await self._body(call, key, record.request_id, wait=_CANCEL_AGAIN_SECONDS)
        return json_response(body, call.request_id)

    async def input_items(self, call: Call) -> web.StreamResponse:
        """One page of what the response was given, the conversation before it included; the newest first."""
        key = self._auth.require(call.http.headers, INFERENCE)
        query = _query(call, "limit", "order", "after", "include", "include[]")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("'order' should be 'asc' or 'desc'.", param="order")
        limit = _count(query, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
        record = await self._history.record(key, call.path["response_id"])
        items = await self._history.input_of(key, record)
        found = page(items, limit=limit, order=order, after=query.get("after"))
        return json_response(orjson.dumps(found), call.request_id)

    async def _body(self, call: Call, key: KeyRecord, first: bytes, wait: float = 0.0) -> bytes:
        body = await self._inference.snapshot(key, first, wait)
        if body is None:
            raise no_such_response(call.path["response_id"])
        return body


def _query(call: Call, *known: str) -> dict[str, str]:
    """The query's parameters. Raises InferBusError INVALID_ARGUMENT for one that is not known, or not served."""
    query = call.http.query
    for name in query:
        if name not in known:
            shown = name[:64]
            raise invalid(f"Unknown parameter: '{shown}'.", param=shown, reason="unknown_parameter")
    for name in ("include", "include[]"):
        if any(one != LOGPROBS for one in query.getall(name, ())):
            raise invalid(f"'include' should be nothing but '{LOGPROBS}'.", param="include")
    return dict(query)


def _flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise invalid(f"'{name}' should be true or false.", param=name)
    return value == "true"


def _count(query: dict[str, str], name: str, least: int, most: int) -> int | None:
    value = query.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 16 or not least <= int(value) <= most:
        raise _out_of_range(name, least, most)
    return int(value)


def _out_of_range(name: str, least: int, most: int) -> InferBusError:
    return invalid(f"'{name}' should be a whole number from {least} to {most}.", param=name)

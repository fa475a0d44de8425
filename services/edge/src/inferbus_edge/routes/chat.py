"""POST /v1/chat/completions, unary and streaming, and its stored answers."""

from datetime import timedelta

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ResponseRecord
from inferbus_dialect.chat_plan import plan_chat
from inferbus_dialect.openai import parse_chat_request
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.core.chat_stored import deleted, first_of, is_chat, message_page
from inferbus_edge.inference import Inference
from inferbus_edge.resume import resumed
from inferbus_edge.returning import not_found
from inferbus_edge.server import Call, Routes, json_response, read_body
from inferbus_edge.stored import Stored

PATH = "/v1/chat/completions"
STORED_PATH = PATH + "/{completion_id}"
MESSAGES_PATH = STORED_PATH + "/messages"


class ChatRoutes:
    def __init__(self, auth: Auth, inference: Inference, body_timeout: timedelta) -> None:
        self._auth = auth
        self._inference = inference
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", PATH, self.complete)

    async def complete(self, call: Call) -> web.StreamResponse:
        """The answer, or InferBusError as long as nothing of it was sent."""
        key = self._auth.require(call.http.headers, INFERENCE)
        body = await read_body(call, self._body_timeout)
        if (response := await resumed(self._inference, call, key)) is not None:
            return response
        plan = plan_chat(parse_chat_request(body))
        return await self._inference.answer(call, key, plan, body)


class StoredChatRoutes:
    """What was asked with ``store``, by its id: for the project that asked it, and as long as it is kept."""

    def __init__(self, auth: Auth, inference: Inference, stored: Stored) -> None:
        self._auth = auth
        self._inference = inference
        self._stored = stored

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PATH, self.list)
        routes.add("GET", STORED_PATH, self.get)
        routes.add("DELETE", STORED_PATH, self.delete)
        routes.add("GET", MESSAGES_PATH, self.messages)

    async def list(self, call: Call) -> web.StreamResponse:
        """Refused: there is no index of what is stored."""
        self._auth.require(call.http.headers, INFERENCE)
        message = "Stored completions cannot be listed; fetch one by its id."
        raise invalid(message, reason="method_not_allowed")

    async def get(self, call: Call) -> web.StreamResponse:
        """The answer as it was given; 404 as long as it has not ended."""
        key, first, _ = await self._record(call)
        body = await self._inference.snapshot(key, first)
        if not body:
            raise not_found()
        return json_response(body, call.request_id)

    async def messages(self, call: Call) -> web.StreamResponse:
        """The messages that were asked, in pages."""
        _, first, record = await self._record(call)
        return json_response(message_page(first, record.input, call.http.query), call.request_id)

    async def delete(self, call: Call) -> web.StreamResponse:
        key, first, _ = await self._record(call)
        if not await self._stored.delete(key, first):
            raise not_found()
        return json_response(deleted(first), call.request_id)

    async def _record(self, call: Call) -> tuple[KeyRecord, bytes, ResponseRecord]:
        """The caller's own; anybody else's is not found."""
        key = self._auth.require(call.http.headers, INFERENCE)
        first = first_of(call.path["completion_id"])
        record = None if first is None else await self._stored.get(key, first)
        if first is None or record is None or not is_chat(record.reply):
            raise not_found()
        return key, first, record

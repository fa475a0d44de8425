"""Anthropic's Messages API: POST /v1/messages, unary and streamed, and /v1/messages/count_tokens."""

from datetime import timedelta

import orjson
from aiohttp import web
from inferbus_bus.workers import Workers
from inferbus_dialect.schema import parse

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.core.messages_errors import error_body
from inferbus_edge.core.messages_plan import plan_count, plan_message
from inferbus_edge.core.messages_schema import CountRequest, MessageRequest
from inferbus_edge.inference import Inference
from inferbus_edge.resume import resumed
from inferbus_edge.server import Call, Routes, json_response, read_body

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"


class MessageRoutes:
    """``anthropic-version`` and ``anthropic-beta`` are read by nobody: what a request may hold is the schema's."""

    def __init__(
        self, auth: Auth, inference: Inference, catalogue: Catalogue, workers: Workers, body_timeout: timedelta
    ) -> None:
        self._auth = auth
        self._inference = inference
        self._catalogue = catalogue
        self._workers = workers
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", PATH, self.create, errors=error_body)
        routes.add("POST", COUNT_PATH, self.count, errors=error_body)

    async def create(self, call: Call) -> web.StreamResponse:
        """The answer, or InferBusError as long as nothing of it was sent."""
        key = self._auth.require(call.http.headers, INFERENCE)
        body = await read_body(call, self._body_timeout)
        if (response := await resumed(self._inference, call, key)) is not None:
            return response
        plan = plan_message(parse(MessageRequest, body))
        return await self._inference.answer(call, key, plan, body)

    async def count(self, call: Call) -> web.StreamResponse:
        """The input tokens that the same conversation would have as a message."""
        key = self._auth.require(call.http.headers, INFERENCE)
        plan = plan_count(parse(CountRequest, await read_body(call, self._body_timeout)))
        self._catalogue.require(key, plan)
        with self._inference.admission.counted(key) as fields:
            tokens = await self._workers.count(plan.model, plan.requests[0].chat)
        return json_response(orjson.dumps({"input_tokens": tokens}), call.request_id, headers=fields)

"""POST /v1/responses/input_tokens."""

from datetime import timedelta

import orjson
from aiohttp import web
from inferbus_bus.workers import Workers
from inferbus_dialect.responses_objects import responses_error_body
from inferbus_dialect.responses_plan import plan_input_tokens
from inferbus_dialect.responses_schema import parse_input_tokens_request

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.inference import Inference
from inferbus_edge.routes.responses_history import History
from inferbus_edge.server import Call, Routes, json_response, read_body
from inferbus_edge.stored import Stored

PATH = "/v1/responses/input_tokens"


class InputTokensRoutes:
    def __init__(
        self,
        *,
        auth: Auth,
        inference: Inference,
        stored: Stored,
        catalogue: Catalogue,
        workers: Workers,
        body_timeout: timedelta,
    ) -> None:
        self._auth = auth
        self._inference = inference
        self._history = History(stored, inference)
        self._catalogue = catalogue
        self._workers = workers
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", PATH, self.count, errors=responses_error_body)

    async def count(self, call: Call) -> web.StreamResponse:
        """The input tokens that the same conversation would have as a response."""
        key = self._auth.require(call.http.headers, INFERENCE)
        request = parse_input_tokens_request(await read_body(call, self._body_timeout))
        items, earlier, _ = await self._history.conversation(key, request)
        plan = plan_input_tokens(request, items, earlier)
        self._catalogue.require(key, plan)
        with self._inference.admission.counted(key) as fields:
            tokens = await self._workers.count(plan.model, plan.requests[0].chat)
        counted = {"object": "response.input_tokens", "input_tokens": tokens}
        return json_response(orjson.dumps(counted), call.request_id, headers=fields)

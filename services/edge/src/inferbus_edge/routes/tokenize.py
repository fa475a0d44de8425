"""POST /tokenize and /detokenize, also under /v1: a text as its model reads it."""

from datetime import timedelta

from aiohttp import web
from inferbus_bus.workers import Workers

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.core.tokenize_schema import parse_detokenize, parse_tokenize, prompt_body, tokens_body
from inferbus_edge.inference import Inference
from inferbus_edge.server import Call, Routes, json_response, read_body


class TokenizeRoutes:
    def __init__(
        self, auth: Auth, inference: Inference, catalogue: Catalogue, workers: Workers, body_timeout: timedelta
    ) -> None:
        self._auth = auth
        self._inference = inference
        self._catalogue = catalogue
        self._workers = workers
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        for prefix in ("", "/v1"):
            routes.add("POST", f"{prefix}/tokenize", self.tokenize)
            routes.add("POST", f"{prefix}/detokenize", self.detokenize)

    async def tokenize(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        plan, request, strings = parse_tokenize(await read_body(call, self._body_timeout))
        self._catalogue.require(key, plan)
        with self._inference.admission.counted(key) as fields:
            answer = await self._workers.tokenize(plan.model, request)
        return json_response(tokens_body(answer, strings=strings), call.request_id, headers=fields)

    async def detokenize(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        plan, token_ids = parse_detokenize(await read_body(call, self._body_timeout))
        self._catalogue.require(key, plan)
        with self._inference.admission.counted(key) as fields:
            text = await self._workers.detokenize(plan.model, token_ids)
        return json_response(prompt_body(text), call.request_id, headers=fields)

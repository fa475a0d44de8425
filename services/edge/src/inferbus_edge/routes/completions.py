"""POST /v1/completions: OpenAI's older API, a prompt without a chat template."""

from datetime import timedelta

from aiohttp import web
from inferbus_dialect.completions import parse_completion_request, plan_completion

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.inference import Inference
from inferbus_edge.resume import resumed
from inferbus_edge.server import Call, Routes, read_body

PATH = "/v1/completions"


class CompletionRoutes:
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
        plan = plan_completion(parse_completion_request(body))
        return await self._inference.answer(call, key, plan, body)

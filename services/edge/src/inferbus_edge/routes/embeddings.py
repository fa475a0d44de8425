"""POST /v1/embeddings: texts to vectors."""

from datetime import timedelta

from aiohttp import web
from inferbus_dialect.embeddings import check_dimensions, parse_embedding_request, plan_embeddings

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.inference import Inference
from inferbus_edge.server import Call, Routes, read_body

PATH = "/v1/embeddings"


class EmbeddingRoutes:
    def __init__(self, auth: Auth, inference: Inference, catalogue: Catalogue, body_timeout: timedelta) -> None:
        self._auth = auth
        self._inference = inference
        self._catalogue = catalogue
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", PATH, self.embed)

    async def embed(self, call: Call) -> web.StreamResponse:
        """The vectors, in the order of the inputs."""
        key = self._auth.require(call.http.headers, INFERENCE)
        body = await read_body(call, self._body_timeout)
        request = parse_embedding_request(body)
        plan = plan_embeddings(request)
        check_dimensions(request, self._catalogue.get(key, request.model))
        return await self._inference.answer(call, key, plan, body)

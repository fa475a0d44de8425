"""GET /v1/models and /v1/models/{id}."""

import orjson
from aiohttp import web
from inferbus_dialect.translate import model_list, model_object

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.server import Call, Routes, json_response


class ModelRoutes:
    def __init__(self, auth: Auth, catalogue: Catalogue) -> None:
        self._auth = auth
        self._catalogue = catalogue

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/v1/models", self.list)
        routes.add("GET", "/v1/models/", self.get)

    async def list(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        return json_response(orjson.dumps(model_list(self._catalogue.of(key))), call.request_id)

    async def get(self, call: Call) -> web.StreamResponse:
        key = self._auth.require(call.http.headers, INFERENCE)
        model = self._catalogue.get(key, call.tail)
        return json_response(orjson.dumps(model_object(model)), call.request_id)

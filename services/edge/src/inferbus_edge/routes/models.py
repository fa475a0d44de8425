"""GET /v1/models and /v1/models/{id}."""

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.core.translate import model_list, model_object
from inferbus_edge.server import Call, Routes, json_response

# Names are the caller's own text in an error: enough to recognise it.
_SHOWN_NAME = 128


class ModelRoutes:
    def __init__(self, auth: Auth, models: Registry[ModelRecord]) -> None:
        self._auth = auth
        self._models = models

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/v1/models", self.list)
        routes.add("GET", "/v1/models/", self.get)

    async def list(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, INFERENCE)
        models = list(self._models.items().values())
        return json_response(orjson.dumps(model_list(models)), call.request_id)

    async def get(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, INFERENCE)
        model = self._models.get(call.tail)
        if model is None:
            raise model_not_found(call.tail)
        return json_response(orjson.dumps(model_object(model)), call.request_id)


def model_not_found(name: str) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND,
        "model_not_found",
        f"The model '{name[:_SHOWN_NAME]}' does not exist or is not served here.",
        param="model",
    )

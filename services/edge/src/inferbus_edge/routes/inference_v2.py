"""/v2: the Open Inference Protocol (KServe's predict protocol, version 2) over HTTP, for models that write no text.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md; binary data as Triton's extension.
"""

from datetime import timedelta
from importlib.metadata import version

import orjson
from aiohttp import web
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_dialect.errors import of_status
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_edge.core.inference_v2 import EXTENSIONS, JSON, SERVER_NAME, error_body, metadata_object, metadata_of
from inferbus_edge.core.inference_v2_request import LENGTH_HEADER, parse_json
from inferbus_edge.routes.inference_v2_door import InferenceDoor
from inferbus_edge.server import Call, Routes, json_response, read_body

PREFIX = "/v2"
_RETRY_AFTER = timedelta(seconds=1)
_INFER, _READY, _VERSIONS = "/infer", "/ready", "/versions/"


class InferenceV2Routes:
    def __init__(self, door: InferenceDoor, body_timeout: timedelta) -> None:
        self._door = door
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PREFIX, self.server, errors=error_body)
        routes.add("GET", f"{PREFIX}/health/live", self.live, errors=error_body)
        routes.add("GET", f"{PREFIX}/health/ready", self.ready, errors=error_body)
        # A model's name may have slashes.
        routes.add("GET", f"{PREFIX}/models/", self.model, errors=error_body)
        routes.add("POST", f"{PREFIX}/models/", self.infer, errors=error_body)
        for method in ("GET", "POST"):
            routes.add(method, f"{PREFIX}/", self.elsewhere, errors=error_body)

    async def server(self, call: Call) -> web.StreamResponse:
        shown = {"name": SERVER_NAME, "version": version("inferbus-edge"), "extensions": EXTENSIONS}
        return json_response(orjson.dumps(shown), call.request_id)

    async def live(self, call: Call) -> web.StreamResponse:
        return json_response(b'{"live":true}', call.request_id)

    async def ready(self, call: Call) -> web.StreamResponse:
        reason = self._door.not_ready()
        if reason is not None:
            raise unavailable(reason, "This server takes no requests now; retry.", retry_after=_RETRY_AFTER)
        return json_response(b'{"ready":true}', call.request_id)

    async def model(self, call: Call) -> web.StreamResponse:
        """What a model takes and gives, or whether somebody serves it now."""
        key = self._door.enter(call.said)
        path, asks_ready = call.tail, call.tail.endswith(_READY)
        if path.endswith(_INFER):
            raise of_status(405)
        name, wanted = _named(path.removesuffix(_READY) if asks_ready else path)
        model = self._door.model(key, name, wanted)
        if not asks_ready:
            return json_response(orjson.dumps(metadata_object(metadata_of(model))), call.request_id)
        if not self._door.ready(model):
            message = f"The model '{name}' has no running worker at the moment; retry."
            raise unavailable("no_worker", message, retry_after=_RETRY_AFTER)
        return json_response(orjson.dumps({"name": name, "ready": True}), call.request_id)

    async def infer(self, call: Call) -> web.StreamResponse:
        key = self._door.enter(call.said)
        if not call.tail.endswith(_INFER):
            raise of_status(405)
        model = self._door.model(key, *_named(call.tail.removesuffix(_INFER)))
        body = await read_body(call, self._body_timeout)
        header_length = call.said.get(LENGTH_HEADER.lower())
        # The same bytes divided elsewhere are another request.
        whole = body if header_length is None else b"%s\0%s" % (header_length.encode(errors="replace"), body)
        return await self._door.answer(call, key, model, parse_json(body, header_length), JSON, whole)

    async def elsewhere(self, call: Call) -> web.StreamResponse:
        """What a Triton has below /v2 and InferBus has not."""
        raise InferBusError(
            ErrorClass.ERROR_CLASS_NOT_FOUND,
            "unknown_url",
            "There is no such URL here: of the Open Inference Protocol models, their metadata and health are served.",
        )


def _named(path: str) -> tuple[str, str]:
    """``m/versions/v`` → (m, v); without a version it is empty."""
    name, marked, wanted = path.rpartition(_VERSIONS)
    return (name, wanted) if marked else (path, "")

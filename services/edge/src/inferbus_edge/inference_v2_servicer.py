"""inference.GRPCInferenceService: the Open Inference Protocol over gRPC, with a key in each call's metadata.

Its messages are ours of the same form (``proto/inferbus/inference/v1``), so it is served by generic handlers.
"""

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.message import Message
from inferbus.inference.v1 import inference_pb2 as v2
from inferbus_contracts.ids import uuid_text
from inferbus_dialect.errors import internal
from inferbus_runtime import clock

from inferbus_edge.answers import WholeResponse
from inferbus_edge.core.inference_v2 import EXTENSIONS, PROTOBUF, SERVER_NAME, check_names, metadata_of
from inferbus_edge.core.inference_v2_request import inferring_of, read_protobuf
from inferbus_edge.returning import STREAM_HEADER
from inferbus_edge.routes.inference_v2_door import InferenceDoor
from inferbus_edge.server import Asked, new_request_id

SERVICE = "inference.GRPCInferenceService"
# What says nothing of models needs no key.
_OPEN = frozenset(f"/{SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata"))
_INFER = f"/{SERVICE}/ModelInfer"
_TOLD = (STREAM_HEADER, "x-ratelimit-")


class InferenceV2Servicer:
    """``edge``: its name, which is part of a request's id."""

    def __init__(self, door: InferenceDoor, edge: str) -> None:
        self._door = door
        self._edge = edge

    def add_to(self, server: Any) -> None:
        methods = {
            "ServerLive": _unary(self.live, v2.ServerLiveRequest),
            "ServerReady": _unary(self.ready, v2.ServerReadyRequest),
            "ServerMetadata": _unary(self.server, v2.ServerMetadataRequest),
            "ModelReady": _unary(self.model_ready, v2.ModelReadyRequest),
            "ModelMetadata": _unary(self.model, v2.ModelMetadataRequest),
            # Bytes, as they came and as they go: an idempotency key stands for these, and the answer is made already.
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self.infer),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def admit(self, method: str, metadata: Mapping[str, Any]) -> None:
        """Before a message is read. Raises InferBusError UNAUTHENTICATED, PERMISSION_DENIED."""
        if method not in _OPEN:
            self._door.enter(_texts(metadata))

    async def live(self, _request: Any, _context: Any) -> v2.ServerLiveResponse:
        return v2.ServerLiveResponse(live=True)

    async def ready(self, _request: Any, _context: Any) -> v2.ServerReadyResponse:
        return v2.ServerReadyResponse(ready=self._door.not_ready() is None)

    async def server(self, _request: Any, _context: Any) -> v2.ServerMetadataResponse:
        return v2.ServerMetadataResponse(name=SERVER_NAME, version=version("inferbus-edge"), extensions=EXTENSIONS)

    async def model_ready(self, request: v2.ModelReadyRequest, context: Any) -> v2.ModelReadyResponse:
        model = self._door.model(self._door.enter(_said(context)), request.name, request.version)
        return v2.ModelReadyResponse(ready=self._door.ready(model))

    async def model(self, request: v2.ModelMetadataRequest, context: Any) -> v2.ModelMetadataResponse:
        return metadata_of(self._door.model(self._door.enter(_said(context)), request.name, request.version))

    async def infer(self, body: bytes, context: Any) -> bytes:
        accepted_us = clock.now_us()
        said = _said(context)
        call = Asked(new_request_id(self._edge, accepted_us), accepted_us, said, _INFER)
        # Also of a call that is refused: by its id logs and traces know it.
        await context.send_initial_metadata((("x-request-id", uuid_text(call.request_id)),))
        key = self._door.enter(said)
        message = read_protobuf(body)
        model = self._door.model(key, message.model_name, message.model_version)
        check_names(message, metadata_of(model))  # before contents are looked at: of these there may be many
        asked = inferring_of(message)
        message.ClearField("model_name")
        message.ClearField("model_version")
        response = await self._door.answer(call, key, model, asked, PROTOBUF, body)
        told = [(name.lower(), value) for name, value in response.headers.items()]
        context.set_trailing_metadata(tuple(one for one in told if one[0].startswith(_TOLD)))
        return body_of(response, context)


def body_of(response: web.StreamResponse, context: Any) -> bytes:
    """Which counts as unread until the call has ended."""
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        raise internal("an inference call was answered in a stream")
    if isinstance(response, WholeResponse):
        written = response.handed_on()
        context.add_done_callback(lambda _context: written())
    return response.body


def _unary(behaviour: Callable[[Any, Any], Awaitable[Message]], request: type[Message]) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        behaviour, request_deserializer=request.FromString, response_serializer=lambda one: one.SerializeToString()
    )


def _said(context: Any) -> dict[str, str]:
    return _texts(dict(context.invocation_metadata() or ()))


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Without binary entries."""
    return {name: value for name, value in metadata.items() if isinstance(value, str)}

"""A running tritonserver over gRPC: its models' configurations, its repository, its streams.

Requests go as the protocol's own messages, made by tritonclient: its wrappers build several objects a token, and its
asyncio client cannot ask for the empty final response.
"""

import logging
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2 as configs
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from inferbus_worker.engines.triton_health import described

log = logging.getLogger(__name__)

# What is sent has no bound here; a server that is back is found within a second.
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# Of a message around what is bounded in it: names, shapes, what the server says of itself.
RECEIVE_SLACK = 1 << 20


class AbsentModelError(Exception):
    """The server runs, and has no such model loaded."""


class TritonClient:
    """One connection. Calls end within ``call_seconds``, loads within ``load_seconds``, and raise grpc.RpcError: also
    of a message of the server that is larger than ``receive_bytes``, which is not read."""

    def __init__(
        self,
        address: str,
        *,
        tls: bool,
        ca: Path | None,
        call_seconds: float,
        load_seconds: float,
        receive_bytes: int,
    ) -> None:
        """Reads ``ca``; raises OSError."""
        options = (*_OPTIONS, ("grpc.max_receive_message_length", receive_bytes))
        if tls:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes() if ca is not None else None)
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._call_seconds = call_seconds
        self._load_seconds = load_seconds

    async def leave(self, ours: str | None) -> None:
        """Closes the connection; ``ours``: a model that is unloaded before. Safe twice."""
        if ours is not None:
            try:
                await self.unload(ours)
            except grpc.RpcError as error:
                log.warning("the model was not unloaded", extra={"error": described(error)})
        await self._channel.close()

    async def version(self) -> str:
        """Of the server."""
        answer = await self._stub.ServerMetadata(messages.ServerMetadataRequest(), timeout=self._call_seconds)
        return str(answer.version)

    async def config(self, model: str) -> configs.ModelConfig:
        """Raises AbsentModelError, too."""
        request = messages.ModelConfigRequest(name=model)
        try:
            return (await self._stub.ModelConfig(request, timeout=self._call_seconds)).config
        except grpc.RpcError as error:
            # NOT_FOUND, or UNAVAILABLE while it is loaded or unloaded, as a server is that cannot be reached.
            if "unknown model" in str(error.details()).lower():
                raise AbsentModelError(error.details()) from error
            raise

    async def metadata(self, model: str) -> messages.ModelMetadataResponse:
        return await self._stub.ModelMetadata(messages.ModelMetadataRequest(name=model), timeout=self._call_seconds)

    async def ready(self, model: str) -> bool:
        """What the server says, which may be wrong."""
        request = messages.ModelReadyRequest(name=model)
        return bool((await self._stub.ModelReady(request, timeout=self._call_seconds)).ready)

    async def infer(self, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
        """One answer, however long it takes; cancelled, it cancels the call at the server."""
        return await self._stub.ModelInfer(request)

    async def load(self, model: str) -> None:
        """Returns when it is loaded, with the models that it is made of; one that is loaded already, and whose files
        are as they were, stays as it is."""
        request = messages.RepositoryModelLoadRequest(model_name=model)
        await self._stub.RepositoryModelLoad(request, timeout=self._load_seconds)

    async def unload(self, model: str) -> None:
        """Returns at once; what runs ends by itself."""
        request = messages.RepositoryModelUnloadRequest(model_name=model)
        request.parameters["unload_dependents"].bool_param = True
        await self._stub.RepositoryModelUnload(request, timeout=self._call_seconds)

    async def open(self, request: messages.ModelInferRequest) -> Any:
        """A stream with this one request on it: cancelling a stream cancels all requests on it.

        Iterate it for ModelStreamInferResponse; it ends when the request has its last. ``cancel()`` it to end early.
        """
        call = self._stub.ModelStreamInfer()
        try:
            await call.write(request)
            await call.done_writing()
        except BaseException:
            call.cancel()
            raise
        return call

"""The door to the Open Inference Protocol, the same for HTTP and gRPC: who may ask which model, and the asking."""

from collections.abc import Callable, Mapping

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus_bus.workers import Workers

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.core.inference_v2 import NEEDS, check_call, check_version, metadata_of, plan_call
from inferbus_edge.core.inference_v2_request import Inferring
from inferbus_edge.inference import Inference
from inferbus_edge.server import Asked


class InferenceDoor:
    """``not_ready``: why no request can be taken now, or None. ``max_bytes``: of a call's tensors."""

    def __init__(
        self,
        *,
        auth: Auth,
        inference: Inference,
        catalogue: Catalogue,
        workers: Workers,
        not_ready: Callable[[], str | None],
        max_bytes: int,
    ) -> None:
        self._auth = auth
        self._inference = inference
        self._catalogue = catalogue
        self._workers = workers
        self._max_bytes = max_bytes
        self.not_ready = not_ready

    def enter(self, said: Mapping[str, str]) -> KeyRecord:
        """Raises InferBusError UNAUTHENTICATED, PERMISSION_DENIED."""
        return self._auth.require(said, INFERENCE)

    def model(self, key: KeyRecord, name: str, version: str) -> ModelRecord:
        """One that the key may use and that serves this protocol. Raises InferBusError NOT_FOUND, INVALID_ARGUMENT."""
        model = self._catalogue.able(key, name, NEEDS)
        check_version(model, version)
        return model

    def ready(self, model: ModelRecord) -> bool:
        return self._workers.active(model.name)

    async def answer(
        self, call: Asked, key: KeyRecord, model: ModelRecord, asked: Inferring, encoding: str, body: bytes
    ) -> web.StreamResponse:
        """See :meth:`Inference.answer`."""
        check_call(asked, metadata_of(model))
        plan = plan_call(asked, model.name, encoding, self._max_bytes)
        return await self._inference.answer(call, key, plan, body)

"""A model on Triton that is none of TensorRT-LLM's: tensors in, tensors out, one answer a call.

It is served as it is. What its callers must send is in its metadata, which goes to the edges; whether a call keeps to
that is for the server to say, since only it knows which inputs are optional and how batches are formed.
"""

import hashlib
import logging
from dataclasses import dataclass
from math import prod
from typing import Any

import grpc
from inferbus.common.v1.error_pb2 import ErrorClass
from tritonclient.grpc import service_pb2 as messages

from inferbus_worker.config import TritonConfig
from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engines.triton_call import answer_of, error_of_call, is_gone, request_of
from inferbus_worker.engines.triton_client import TritonClient
from inferbus_worker.engines.triton_health import ProbeError, described

log = logging.getLogger(__name__)

# Bytes of an element. What is not here is BYTES: each of its elements stands behind four bytes that say its length.
_SIZES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4, "FP32": 4,
    "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
# A larger call is not made for a proof; then the model's own word must do.
_PROOF_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Tensors:
    """``metadata``: an encoded ModelMetadataResponse without names and versions of the server. ``needed``: inputs that
    are not optional, ``names``: of all its tensors. ``proof``: a call of zeros with what is needed; None: too large."""

    name: str
    metadata: bytes
    needed: tuple[str, ...]
    names: frozenset[str]
    proof: bytes | None
    digest: str


def tensors_of(config: Any, metadata: Any) -> Tensors:
    """``config``: the ModelConfig of a model, ``metadata``: its ModelMetadataResponse.

    Raises InferBusError for one that cannot be served.
    """
    if config.model_transaction_policy.decoupled:
        raise start_failed(f"the model '{config.name}' is decoupled: it may answer a call many times, not just once")
    if config.HasField("sequence_batching"):
        raise start_failed(f"the model '{config.name}' keeps state between calls, which may go to other workers")
    said = hashlib.sha256(config.SerializeToString(deterministic=True))
    said.update(metadata.SerializeToString(deterministic=True))
    shown = messages.ModelMetadataResponse(
        platform=metadata.platform, inputs=metadata.inputs, outputs=metadata.outputs
    ).SerializeToString(deterministic=True)
    optional = {one.name for one in config.input if one.optional}
    needed = [one for one in metadata.inputs if one.name not in optional]
    return Tensors(
        name=config.name,
        metadata=shown,
        needed=tuple(one.name for one in needed),
        names=frozenset(one.name for one in (*metadata.inputs, *metadata.outputs)),
        proof=_zeros(needed),
        digest=said.hexdigest(),
    )


def _zeros(inputs: list[Any]) -> bytes | None:
    request, size = messages.ModelInferRequest(), 0
    for one in inputs:
        shape = [length if length > 0 else 1 for length in one.shape]
        length = prod(shape) * _SIZES.get(one.datatype, 4)
        size += length
        if size > _PROOF_BYTES:
            return None
        request.inputs.add(name=one.name, datatype=one.datatype, shape=shape)
        request.raw_input_contents.append(bytes(length))
    return bytes(request.SerializeToString())


@dataclass(slots=True, eq=False)
class TensorService:
    """The model, found and proved by a call."""

    settings: TritonConfig
    client: TritonClient
    tensors: Tensors
    version: str

    @property
    def models(self) -> frozenset[str]:
        """Those whose figures on the metrics page are its own."""
        return frozenset({self.tensors.name})

    @property
    def revision(self) -> str:
        """Another one if the server, the model's configuration or its version is."""
        return hashlib.sha256(f"{self.version} {self.tensors.digest}".encode()).hexdigest()[:12]

    def request_of(self, encoded: bytes) -> Any:
        """Of an encoded ModelInferRequest, as :meth:`infer` takes it. Raises InferBusError."""
        return request_of(self.tensors.name, encoded, self.tensors.needed)

    async def infer(self, request: Any) -> bytes:
        """The answer, encoded, without the server's names. Cancelled, it cancels the call there.

        Raises InferBusError for what is about this call alone, and grpc.RpcError for what the model may have died of.
        """
        limit = self.settings.max_answer_bytes
        try:
            answer = await self.client.infer(request)
        except grpc.RpcError as error:
            if is_gone(error):
                raise
            sent = {tensor.name for tensor in (*request.inputs, *request.outputs) if tensor.name}
            refused = error_of_call(error, self.tensors.name, self.tensors.names | sent, limit)
            if refused.error_class != ErrorClass.ERROR_CLASS_INVALID_ARGUMENT:
                log.warning("a call failed", extra={"error": refused.diagnostic})
            raise refused from error
        return answer_of(answer, limit)

    async def probe(self) -> None:
        """Raises ProbeError, grpc.RpcError.

        Ready is no proof: with the model's process dead, the server goes on saying that it is. Whatever a model
        answers to zeros, an error of its own included, it lives.
        """
        if not await self.client.ready(self.tensors.name):
            raise ProbeError("the model is not ready")
        if self.tensors.proof is None:
            return
        try:
            await self.client.infer(request_of(self.tensors.name, self.tensors.proof))
        except grpc.RpcError as error:
            if is_gone(error):
                raise
            log.debug("the model refuses zeros, and lives", extra={"error": described(error)})

    async def stop(self) -> None:
        """Safe twice."""
        await self.client.leave(self.settings.server_model if self.settings.control == "own" else None)

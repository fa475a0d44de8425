"""The Open Inference Protocol: what a server and a model say of themselves, and a call held to its model."""

from collections.abc import Sequence
from typing import Any

import orjson
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.inference.v1.inference_pb2 import ModelInferRequest, ModelMetadataResponse, TensorMetadata
from inferbus_dialect.plan import Need, Plan
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.inference_v2_request import Inferring
from inferbus_edge.core.inference_v2_tensors import Room, TensorError, check_raw, refusal, shown

CAPABILITY = "inference"
NEEDS = (Need(CAPABILITY, "model"),)
SERVER_NAME = "inferbus"
EXTENSIONS = ("binary_tensor_data", "parameters")
# How an answer is written.
JSON, PROTOBUF = "json", "protobuf"
# Names are the caller's own text, or the model's: enough to recognise one by.
_SHOWN = 64


def error_body(error: InferBusError, _request_id: bytes = b"") -> bytes:
    """The protocol's own: a sentence."""
    return orjson.dumps({"error": error.message.encode(errors="replace").decode()})


def metadata_of(model: ModelRecord) -> ModelMetadataResponse:
    """As tenants see it: under its public name, with its revision for a version."""
    metadata = ModelMetadataResponse.FromString(model.inference_metadata)
    metadata.name = model.name
    metadata.versions[:] = [model.revision]
    return metadata


def metadata_object(metadata: ModelMetadataResponse) -> dict[str, Any]:
    """As HTTP has it."""
    return {
        "name": metadata.name,
        "versions": list(metadata.versions),
        "platform": metadata.platform,
        "inputs": [_tensor_object(one) for one in metadata.inputs],
        "outputs": [_tensor_object(one) for one in metadata.outputs],
    }


def _tensor_object(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def check_version(model: ModelRecord, version: str) -> None:
    """Raises InferBusError NOT_FOUND if another one is asked for than the one that is served."""
    if version not in ("", model.revision):
        raise InferBusError(
            ErrorClass.ERROR_CLASS_NOT_FOUND,
            "model_version_not_found",
            f"The model '{model.name}' is served in the version '{model.revision}' only; leave the version out.",
            param="model_version",
        )


def check_names(message: ModelInferRequest, metadata: ModelMetadataResponse) -> None:
    """Raises InferBusError INVALID_ARGUMENT if these tensors are not the model's by their names. A model that says
    nothing of its tensors takes any."""
    _check_names("inputs", [one.name for one in message.inputs], {one.name: one for one in metadata.inputs})
    _check_names("outputs", [one.name for one in message.outputs], {one.name: one for one in metadata.outputs})


def check_call(asked: Inferring, metadata: ModelMetadataResponse) -> None:
    """Raises InferBusError INVALID_ARGUMENT if these are not the model's tensors. Which inputs may be missing only the
    model's server knows, and says."""
    message, room = asked.message, Room()
    check_names(message, metadata)
    inputs = {one.name: one for one in metadata.inputs}
    for at, (tensor, raw) in enumerate(zip(message.inputs, message.raw_input_contents, strict=True)):
        param, name, expected = f"inputs[{at}]", tensor.name[:_SHOWN], inputs.get(tensor.name)
        if expected is not None and tensor.datatype != expected.datatype:
            fault = f"Input '{name}' is of {tensor.datatype}, and the model takes {expected.datatype}."
            raise invalid(fault, param=f"{param}.datatype")
        if expected is not None and not _fits(tensor.shape, expected.shape):
            fault = f"Input '{name}' has the shape {shown(tensor.shape)}, and the model takes {shown(expected.shape)}"
            raise invalid(f"{fault}{' (-1: any length)' * (-1 in expected.shape)}.", param=f"{param}.shape")
        try:
            check_raw(tensor.datatype, tensor.shape, raw, room)
        except TensorError as error:
            raise refusal("Input", tensor.name, error, param) from None


def plan_call(asked: Inferring, model: str, encoding: str, max_bytes: int) -> Plan:
    """Raises InferBusError INVALID_ARGUMENT if the tensors come to more than ``max_bytes``: JSON and varints can be
    shorter than what they stand for."""
    message = GenerateRequest(priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE)
    message.inference.request = asked.message.SerializeToString()
    size = len(message.inference.request)
    if size > max_bytes:
        fault = f"The tensors of this call come to {size} bytes, of at most {max_bytes}; send fewer at once."
        raise invalid(fault, param="inputs", reason="request_too_large")
    reply: dict[str, Any] = {"api": CAPABILITY, "n": 1, "encoding": encoding, "id": asked.message.id}
    if asked.binary:
        reply["binary"] = True
    if asked.outputs:
        reply["outputs"] = dict(asked.outputs)
    return Plan(operation=CAPABILITY, model=model, stream=False, requests=(message,), reply=reply, needs=NEEDS)


def _check_names(kind: str, names: Sequence[str], known: dict[str, TensorMetadata]) -> None:
    for at, name in enumerate(names):
        param = f"{kind}[{at}].name"
        if name in names[:at]:
            raise invalid(f"'{param}' names '{name[:_SHOWN]}' a second time.", param=param)
        if known and name not in known:
            listed = ", ".join(f"'{one[:_SHOWN]}'" for one in list(known)[:16])
            raise invalid(f"The model has no '{name[:_SHOWN]}' among its {kind}: {listed}.", param=param)


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    return len(shape) == len(expected) and all(
        known in (-1, given) for given, known in zip(shape, expected, strict=True)
    )

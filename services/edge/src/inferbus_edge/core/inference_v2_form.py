"""The answer to an inference call: from the parts of a ModelInferResponse on the log to JSON, JSON with binary data
behind it, or the message itself for gRPC."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.inference.v1.inference_pb2 import InferOutputTensor, ModelInferResponse
from inferbus_dialect.errors import internal
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.inference_v2 import PROTOBUF
from inferbus_edge.core.inference_v2_request import LENGTH_HEADER
from inferbus_edge.core.inference_v2_tensors import Room, TensorError, json_of, raw_of_contents, refusal

# Of a whole answer. What an edge keeps of it until its end is memory that all its tenants share. A worker of ours gives
# no larger one, however it is configured.
MAX_BYTES = 16 << 20


class InferenceForm:
    """See :class:`inferbus_dialect.form.Form`. There is no stream."""

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        self._reply = reply
        self._parts: dict[int, bytes] = {}
        self._size = 0
        self._revision = ""
        self._model: str = reply["model"]
        self._header_length: int | None = None

    def accept(self) -> Sequence[bytes]:
        return ()

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        """An attempt makes all of the answer: what an earlier one left may be cut elsewhere."""
        self._parts.clear()
        self._size = 0
        return ()

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        return ()

    def binary(self, index: int, data: bytes) -> None:
        if index in self._parts:
            return
        self._size += len(data)
        self._parts[index] = data if self._size <= MAX_BYTES else b""

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        self._revision, self._model = revision, model or self._model
        return ()

    def finish(self) -> Sequence[bytes]:
        return ()

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        return ()

    def fields(self) -> Mapping[str, str]:
        """See :class:`inferbus_dialect.form.Headed`."""
        if self._reply["encoding"] == PROTOBUF:
            return {"Content-Type": "application/x-protobuf"}
        if self._header_length is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(self._header_length)}

    def body(self) -> bytes:
        """Raises InferBusError: INTERNAL if a part is missing, INVALID_ARGUMENT if the answer cannot be written as it
        was asked for."""
        message = self._message()
        if self._reply["encoding"] == PROTOBUF:
            return message.SerializeToString()
        outputs, binary, typed, room = [], [], Room(), Room()
        raws: Sequence[bytes] = message.raw_output_contents or [_raw(one, typed) for one in message.outputs]
        for number, (tensor, raw) in enumerate(zip(message.outputs, raws, strict=True)):
            shown: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            parameters = _shown(tensor.parameters)
            if self._is_binary(tensor.name):
                parameters["binary_data_size"] = len(raw)
                binary.append(raw)
            else:
                shown["data"] = orjson.Fragment(_json(tensor, raw, f"outputs[{number}]", room))
            outputs.append({**shown, "parameters": parameters} if parameters else shown)
        head = orjson.dumps(
            {
                "model_name": message.model_name,
                "model_version": message.model_version,
                **({"id": message.id} if message.id else {}),
                **({"parameters": _shown(message.parameters)} if message.parameters else {}),
                "outputs": outputs,
            }
        )
        self._header_length = len(head) if binary else None
        return b"".join((head, *binary))

    def _message(self) -> ModelInferResponse:
        if self._size > MAX_BYTES:
            fault = f"The answer of the model is larger than {MAX_BYTES} bytes; ask for less at once."
            raise invalid(fault, param="inputs", reason="answer_too_large")
        if not self._parts or any(at not in self._parts for at in range(len(self._parts))):
            raise internal("an inference call ended without all parts of its answer")
        try:
            message = ModelInferResponse.FromString(b"".join(self._parts[at] for at in range(len(self._parts))))
        except DecodeError as error:
            raise internal("the answer of an inference call is no ModelInferResponse") from error
        if message.raw_output_contents and len(message.raw_output_contents) != len(message.outputs):
            raise internal("the answer of an inference call has not one raw content an output")
        message.model_name, message.model_version = self._model, self._revision
        message.id = self._reply["id"]
        for parameters in (message.parameters, *(one.parameters for one in message.outputs)):
            for name in [one for one in parameters if one.startswith("triton_")]:
                del parameters[name]  # what the model's server says of itself is not for the caller
        return message

    def _is_binary(self, name: str) -> bool:
        outputs: Mapping[str, bool] = self._reply.get("outputs", {})
        return outputs.get(name, self._reply.get("binary", False))


def _raw(tensor: InferOutputTensor, room: Room) -> bytes:
    try:
        return raw_of_contents(tensor.datatype, tensor.contents, room)
    except TensorError as error:
        raise internal(f"output {tensor.name} {error}") from error


def _json(tensor: InferOutputTensor, raw: bytes, param: str, room: Room) -> bytes:
    try:
        return json_of(tensor.datatype, raw, room)
    except TensorError as error:
        fault = TensorError(f"{error}; ask for it as binary data ('binary_data': true)")
        raise refusal("Output", tensor.name, fault, param, reason="answer_not_json") from None
    except (KeyError, ValueError) as error:
        raise internal(f"output {tensor.name} is no {tensor.datatype}: {error}") from error


def _shown(parameters: Any) -> dict[str, Any]:
    return {
        name: getattr(one, kind)
        for name, one in parameters.items()
        if (kind := one.WhichOneof("parameter_choice")) is not None
    }

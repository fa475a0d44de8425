"""What an inference call of the Open Inference Protocol may say, over HTTP and over gRPC. Both become one message with
raw contents, as the model's server takes it.

HTTP has a JSON body; with the header ``Inference-Header-Content-Length`` that is only its first so many bytes, and the
tensors that have a ``binary_data_size`` follow it, one after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from google.protobuf.message import DecodeError
from inferbus.inference.v1.inference_pb2 import InferParameter, ModelInferRequest
from inferbus_dialect.schema import STRICT, parse, unsupported
from inferbus_runtime.errors import invalid
from pydantic import BaseModel, Field

from inferbus_edge.core.inference_v2_tensors import (
    DATATYPES,
    Room,
    TensorError,
    raw_of_contents,
    raw_of_json,
    refusal,
)

LENGTH_HEADER = "Inference-Header-Content-Length"
_MAX_TENSORS, _MAX_RANK, _MAX_PARAMETERS = 256, 32, 64
_MAX_NAME, _MAX_TEXT, _MAX_ID = 256, 4096, 512

Parameters = Annotated[
    dict[Annotated[str, Field(max_length=_MAX_NAME)], bool | int | float | Annotated[str, Field(max_length=_MAX_TEXT)]],
    Field(max_length=_MAX_PARAMETERS),
]
Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]


class InputTensor(BaseModel):
    model_config = STRICT
    name: Name = Field(description="One of the model's inputs.")
    shape: list[Annotated[int, Field(ge=0, lt=1 << 62)]] = Field(
        max_length=_MAX_RANK, description="As the model has it; where that is -1, any length."
    )
    datatype: str = Field(description="The model's: BOOL, INT8 … INT64, UINT8 … UINT64, FP16, BF16, FP32, FP64, BYTES.")
    parameters: Parameters = Field(
        {}, description="'binary_data_size': so many bytes after the JSON are its data. Others: passed on to the model."
    )
    data: list[Any] | None = Field(None, description="Its elements, row after row, flat or nested; texts for BYTES.")


class RequestedOutput(BaseModel):
    model_config = STRICT
    name: Name = Field(description="One of the model's outputs.")
    parameters: Parameters = Field({}, description="'binary_data': whether it comes after the JSON. Others: passed on.")


class InferenceRequest(BaseModel):
    model_config = STRICT
    id: Annotated[str, Field(max_length=_MAX_ID)] | None = Field(None, description="Given back in the answer.")
    parameters: Parameters = Field(
        {}, description="'binary_data_output': whether outputs come after the JSON. Others: passed on to the model."
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=_MAX_TENSORS, description="All that the model needs.")
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=_MAX_TENSORS, description="Only these; absent or empty: all."
    )


@dataclass(frozen=True, slots=True)
class Inferring:
    """``message``: with raw contents, checked for being whole, not for being the model's. ``binary``: how outputs are
    written over HTTP, ``outputs`` where that was said of one."""

    message: ModelInferRequest
    binary: bool = False
    outputs: Mapping[str, bool] = field(default_factory=dict)


def parse_json(body: bytes, header_length: str | None = None) -> Inferring:
    """Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    head, rest = _halves(body, header_length)
    request = parse(InferenceRequest, head)
    parameters = dict(request.parameters)
    binary = _flag(parameters, "binary_data_output", "parameters", otherwise=False)
    message = ModelInferRequest(id=request.id or "")
    _put(message.parameters, parameters, "parameters")
    at, room = 0, Room()
    for number, one in enumerate(request.inputs):
        param = f"inputs[{number}]"
        parameters = dict(one.parameters)
        size = parameters.pop("binary_data_size", None)
        if (size is None) == (one.data is None):
            raise invalid(f"Input '{one.name[:64]}' needs either 'data' or a 'binary_data_size'.", param=param)
        if size is None:
            raw = _raw_of_json(one, param, room)
        else:
            raw = _cut(rest, at, size, f"{param}.parameters.binary_data_size")
            at += len(raw)
        tensor = message.inputs.add(name=one.name, datatype=_known(one.datatype, param), shape=one.shape)
        _put(tensor.parameters, parameters, f"{param}.parameters")
        message.raw_input_contents.append(raw)
    if at != len(rest):
        raise invalid(f"The inputs have {at} bytes of binary data, and the body {len(rest)}.", param=LENGTH_HEADER)
    outputs: dict[str, bool] = {}
    for number, asked in enumerate(request.outputs or ()):
        param = f"outputs[{number}].parameters"
        parameters = dict(asked.parameters)
        outputs[asked.name] = _flag(parameters, "binary_data", param, otherwise=binary)
        _put(message.outputs.add(name=asked.name).parameters, parameters, param)
    return Inferring(message, binary, outputs)


def read_protobuf(body: bytes) -> ModelInferRequest:
    """The message, all but its contents checked. Raises as :func:`parse_json`."""
    try:
        message = ModelInferRequest.FromString(body)
    except DecodeError:
        raise invalid("The message is no ModelInferRequest.", reason="invalid_type") from None
    if not 0 < len(message.inputs) <= _MAX_TENSORS or len(message.outputs) > _MAX_TENSORS:
        raise invalid(f"A call has 1 to {_MAX_TENSORS} inputs, and up to {_MAX_TENSORS} outputs.", param="inputs")
    if len(message.id) > _MAX_ID:
        raise invalid(f"'id' should have at most {_MAX_ID} characters.", param="id")
    check_parameters(message.parameters, "parameters")
    for number, tensor in enumerate(message.inputs):
        check_parameters(tensor.parameters, f"inputs[{number}].parameters")
    for number, output in enumerate(message.outputs):
        check_parameters(output.parameters, f"outputs[{number}].parameters")
    if message.raw_input_contents and len(message.raw_input_contents) != len(message.inputs):
        raise invalid("'raw_input_contents' has one entry for each input, or none at all.", param="raw_input_contents")
    return message


def inferring_of(message: ModelInferRequest) -> Inferring:
    """Of what :func:`read_protobuf` gave, which it changes. Raises as :func:`parse_json`."""
    raws, room = [], Room()
    for number, tensor in enumerate(message.inputs):
        param = f"inputs[{number}]"
        _known(tensor.datatype, param)
        if len(tensor.shape) > _MAX_RANK or any(one < 0 for one in tensor.shape):
            raise invalid(f"A shape has up to {_MAX_RANK} lengths of 0 or more.", param=f"{param}.shape")
        if message.raw_input_contents:
            if tensor.HasField("contents"):
                raise invalid("'contents' and 'raw_input_contents' exclude each other.", param=f"{param}.contents")
            continue
        try:
            raws.append(raw_of_contents(tensor.datatype, tensor.contents, room))
        except TensorError as error:
            raise refusal("Input", tensor.name, error, f"{param}.contents") from None
        tensor.ClearField("contents")
    message.raw_input_contents.extend(raws)
    return Inferring(message)


def check_parameters(parameters: Mapping[str, object], param: str) -> None:
    """Raises InferBusError INVALID_ARGUMENT for what would reach beyond this call: into the server's memory, its queue,
    or what it keeps from one call to the next."""
    if len(parameters) > _MAX_PARAMETERS:
        raise invalid(f"'{param}' has more than {_MAX_PARAMETERS} entries.", param=param)
    for name in parameters:
        if name == "priority" or name.startswith(("shared_memory", "sequence_", "triton_")):
            shown = f"{param}.{name[:64]}"
            raise unsupported(shown, f"'{shown}' is not supported; leave it out.")


def _halves(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 9:
        raise invalid(f"'{LENGTH_HEADER}' is the length of the body's JSON in bytes.", param=LENGTH_HEADER)
    length = int(header_length)
    if length > len(body):
        raise invalid(f"'{LENGTH_HEADER}' is {length}, and the body has {len(body)} bytes.", param=LENGTH_HEADER)
    return body[:length], body[length:]


def _raw_of_json(tensor: InputTensor, param: str, room: Room) -> bytes:
    try:
        return raw_of_json(_known(tensor.datatype, param), tensor.data or (), room)
    except TensorError as error:
        raise refusal("Input", tensor.name, error, f"{param}.data") from None


def _cut(rest: bytes, at: int, size: Any, param: str) -> bytes:
    if type(size) is not int or not 0 <= size <= len(rest) - at:
        raise invalid(
            f"'{param}' is the number of bytes of this tensor after the JSON; {len(rest) - at} are left of the body.",
            param=param,
        )
    return rest[at : at + size]


def _known(datatype: str, param: str) -> str:
    if datatype not in DATATYPES:
        raise invalid(f"'{param}.datatype' is one of {', '.join(DATATYPES)}.", param=f"{param}.datatype")
    return datatype


def _flag(parameters: dict[str, Any], name: str, param: str, *, otherwise: bool) -> bool:
    value = parameters.pop(name, otherwise)
    if type(value) is not bool:
        raise invalid(f"'{param}.{name}' is true or false.", param=f"{param}.{name}")
    return value


def _put(parameters: Any, given: Mapping[str, bool | int | float | str], param: str) -> None:
    check_parameters(given, param)
    for name, value in given.items():
        parameters[name].CopyFrom(_parameter(value))


def _parameter(value: bool | int | float | str) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value) if value < 1 << 63 else InferParameter(uint64_param=value)
    return InferParameter(double_param=value) if isinstance(value, float) else InferParameter(string_param=value)

"""One call of a model by its tensors: the request as the server gets it, the answer as a caller may see it, and what an
error of the server is to him.
"""

import re
from collections.abc import Collection
from math import prod
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid
from tritonclient.grpc import service_pb2 as messages

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engines.triton_errors import Trouble, engine_full, trouble_of
from inferbus_worker.engines.triton_health import described

# Of a shape's lengths, those of 0 left out: of larger ones the server's own product overflows.
_MAX_PRODUCT = 1 << 48
# A region of the server's shared memory may hold another tenant's tensors.
_SHARED_MEMORY = "shared_memory_"
# What would tie calls to each other, pass others in the server's queue, or is the server's own.
_NOT_FOR_CALLERS = re.compile(r"(sequence_|triton_).*|priority", re.DOTALL)
_SHOWN = 64
# gRPC's own words, on our side of the connection, of an answer above what it may receive.
_NOT_READ = re.compile(r"(?<!SERVER: )Received message larger than max")
# Around the server's words: whose request it was, and advice for who configures the model.
_PREFIX = re.compile(r"^\[request id: .*?\] ", re.DOTALL)
_ADVICE = re.compile(r"\.? (NOTE: |Please ).*", re.DOTALL)
# What a model raised: its kind and place are for the operator, its text may hold what the caller sent.
_RAISED = re.compile(r"(message: \w+): .*?(?=\n\nAt:|\Z)", re.DOTALL)
# Words that a caller may see: on one line, and without what looks like a path, an address or a name in a program.
_HARMLESS = re.compile(r"(?!.*(::|\d\.\d+\.\d))[^\n\r/\\@]{1,300}")


def request_of(model: str, encoded: bytes, needed: Collection[str] = ()) -> Any:
    """The ModelInferRequest for ``model``, in the version that the server serves. Raises InferBusError.

    ``needed``: names of inputs that must be there; the server does not see all that are missing.
    """
    try:
        request = messages.ModelInferRequest.FromString(encoded)
    except DecodeError as error:
        raise invalid("Send a ModelInferRequest of the Open Inference Protocol.", param="inputs") from error
    request.model_name, request.model_version = model, ""
    for name in request.parameters:
        if _NOT_FOR_CALLERS.fullmatch(name):
            text = f"This model does not support the parameter '{name[:_SHOWN]}'."
            raise invalid(text, param="parameters", reason="unsupported_parameter")
    for what, tensors in (("inputs", request.inputs), ("outputs", request.outputs)):
        for tensor in tensors:
            if any(name.startswith(_SHARED_MEMORY) for name in tensor.parameters):
                text = "Send and receive the tensors' contents: shared memory is not supported."
                raise invalid(text, param=what, reason="unsupported_parameter")
    _check_inputs(request.inputs, needed, len(encoded))
    return request


def _check_inputs(inputs: Any, needed: Collection[str], size: int) -> None:
    for tensor in inputs:
        # Each element takes a byte at least.
        lengths = prod(max(length, 1) for length in tensor.shape)
        if any(length < 0 for length in tensor.shape) or prod(tensor.shape) > size or lengths > _MAX_PRODUCT:
            text = f"Send a shape of the input '{tensor.name[:_SHOWN]}' that fits its data, without a length below 0."
            raise invalid(text, param="inputs")
    given = {tensor.name for tensor in inputs}
    for name in needed:
        if name not in given:
            raise invalid(f"Send the input '{name}', which this model needs.", param="inputs")


def answer_of(response: Any, limit: int) -> bytes:
    """Of a ModelInferResponse, without the server's names. Raises InferBusError for one above ``limit`` bytes."""
    response.ClearField("model_name")
    response.ClearField("model_version")
    if response.ByteSize() > limit:
        raise _too_large(limit)
    return bytes(response.SerializeToString())


def _too_large(limit: int) -> InferBusError:
    text = f"The answer has more than {limit >> 20} MiB. Ask for fewer outputs, or send a smaller batch."
    return invalid(text, param="outputs", reason="answer_too_large")


def is_gone(error: grpc.RpcError) -> bool:
    """Whether the model, or its server, may be."""
    trouble = trouble_of(str(error.details()))
    return trouble is Trouble.GONE or (error.code() is grpc.StatusCode.UNAVAILABLE and trouble is not Trouble.FULL)


def error_of_call(error: grpc.RpcError, model: str, tensors: Collection[str], limit: int) -> InferBusError:
    """What ends one call, of the server's ``model`` with these ``tensors``, while others go on. ``limit``: see
    :func:`answer_of`."""
    text = str(error.details())
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            unfit = invalid(unfit_text(text, model, tensors), param="inputs")
            unfit.diagnostic = text
            return unfit
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _NOT_READ.search(text):
            return _too_large(limit)
        case _ if trouble_of(text) is Trouble.FULL:
            return engine_full(text)
        case grpc.StatusCode.CANCELLED:
            return engine_failed(described(error))
    return InferBusError(
        ErrorClass.ERROR_CLASS_INTERNAL,
        "engine_failed",
        "The model failed on these tensors; the operator has been told why.",
        diagnostic=_RAISED.sub(r"\1", described(error)),
    )


def unfit_text(text: str, model: str, tensors: Collection[str]) -> str:
    """The server's or the model's words, where they are about the caller's tensors and show nothing of the inside; else
    our own."""
    said = _ADVICE.sub("", _PREFIX.sub("", text))
    for inside, outside in ((f" for model '{model}'", ""), (f"model '{model}'", "the model"), (f" for '{model}'", "")):
        said = said.replace(inside, outside)
    about = "batch-size" in said or any(name in said for name in tensors)
    if about and f"'{model}'" not in said and _HARMLESS.fullmatch(said):
        said = said.strip().rstrip(".")
        return f"{said[0].upper()}{said[1:]}."
    return "The model does not take these tensors; compare them with its metadata."

"""Embeddings: what a request may say, its plan, and its answer."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.usage_pb2 import PriorityClass, Usage
from inferbus_runtime.errors import InferBusError, invalid
from pydantic import BaseModel, Field

from inferbus_dialect.errors import internal
from inferbus_dialect.labels import END_USER, end_user_of
from inferbus_dialect.openai import Label
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.prompts import Prompt, prompt_inputs, token_estimate
from inferbus_dialect.schema import STRICT, parse
from inferbus_dialect.translate import add_usage

# As it is on the log and in base64.
_FLOAT = np.dtype("<f4")


class EmbeddingRequest(BaseModel):
    model_config = STRICT
    model: Annotated[str, Field(min_length=1)] = Field(description="404 model_not_found if it is not served.")
    input: Prompt = Field(description="A text, tokens, or a list of up to 2048 of either.")
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        None, description="The first so many, made of length 1 again; at most the model's."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="base64: of float32, little-endian.")
    user: Label | None = Field(None, description=END_USER)


def parse_embedding_request(body: bytes) -> EmbeddingRequest:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    return parse(EmbeddingRequest, body)


def plan_embeddings(request: EmbeddingRequest) -> Plan:
    inputs = prompt_inputs(request.input)
    message = GenerateRequest(priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE)
    message.embedding.inputs.extend(inputs)
    reply = {
        "api": "embeddings",
        "n": 1,
        "inputs": len(inputs),
        "dimensions": request.dimensions,
        "base64": request.encoding_format == "base64",
    }
    return Plan(
        operation="embeddings",
        model=request.model,
        stream=False,
        requests=(message,),
        reply=reply,
        needs=(Need("embeddings", "model"),),
        input_estimate=token_estimate(inputs),
        end_user=end_user_of(request.user),
    )


def check_dimensions(request: EmbeddingRequest, model: ModelRecord) -> None:
    """Raises InferBusError INVALID_ARGUMENT if more are asked than the model's vectors have."""
    if request.dimensions is not None and 0 < model.embedding_dimensions < request.dimensions:
        message = f"'dimensions' should be at most {model.embedding_dimensions} for this model."
        raise invalid(message, param="dimensions")


class EmbeddingsForm:
    """See :class:`inferbus_dialect.form.Form`. There is no stream.

    Each vector is written as it comes: all at once, thousands of them would be 20 ms in which nobody gets a token.
    """

    def __init__(self, first: bytes, reply: Mapping[str, Any], stream: bool) -> None:
        self._reply = reply
        self._model: str = reply["model"]
        self._written: dict[int, bytes] = {}
        self._usage = Usage()

    def accept(self) -> Sequence[bytes]:
        return ()

    def open(self, choice: int, revision: str, model: str = "") -> Sequence[bytes]:
        """An attempt makes all of the answer: vectors of two are not of one model for certain."""
        self._written.clear()
        return ()

    def delta(self, choice: int, text: str, tokens: int, logprobs: Sequence[TokenLogprob]) -> Sequence[bytes]:
        return ()

    def binary(self, index: int, data: bytes) -> None:
        values = shortened(data, self._reply.get("dimensions"))
        if self._reply["base64"]:
            self._written[index] = b'"%s"' % base64.b64encode(values)
        else:
            self._written[index] = _numbers(values)

    def close(self, choice: int, revision: str, close: Close, model: str = "") -> Sequence[bytes]:
        self._model = model or self._model
        add_usage(self._usage, close.usage)
        return ()

    def finish(self) -> Sequence[bytes]:
        return ()

    def fail(self, error: InferBusError) -> Sequence[bytes]:
        return ()

    def body(self) -> bytes:
        """Raises InferBusError INTERNAL if a vector is missing: an answer with gaps would be taken for whole."""
        wanted = range(self._reply["inputs"])
        if any(index not in self._written for index in wanted):
            raise internal("an embeddings request ended without all its vectors")
        return orjson.dumps(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": at, "embedding": orjson.Fragment(self._written[at])}
                    for at in wanted
                ],
                "model": self._model,
                "usage": {"prompt_tokens": self._usage.input_tokens, "total_tokens": self._usage.input_tokens},
            }
        )


def shortened(values: bytes, dimensions: int | None) -> bytes:
    """The first ``dimensions`` of a vector (float32, little-endian), made of length 1 again."""
    if dimensions is None or dimensions * _FLOAT.itemsize >= len(values):
        return values
    floats = np.frombuffer(values, _FLOAT, dimensions).astype(np.float64)
    length = np.sqrt(floats @ floats)
    return (floats / length if length > 0 else floats).astype(_FLOAT).tobytes()


def _numbers(values: bytes) -> bytes:
    """As a JSON list: of each float32 as few digits as name it."""
    return orjson.dumps(np.frombuffer(values, _FLOAT).astype(np.float32), option=orjson.OPT_SERIALIZE_NUMPY)

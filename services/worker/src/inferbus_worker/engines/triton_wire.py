"""Tensors as bytes: a ModelInferRequest is built, and a ModelInferResponse read, without an array for each."""

import struct
from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2 as messages

_NUMBERS = {"INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f", "FP64": "d", "BOOL": "?", "UINT8": "B"}
# A part of many messages says whether it was the last one.
FINAL = "triton_final_response"


class RequestBuilder:
    """One request. ``batched``: every tensor gets a batch dimension of 1 in front."""

    def __init__(self, model: str, request_id: str, *, batched: bool) -> None:
        self.message = messages.ModelInferRequest(model_name=model, id=request_id)
        self._front = (1,) if batched else ()

    def value(self, name: str, datatype: str, value: Any) -> None:
        """A tensor of one element."""
        self.values(name, datatype, (value,))

    def values(self, name: str, datatype: str, values: Sequence[Any], shape: tuple[int, ...] = ()) -> None:
        """A vector, or with ``shape`` another form of as many elements. ``datatype`` as Triton names it."""
        if datatype == "BYTES":
            raw = b"".join(struct.pack("<I", len(one)) + one for one in values)
        else:
            raw = struct.pack(f"<{len(values)}{_NUMBERS[datatype]}", *values)
        tensor = self.message.inputs.add(name=name, datatype=datatype)
        tensor.shape.extend(self._front + (shape or (len(values),)))
        self.message.raw_input_contents.append(raw)

    def wants(self, *outputs: str) -> None:
        """Names the outputs: left to themselves, some backends answer nothing and others everything."""
        for name in outputs:
            self.message.outputs.add(name=name)


class Outputs:
    """The tensors of a response. What is not there, or is of no use, reads as empty or None."""

    __slots__ = ("_raw", "_types")

    def __init__(self, response: Any) -> None:
        self._types = {output.name: output.datatype for output in response.outputs}
        self._raw = dict(zip(self._types, response.raw_output_contents, strict=False))

    def integers(self, name: str) -> tuple[int, ...]:
        """Of an INT32 tensor, all elements in order."""
        raw = self._raw.get(name, b"")
        return struct.unpack(f"<{len(raw) // 4}i", raw)

    def text(self, name: str) -> bytes | None:
        """The first element of a BYTES tensor."""
        raw = self._raw.get(name, b"")
        return raw[4 : 4 + int.from_bytes(raw[:4], "little")] if len(raw) >= 4 else None

    def number(self, name: str) -> float | None:
        """The first element of any tensor: family B says its numbers as text."""
        datatype, raw = self._types.get(name, ""), self._raw.get(name, b"")
        try:
            if datatype == "BYTES":
                return float(self.text(name) or b"")
            form = f"<{_NUMBERS[datatype]}"
            return float(struct.unpack(form, raw[: struct.calcsize(form)])[0])
        except (KeyError, ValueError, struct.error):
            return None


def is_final(response: Any) -> bool:
    return FINAL in response.parameters and response.parameters[FINAL].bool_param

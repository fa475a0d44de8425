"""Texts in upper case: TEXTS BYTES [any] to SHOUTED BYTES [any], each with SUFFIX behind it if that is given.

The parameter ``seconds`` of a call says how long it takes; it ends early when the call is cancelled. Texts that are no
UTF-8 are an error that it does not expect, and no texts one that it words itself.
"""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_LOOK_SECONDS = 0.02


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        until = time.monotonic() + float(json.loads(request.parameters()).get("seconds", 0))
        while time.monotonic() < until:
            if request.is_cancelled():
                return _error("nobody waits for it any more", pb_utils.TritonError.CANCELLED)
            time.sleep(_LOOK_SECONDS)
        texts = pb_utils.get_input_tensor_by_name(request, "TEXTS").as_numpy()
        if not texts.size:
            return _error("TEXTS has no text", pb_utils.TritonError.INVALID_ARG)
        suffix = pb_utils.get_input_tensor_by_name(request, "SUFFIX")
        behind = suffix.as_numpy().reshape(-1)[0].decode() if suffix is not None else ""
        shouted = [(text.decode().upper() + behind).encode() for text in texts.reshape(-1)]
        tensor = pb_utils.Tensor("SHOUTED", np.array(shouted, dtype=np.object_).reshape(texts.shape))
        return pb_utils.InferenceResponse(output_tensors=[tensor])


def _error(text: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text, code))

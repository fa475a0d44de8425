"""A picture's colours as scores, and the picture at twice its size.

IMAGE FP32 [3, 224, 224] (600 kB) to SCORES FP32 [1000], a fixed projection of the means of its 8 by 8 fields, and LARGE
FP32 [3, 448, 448] (2.4 MB).
"""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_SIDE, _FIELDS, _SCORES = 224, 8, 1000


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.projection = np.cos(np.outer(np.arange(3 * _FIELDS * _FIELDS), np.arange(_SCORES))).astype(np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()) for request in requests]

    def _answer(self, image: Any) -> Any:
        field = _SIDE // _FIELDS
        means = image.reshape(3, _FIELDS, field, _FIELDS, field).mean(axis=(2, 4))
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("SCORES", means.reshape(-1) @ self.projection),
                pb_utils.Tensor("LARGE", image.repeat(2, axis=1).repeat(2, axis=2)),
            ]
        )

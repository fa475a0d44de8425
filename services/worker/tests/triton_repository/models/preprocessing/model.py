"""The ensemble's first step: text to ids."""

import asyncio
import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from llama_http import LlamaHttp
from serving import Inputs, tensor

_END_ID = 2


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.llama = LlamaHttp(json.loads(args["model_config"])["parameters"]["llama_cpp"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(Inputs(request)) for request in requests]

    def _answer(self, inputs: Inputs) -> Any:
        ids = asyncio.run(self.llama.tokenize(inputs.value("QUERY")))
        outputs = [
            tensor("INPUT_ID", [ids], np.int32),
            tensor("REQUEST_INPUT_LEN", [[len(ids)]], np.int32),
            tensor("REQUEST_OUTPUT_LEN", [[inputs.value("REQUEST_OUTPUT_LEN")]], np.int32),
            tensor("OUT_END_ID", [[_END_ID]], np.int32),
        ]
        return pb_utils.InferenceResponse(output_tensors=outputs)

"""The ensemble's last step: ids to text, the end-of-turn token to none."""

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
        ids = [token for token in inputs.values("TOKENS_BATCH") if token not in (-1, _END_ID)]
        text = asyncio.run(self.llama.detokenize(ids)) if ids else ""
        return pb_utils.InferenceResponse(output_tensors=[tensor("OUTPUT", [text.encode()], np.object_)])

"""Family A's ``tensorrt_llm_bls``: text in and text out, a delta each, or the whole text with ``accumulate_tokens``.

As the real one, it looks at no cancel (its requests to the core model have ids of its own), sends its final flag alone,
and decodes each response's tokens by themselves.
"""

import json
from typing import Any

import numpy as np
from llama_http import Counts, RefusedError
from sampling import body_of
from serving import Answer, Inputs, Serving, tensor

_END_ID = 2


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.serving = Serving(args, self.serve, _refusal)
        config = json.loads(args["model_config"])
        self.accumulates = config["parameters"].get("accumulate_tokens", {}).get("string_value") == "true"

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self.serving.begin(request)

    def finalize(self) -> None:
        self.serving.end()

    async def serve(self, inputs: Inputs, answer: Answer) -> None:
        prompt = inputs.value("text_input")
        counts, whole = Counts(), "" if inputs.value("exclude_input_in_output", False) else prompt
        body = body_of(inputs, prompt, inputs.value("max_tokens"))
        async for piece in self.serving.llama.complete(body, _END_ID, counts):
            whole += piece.text
            outputs = [tensor("text_output", [(whole if self.accumulates else piece.text).encode()], np.object_)]
            if inputs.value("return_num_input_tokens", False):
                outputs.append(tensor("num_input_tokens", [[counts.input]], np.int32))
            if inputs.value("return_num_output_tokens", False):
                outputs.append(tensor("num_output_tokens", [[len(piece.ids)]], np.int32))
            answer.send(outputs, False)
            if any(word.decode() in whole for word in inputs.values("stop_words") if word):
                break
        answer.close()


def _refusal(error: RefusedError) -> str:
    if error.kind == "exceed_context_size_error":
        return (
            f"Traceback ...\nTritonModelException: Prompt length ({error.tokens}) exceeds maximum input length (8192)."
        )
    return f"Traceback ...\n{error}"

"""Family B, the model made of TensorRT-LLM's LLM API: text only, each response has the whole text so far.

Its values of performance come as text, and ``exclude_input_from_output`` is off if nothing is said, as in the real one.
"""

from typing import Any

import numpy as np
from llama_http import Counts, Piece, RefusedError
from sampling import body_of
from serving import Answer, Inputs, Serving, tensor

_END_ID = 2
_DEFAULT_TOKENS = 32


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.serving = Serving(args, self.serve, _refusal)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            if not Inputs(request).value("stop", False):
                self.serving.begin(request)
                continue
            self.serving.stop_request(request.request_id())
            said = "Request cancelled by client" if request.request_id() else "A request id must be provided"
            Answer(request.get_response_sender()).fail(said, cancelled=bool(request.request_id()))

    def finalize(self) -> None:
        self.serving.end()

    async def serve(self, inputs: Inputs, answer: Answer) -> None:
        prompt = inputs.value("text_input")
        whole = "" if inputs.value("sampling_param_exclude_input_from_output", False) else prompt
        count = inputs.value("sampling_param_max_tokens", _DEFAULT_TOKENS)
        counts, body = Counts(), body_of(inputs, prompt, count, prefix="sampling_param_")
        async for piece in self.serving.llama.complete(body, _END_ID, counts):
            whole += piece.text
            if inputs.value("streaming", False) or piece.reason:
                answer.send(_outputs(inputs, whole, piece, counts), bool(piece.reason))


def _outputs(inputs: Inputs, whole: str, piece: Piece, counts: Counts) -> list[Any]:
    outputs = [tensor("text_output", [whole.encode()], np.object_)]
    if inputs.value("return_finish_reason", False):
        outputs.append(tensor("finish_reason", [str(piece.reason or None).encode()], np.object_))
    if inputs.value("sampling_param_return_perf_metrics", False):
        outputs.append(tensor("kv_cache_reused_block", [str(counts.cached // 32).encode()], np.object_))
    return outputs


def _refusal(error: RefusedError) -> str:
    if error.kind == "exceed_context_size_error":
        return f"Error generating request: The prompt length ({error.tokens}) should not exceed max_num_tokens (8192)"
    return f"Error generating request: {error}"

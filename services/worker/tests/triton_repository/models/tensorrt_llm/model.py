"""Family A's core model, ids in and ids out, with the tensors of TensorRT-LLM's C++ backend and a real model behind.

It publishes gauges of the backend's names on Triton's metrics page, too.
"""

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from llama_http import Counts, Piece, RefusedError
from sampling import body_of
from serving import Answer, Inputs, Serving, tensor

_CONTEXT = 8192
_BLOCK = 32


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.serving = Serving(args, self.serve, _refusal)
        self.gauges = _Gauges(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            inputs = Inputs(request)
            if not inputs.value("stop", False):
                self.serving.begin(request)
                continue
            answer = Answer(request.get_response_sender())
            if not request.request_id():
                answer.fail("Trying to stop a request but request ID is not provided")
                continue
            self.serving.stop_request(request.request_id())
            answer.send([], True)

    def finalize(self) -> None:
        self.serving.end()

    async def serve(self, inputs: Inputs, answer: Answer) -> None:
        ids = inputs.values("input_ids")[: inputs.value("input_lengths")]
        self.gauges.tell(self.serving.running, len(ids))
        try:
            await self.generate(inputs, ids, answer)
        finally:
            self.gauges.tell(self.serving.running - 1, -len(ids))

    async def generate(self, inputs: Inputs, ids: list[int], answer: Answer) -> None:
        arrived = time.monotonic_ns()
        end_id = inputs.value("end_id", -1)
        stop_words = _words(inputs.values("stop_words_list"))
        counts, seen = Counts(), []
        body = body_of(inputs, ids, inputs.value("request_output_len"), runtime="runtime_")
        streaming = inputs.value("streaming", False)
        async for piece in self.serving.llama.complete(body, end_id, counts):
            seen += piece.ids
            stopped = any(seen[-len(word) :] == word for word in stop_words)
            if not streaming and not piece.reason and not stopped:
                continue
            shown = piece if streaming else Piece(seen if inputs.value("exclude_input_in_output") else ids + seen, "")
            outputs = [
                tensor("output_ids", [[shown.ids]], np.int32),
                tensor("sequence_length", [[len(shown.ids)]], np.int32),
            ]
            if inputs.value("return_num_input_tokens", False):
                outputs.append(tensor("num_input_tokens", [[len(ids)]], np.int32))
            if inputs.value("return_num_output_tokens", False):
                outputs.append(tensor("num_output_tokens", [[len(shown.ids)]], np.int32))
            if inputs.value("return_perf_metrics", False):
                outputs += [
                    tensor("kv_cache_reused_blocks", [[counts.cached // _BLOCK]], np.int32),
                    tensor("arrival_time_ns", [[arrived]], np.int64),
                ]
            last = bool(piece.reason) or stopped
            answer.send(outputs, last)
            if last:
                return


class _Gauges:
    """``nv_trt_llm_*`` as the C++ backend names them; blocks are those of the prompts of what runs."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._blocks_used = 0
        self._requests = self._family("nv_trt_llm_request_metrics", "TRT LLM request metrics")
        self._blocks = self._family("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics")
        self._active = self._gauge(self._requests, request_type="active")
        self._waiting = self._gauge(self._requests, request_type="waiting")
        self._used = self._gauge(self._blocks, kv_cache_block_type="used")
        self._gauge(self._blocks, kv_cache_block_type="max").set(_CONTEXT // _BLOCK)
        self._gauge(self._blocks, kv_cache_block_type="tokens_per").set(_BLOCK)

    def tell(self, running: int, prompt_tokens: int) -> None:
        """``prompt_tokens``: of a request that begins, or minus those of one that ends."""
        size = -(-abs(prompt_tokens) // _BLOCK)
        self._blocks_used += size if prompt_tokens > 0 else -size
        self._active.set(running)
        self._waiting.set(0)
        self._used.set(self._blocks_used)

    def _family(self, name: str, description: str) -> Any:
        return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)

    def _gauge(self, family: Any, **labels: str) -> Any:
        return family.Metric(labels=self._labels | labels)


def _words(flat: list[int]) -> list[list[int]]:
    """[ids, offsets where each word ends] in two rows, padded with -1."""
    ids, offsets = flat[: len(flat) // 2], flat[len(flat) // 2 :]
    begins = [0, *offsets]
    return [ids[begin:end] for begin, end in zip(begins, offsets, strict=False) if end > 0]


def _refusal(error: RefusedError) -> str:
    if error.kind == "exceed_context_size_error":
        why = f"Prompt length ({error.tokens}) exceeds maximum input length ({_CONTEXT}). Set log level to info"
    else:
        why = str(error)
    return f"Executor failed process requestId 1 due to the following error: {why}"

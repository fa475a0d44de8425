"""The child process that measures one file: llama.cpp's own server in it, asked over its loopback port.

Run by :mod:`.measuring` only. One JSON object a line on standard output: ``{"part": 0.4}`` as it goes, the last one
``{"measured": {...}}`` or ``{"error": "..."}``. Whatever the engine dies of, it dies alone; and it ends with its
parent.
"""

import argparse
import ctypes
import json
import math
import os
import resource
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from inferbus_prepare.workload import PROMPTS, Workload, held_out_text

_PR_SET_PDEATHSIG = 1
_ANSWER_SECONDS = 300.0
_ROOM_TOKENS = 64


class _Server:
    """One slot, KV cache in F32 and no flash attention: what differs are the weights."""

    def __init__(self, model: Path, workload: Workload) -> None:
        import xllamacpp  # after OpenMP's settings

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_parallel = 1
        params.n_ctx = max(2048, workload.positions + workload.tokens + _ROOM_TOKENS)
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        threads = workload.threads or len(os.sched_getaffinity(0))
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = 0
        params.ctx_shift = params.fit_params = False
        params.verbosity = 1
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        self._server = xllamacpp.Server(params)

    def ask(self, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        url = f"{self._server.listening_address}{path}"
        request = urllib.request.Request(url, content, {"content-type": "application/json"})  # noqa: S310  (loopback)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_ANSWER_SECONDS) as response:
            return json.load(response)

    def complete(self, ids: list[int], count: int, **more: Any) -> dict[str, Any]:
        """Greedy."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        answer: dict[str, Any] = self.ask("/completion", body | more)
        return answer

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.ask("/tokenize", {"content": text, "add_special": True})["tokens"]
        return ids


def main() -> None:
    parser = argparse.ArgumentParser(description="measures one GGUF file")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workload", type=json.loads, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options.parent:  # it was gone before the call above
        sys.exit(1)
    # Two cores that others use too: spinning threads would wait for each other. Read when the library is loaded.
    os.putenv("OMP_WAIT_POLICY", "passive")
    workload = Workload(**options.workload)
    try:
        _tell({"measured": _measure(_Server(options.model, workload), workload)})
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else str(error)
        _tell({"error": f"{type(error).__name__}: {reason}"})
    sys.stdout.flush()
    os._exit(0)  # the engine's threads have nothing to save


def _measure(server: _Server, workload: Workload) -> dict[str, Any]:
    text = server.tokens(held_out_text())
    positions = min(workload.positions, len(text) - 1)
    steps = 1 + workload.prompts + positions
    vocabulary = int(server.ask("/v1/models")["data"][0]["meta"]["n_vocab"])
    server.complete(text[:8], 1)  # the first use of the weights reads them from the disk
    reading = server.complete(text[: positions + 1], 1)["timings"]
    greedy, count, milliseconds = [], 0, 0.0
    for done, prompt in enumerate(PROMPTS[: workload.prompts], 1):
        answer = server.complete(server.tokens(prompt), workload.tokens)
        greedy.append(answer["tokens"])
        count += answer["timings"]["predicted_n"]
        milliseconds += answer["timings"]["predicted_ms"]
        _tell({"part": done / steps})
    distributions = []
    for at in range(1, positions + 1):
        # All but its last token is in the cache.
        answer = server.complete(text[:at], 1, n_probs=workload.top, cache_prompt=True)
        listed = answer["completion_probabilities"][0]["top_logprobs"]
        distributions.append({"target": text[at], "top": {one["id"]: _number(one["logprob"]) for one in listed}})
        _tell({"part": (1 + workload.prompts + at) / steps})
    return {
        "text_ids": text,
        "vocabulary": vocabulary,
        "greedy": greedy,
        "distributions": distributions,
        "reading_rate": reading["prompt_n"] * 1000 / max(reading["prompt_ms"], 1e-3),
        "writing_rate": count * 1000 / max(milliseconds, 1e-3),
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _number(value: Any) -> float:
    """llama.cpp's JSON has null for what is no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The library's continuous batching, as this engine uses it; what the installed version lacks is found here, at load.

Names are those of transformers 5.19, generation/continuous_batching: continuous_api, cb_logits_processors and the
ContinuousBatchingConfig of configuration_utils; 5.17 lacks some. With its own processors a request has its own
temperature, top_k and top_p. It has no seed, penalties, min_p, bias, grammar or alternatives for a single request.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from inferbus_worker.engines.transformers_weights import RefusedError, Weights

_PACKAGE = "transformers.generation.continuous_batching"
# On a CPU memory is not the worker's alone, and a cache as large as all of it would be slow.
_CPU_KV_TOKENS = 16_384
_SAMPLING = ("temperature", "top_k", "top_p")


class GreedyRows:
    """A processor of the library's kind, one flag a request: flagged ones are left the most probable token only.

    Its top_k of 1 is not that: equal logits, which are common in bfloat16, would be drawn among.
    """

    supported_kwargs = {"greedy": int}  # noqa: RUF012  (read by the library)
    ignored_kwargs = ()

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def fill_defaults(self, int32_tensor: Any) -> None:
        int32_tensor.fill_(0)

    def prepare_tensor_args(self, requests: Sequence[Any]) -> Any:
        flags = [one.state.logit_processor_kwargs.get("greedy", 0) for one in requests]
        return self._torch.tensor(flags, dtype=self._torch.int32)

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        """``scores``: [tokens, vocabulary], float32; ``tensor_arg``: [at least tokens], int32."""
        greedy = tensor_arg[: scores.size(0)].unsqueeze(-1) > 0
        best = self._torch.argmax(scores, dim=-1, keepdim=True)
        kept = self._torch.full_like(scores, float("-inf")).scatter(-1, best, scores.gather(-1, best))
        return self._torch.where(greedy, kept, scores)


class Batching:
    """A manager of the library and its thread. Methods may be called from any thread."""

    def __init__(self, manager: Any, weights: Weights, end_ids: list[int]) -> None:
        self._manager = manager
        self._weights = weights
        self._end_ids = end_ids
        self._cache = manager.batch_processor.cache

    def start(self) -> None:
        self._manager.start()

    def add(self, serial: int, max_new: int, ids: list[int], sampling: dict[str, Any]) -> None:
        """``sampling``: of temperature, top_k, top_p and greedy all, or none if nothing is drawn."""
        self._manager.add_request(
            ids, request_id=str(serial), max_new_tokens=max_new, streaming=True, eos_token_id=self._end_ids, **sampling
        )

    def cancel(self, serial: int) -> None:
        self._manager.cancel_request(str(serial))

    def is_running(self) -> bool:
        return bool(self._manager.is_running())

    def trouble(self) -> str:
        """Why its thread has ended."""
        return repr(self._manager.background_thread_status.fatal_error)

    def blocks_used(self) -> int:
        """Of its KV cache. Only for its own thread."""
        used: int = round((1 - self._cache.compute_free_capacity()) * self._cache.num_blocks)
        return used

    def about(self) -> dict[str, Any]:
        config = self._manager.continuous_batching_config
        return {
            "version": import_module("transformers").__version__,
            "device": self._weights.device,
            "dtype": str(self._weights.model.dtype).removeprefix("torch."),
            "attention": self._weights.attention,
            "blocks": self._cache.num_blocks,
            "block_tokens": config.page_size,
            "graphs": any(config.cuda_graph_booleans),
        }


def batching_of(weights: Weights, settings: dict[str, Any], router: Any) -> Batching:
    """Its cache and its CUDA graphs are made when it returns. ``router``: takes the results, in the place of the
    library's OutputRouter, and is told of each step (``stepped``). Raises RefusedError."""
    torch, transformers = import_module("torch"), import_module("transformers")
    try:
        library, processors = import_module(_PACKAGE), import_module(f"{_PACKAGE}.cb_logits_processors")
        config = _config(weights, settings, transformers.ContinuousBatchingConfig)
    except (ImportError, AttributeError) as error:
        raise RefusedError("ENGINE", _lacks(str(error), transformers)) from error
    samples = settings["samples"]
    # Its processors exist for what is no default here; each request says its own.
    drawn = {"do_sample": True, "temperature": 0.5, "top_k": 2, "top_p": 0.5} if samples else {"do_sample": False}
    generation = transformers.GenerationConfig(**drawn, eos_token_id=settings["end_ids"] or [-1], max_new_tokens=1)
    try:
        manager = weights.model.init_continuous_batching(generation, config)
    except (AttributeError, ValueError) as error:
        why = f"the model cannot be batched continuously: {error}"
        raise RefusedError("TRANSFORMERS__MODEL_PATH", why) from error
    if samples:
        _add_greedy(manager.logit_processor, processors.ContinuousBatchingLogitsProcessor, torch, transformers)
    for name in ("output_router", "warmup", "background_thread_status", "is_running", "cancel_request"):
        if not hasattr(manager, name):
            raise RefusedError("ENGINE", _lacks(f"{library.__name__} has no {name}", transformers))
    manager.output_router = router
    try:
        manager.warmup()
    except (MemoryError, ValueError) as error:
        why = f"there is no memory for it: {error}"
        raise RefusedError("TRANSFORMERS__KV_TOKENS", why) from error
    if not hasattr(manager.batch_processor, "update_batch"):
        raise RefusedError("ENGINE", _lacks(f"{library.__name__} has no update_batch", transformers))
    _tell_steps(manager.batch_processor, router.stepped)
    return Batching(manager, weights, settings["end_ids"])


def _tell_steps(processor: Any, stepped: Callable[[], None]) -> None:
    """The library delivers only steps with a token. Each ends with its ``update_batch``, in its own thread, once the
    device has computed it."""
    update = processor.update_batch

    def update_and_tell() -> None:
        update()
        stepped()

    processor.update_batch = update_and_tell


def _config(weights: Weights, settings: dict[str, Any], kind: Any) -> Any:
    """Raises AttributeError for a field that the installed version has not."""
    flash = weights.attention.startswith("flash")
    page = settings["kv_block_tokens"] or (256 if flash else 32)
    kv_tokens = settings["kv_tokens"] or (_CPU_KV_TOKENS if weights.device == "cpu" else None)
    wanted = {
        "page_size": page,
        "num_blocks": None if kv_tokens is None else -(-kv_tokens // page),
        "max_batch_tokens": settings["batch_tokens"],
        "max_memory_percent": settings["kv_memory_fraction"],
        "max_requests_per_batch": settings["capacity"],
        # It finds prefixes for whoever has them, and keeps no tenants apart.
        "allow_block_sharing": False,
        "auto_switch_to_flash": False,
        "per_request_processors": settings["samples"],
    }
    if missing := sorted(set(wanted) - {field.name for field in fields(kind)}):
        raise AttributeError(f"ContinuousBatchingConfig has no {', '.join(missing)}")
    return kind(**wanted)


def _add_greedy(processors: Any, kind: Any, torch: Any, transformers: Any) -> None:
    """Raises RefusedError if temperature, top_k and top_p are not each request's own."""
    if missing := sorted(set(_SAMPLING) - set(processors.supported_keys)):
        raise RefusedError("TRANSFORMERS__SAMPLES", _lacks(f"no {', '.join(missing)} a request", transformers))
    kind.register(GreedyRows)
    # The last, so that equal logits are still equal for it.
    processors.logits_processor.append(GreedyRows(torch))
    processors.tensors_required += 1
    processors.supported_keys.update(GreedyRows.supported_kwargs)


def _lacks(what: str, transformers: Any) -> str:
    return f"transformers {transformers.__version__} does not fit; 5.19 does: {what}"

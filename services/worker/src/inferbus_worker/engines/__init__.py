"""Engines by name. One is imported only when it is chosen, so that a worker needs only its own engine's packages."""

from importlib import import_module
from typing import Any

ENGINES: dict[str, str] = {
    "llama_cpp": "inferbus_worker.engines.llama_cpp:LlamaCpp",
    "minilm": "inferbus_worker.engines.minilm:MiniLm",
    "openai": "inferbus_worker.engines.openai:OpenAi",
    "synthetic": "inferbus_worker.engines.synthetic:Synthetic",
    "triton": "inferbus_worker.engines.triton:Triton",
    "tensorrt_llm": "inferbus_worker.engines.tensorrt_llm:TensorRtLlm",
    "transformers": "inferbus_worker.engines.transformers:Transformers",
}

# Those that compute in this process or its children, on the GPUs that CUDA shows them. A Triton server or an upstream
# may be anywhere: which GPUs are its own only the operator knows.
GPU_ENGINES = frozenset({"tensorrt_llm", "transformers"})


def engine_class(name: str) -> Any:
    """The class of engine ``name``: build one with its ``from_config``. KeyError for an unknown name."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)

"""Engines by name. One is imported only when it is chosen, so that a worker needs only its own engine's packages."""

from importlib import import_module
from typing import Any

ENGINES: dict[str, str] = {
    "llama_cpp": "inferbus_worker.engines.llama_cpp:LlamaCpp",
    "minilm": "inferbus_worker.engines.minilm:MiniLm",
    "synthetic": "inferbus_worker.engines.synthetic:Synthetic",
}


def engine_class(name: str) -> Any:
    """The class of engine ``name``: build one with its ``from_config``. KeyError for an unknown name."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)

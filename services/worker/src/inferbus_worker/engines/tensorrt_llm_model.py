"""What a model's folder says of it: a checkpoint of Hugging Face's form, or an engine that trtllm-build made.

How a checkpoint is quantized (FP8, NVFP4, AWQ, INT8 and others) is in it; the engine reads that by itself.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferbus_worker.core.start_faults import refusal
from inferbus_worker.engines.tensorrt_llm_package import Backend

# Names of the longest sequence that a model was trained for, in the order in which they are looked for.
_CONTEXT_NAMES = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions")
_SETTING = "TENSORRT_LLM__MODEL_PATH"
# Small files that decide what is generated: their content is part of the digest, of others the name and size are.
_DECIDING = (".json", ".jinja", ".model")
_MAX_HASHED = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """``context_length`` and ``logits`` (how many the model makes a token): 0 if the folder does not say. ``capacity``:
    generations at once that an engine was built for, 0 for a checkpoint. ``end_ids``: tokens that end an output,
    besides the tokenizer's. ``quantization``: as the checkpoint names it, for the log.
    """

    path: Path
    backend: Backend
    context_length: int
    logits: int
    capacity: int
    end_ids: tuple[int, ...]
    quantization: str
    digest: str


def read_folder(path: Path | None, tokenizer: Path | None = None, setting: str = _SETTING) -> ModelFolder:
    """``tokenizer``: the folder that has the model's tokenizer, if it is another. ``setting``: which names the path.

    Raises InferBusError."""
    if path is None:
        raise refusal(setting, "set it to the folder that holds the model")
    try:
        config = _json(path / "config.json")
    except (OSError, ValueError) as error:
        raise refusal(setting, f"{path} holds no config.json that can be read: {error}") from error
    generation = _json_if_there(path / "generation_config.json")
    if not generation and tokenizer is not None:
        generation = _json_if_there(tokenizer / "generation_config.json")
    end_ids = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
    digest = _digest(path) if tokenizer is None else f"{_digest(path)}-{_digest(tokenizer)}"
    if "pretrained_config" in config and "build_config" in config:
        built, model = config["build_config"], config["pretrained_config"]
        return ModelFolder(
            path, "tensorrt", _number(built, "max_seq_len"), _number(model, "vocab_size"),
            _number(built, "max_batch_size"), end_ids, str((model.get("quantization") or {}).get("quant_algo") or ""),
            digest,
        )  # fmt: skip
    text = config.get("text_config") or config  # a model that also sees keeps its language's part there
    context = next((length for name in _CONTEXT_NAMES if (length := _number(text, name))), 0)
    quantization = _quantization(path, config)
    return ModelFolder(path, "pytorch", context, _number(text, "vocab_size"), 0, end_ids, quantization, digest)


def _quantization(path: Path, config: dict[str, Any]) -> str:
    recipe = _json_if_there(path / "hf_quant_config.json").get("quantization") or {}
    named = recipe.get("quant_algo") or (config.get("quantization_config") or {}).get("quant_method")
    return str(named or "")


def _digest(folder: Path) -> str:
    """Names the content, without reading gigabytes: what is large counts by name and size."""
    digest = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        if file.suffix in _DECIDING and size <= _MAX_HASHED:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no object")
    return content


def _json_if_there(path: Path) -> dict[str, Any]:
    try:
        return _json(path)
    except (OSError, ValueError):
        return {}


def _number(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) else 0


def _ids(value: Any) -> tuple[int, ...]:
    """One id, several, or none."""
    listed = value if isinstance(value, list) else [value]
    return tuple(one for one in listed if isinstance(one, int))

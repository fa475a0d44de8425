"""Folders as Hugging Face's are: small ones made of nothing, and the shipped model's, if Model Optimizer is there."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from inferbus_prepare.shipped import shipped_file

PYTHON = Path(sys.prefix, "modelopt/bin/python")
WEIGHTS = "model.safetensors"
_FROM_GGUF = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
path, target = Path(sys.argv[1]), sys.argv[2]
where = {"gguf_file": path.name}
model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
model.to(torch.bfloat16).save_pretrained(target)
AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(target)
"""


def missing() -> str:
    """Why the real library cannot be asked; empty: it can."""
    return "" if PYTHON.is_file() else "Model Optimizer is not installed (make modelopt)"


def shipped_checkpoint(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in BF16, by transformers itself."""
    command = [str(PYTHON), "-I", "-c", _FROM_GGUF, str(shipped_file()), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], **more: Any) -> bytes:
    """The content of a file. ``more``: put into its header as it is."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    weights = b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(weights), len(weights) + len(content)]}
        weights += content
    text = json.dumps(header | more).encode()
    return struct.pack("<Q", len(text)) + text + weights


def small_checkpoint(folder: Path) -> Path:
    """Whole by its structure, and no model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(safetensors({"a": ("BF16", [2, 3], bytes(12)), "b": ("F8_E4M3", [5], bytes(5))}))
    return folder

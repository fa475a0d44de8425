"""A LoRA adapter for the CPU default, made on the spot: random, of rank 4, and large enough to change every text."""

from pathlib import Path

import gguf
import numpy as np
from inferbus_worker.engines.llama_cpp_model import prepare

RANK = 4


def write_adapter(path: Path, seed: int, strength: float = 4.0) -> Path:
    """``strength`` 0: it changes nothing."""
    reader = gguf.GGUFReader(prepare(None).path)
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for tensor in reader.tensors:
        if not tensor.name.endswith(("attn_v.weight", "attn_output.weight")):
            continue
        inputs, outputs = (int(size) for size in tensor.shape)
        spread = strength / np.sqrt(inputs * RANK)
        writer.add_tensor(f"{tensor.name}.lora_a", draw.normal(0, 1, (RANK, inputs)).astype(np.float32))
        writer.add_tensor(f"{tensor.name}.lora_b", (draw.normal(0, 1, (outputs, RANK)) * spread).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

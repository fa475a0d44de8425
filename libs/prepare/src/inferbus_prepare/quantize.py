"""A GGUF file in another precision, tensor by tensor, by the gguf package's own quantizers (numpy).

What llama.cpp keeps wide stays wide: norms, biases and all else of one dimension, and routers of experts, in F32; the
output matrix (the embedding where both are one) in at least Q8_0. llama.cpp's own tool takes Q6_K for the latter where
rows divide by 256, which the package cannot write. A matrix whose rows are no whole blocks becomes F16.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from inferbus_prepare.errors import PrepareError
from inferbus_prepare.header import Header, Tensor, read_header

Progress = Callable[[float], None]
_K = gguf.GGMLQuantizationType
_F = gguf.LlamaFileType
# By name, from wide to coarse: the type of a tensor, and how a file says what most of its tensors are.
PRECISIONS: Mapping[str, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (_K.F32, _F.ALL_F32),
    "f16": (_K.F16, _F.MOSTLY_F16),
    "bf16": (_K.BF16, _F.MOSTLY_BF16),
    "q8_0": (_K.Q8_0, _F.MOSTLY_Q8_0),
    "q5_1": (_K.Q5_1, _F.MOSTLY_Q5_1),
    "q5_0": (_K.Q5_0, _F.MOSTLY_Q5_0),
    "q4_1": (_K.Q4_1, _F.MOSTLY_Q4_1),
    "q4_0": (_K.Q4_0, _F.MOSTLY_Q4_0),
}
_COARSE = (_K.Q5_1, _K.Q5_0, _K.Q4_1, _K.Q4_0)
_WIDE_PARTS = ("ffn_gate_inp", "attn_rel_b", "ssm_conv1d", "altup", "laurel", "per_layer_model_proj")
_ROWS_BYTES = 1 << 26
# The writer writes these itself.
_WRITTEN = ("general.architecture", "general.file_type", "general.quantization_version")


def kind_for(tensor: Tensor, precision: str, tied: bool) -> gguf.GGMLQuantizationType:
    """What a tensor becomes. ``tied``: the embedding is the output matrix, too."""
    wanted = PRECISIONS[precision][0]
    matrix = len(tensor.shape) >= 2 and tensor.name.endswith(".weight") and "norm" not in tensor.name
    if not matrix or any(part in tensor.name for part in _WIDE_PARTS):
        return tensor.kind if tensor.kind in (_K.F16, _K.BF16) else _K.F32
    if wanted in _COARSE and tensor.name == ("token_embd.weight" if tied else "output.weight"):
        wanted = _K.Q8_0
    if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        return _K.F16
    return wanted


def is_already(header: Header, precision: str) -> bool:
    """Whether quantizing would only copy."""
    return all(one.kind == kind_for(one, precision, _tied(header)) for one in header.tensors)


def quantize(source: Path, target: Path, precision: str, progress: Progress = lambda part: None) -> None:
    """Writes ``source`` to ``target``, which is there only when it is whole and on the disk.

    A tensor that is already so is copied. In memory: the largest tensor as it is written, and 64 MB of its rows in F32.
    Raises PrepareError if ``source`` has a type that cannot be read. ``progress`` gets parts in [0, 1].
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".making-", suffix=".gguf")
    os.close(handle)
    making = Path(name)
    try:
        _write(source, making, precision, progress)
        making.chmod(0o644)
        with making.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the final name on an empty file
        os.replace(making, target)
    finally:
        making.unlink(missing_ok=True)


def _tied(header: Header) -> bool:
    return all(one.name != "output.weight" for one in header.tensors)


def _write(source: Path, making: Path, precision: str, progress: Progress) -> None:
    header = read_header(source)
    kinds = {one.name: kind_for(one, precision, _tied(header)) for one in header.tensors}
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(making, header.architecture)
    if "general.alignment" in header.fields:
        writer.data_alignment = header.fields["general.alignment"]
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in _WRITTEN:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(PRECISIONS[precision][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in header.tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[tensor.name]]
        size = int(np.prod(tensor.shape)) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kinds[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(one.size_bytes for one in header.tensors), 0
    for tensor, read in zip(header.tensors, reader.tensors, strict=True):
        writer.write_tensor_data(_in_kind(read.data, tensor, kinds[tensor.name]))
        done += tensor.size_bytes
        progress(done / total)
    writer.close()


def _in_kind(data: Any, tensor: Tensor, kind: gguf.GGMLQuantizationType) -> Any:
    """Its bytes, some rows at a time through F32."""
    if tensor.kind == kind:
        return data
    rows = data.reshape(-1, data.shape[-1])
    step = max(1, _ROWS_BYTES // (4 * tensor.shape[-1]))
    try:
        parts = [
            gguf.quantize(gguf.dequantize(rows[at : at + step], tensor.kind), kind).view(np.uint8)
            for at in range(0, len(rows), step)
        ]
    except NotImplementedError as error:
        raise PrepareError(f"tensor {tensor.name!r} is of {tensor.kind.name}, which cannot be read: {error}") from None
    return np.concatenate(parts)

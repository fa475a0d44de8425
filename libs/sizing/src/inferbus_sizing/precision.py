"""Precisions: bytes of a weight with its scales, what stays wide, and which arithmetic a GPU does them with."""

from dataclasses import dataclass

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.errors import SizingError

WIDE = 2.0
"""Bytes of what a narrow precision leaves alone: embedding, output layer, norms, routers in bf16."""


@dataclass(frozen=True, slots=True)
class Precision:
    """``bytes``: of a narrowed weight, its share of scales included. ``arithmetic``: the GPU's rate that products run
    at (BF16's where it has none such). ``experts_only``: of a mixture, attention stays wide."""

    name: str
    title: str
    bytes: float
    arithmetic: str
    kv: str
    source: str
    experts_only: bool = False

    def weights(self, model: Architecture) -> "Weights":
        """``model``'s weights by part, in bytes."""
        wide = self.bytes if self.bytes >= WIDE else WIDE
        narrow = self.bytes
        around = wide if self.experts_only and model.experts else narrow
        return Weights(
            embedding=model.embedding_parameters * wide,
            head=model.head_parameters * wide,
            attention=model.attention_parameters * around,
            dense=model.dense_parameters * around,
            experts=model.expert_parameters * narrow,
            small=model.small_parameters * wide,
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes."""

    embedding: float
    head: float
    attention: float
    dense: float
    experts: float
    small: float

    @property
    def total(self) -> float:
        return self.embedding + self.head + self.attention + self.dense + self.experts + self.small


_SCALES_FP8 = 4 / (128 * 128)
_SCALES_AWQ = (2 + 0.5) / 128
_SCALES_NVFP4 = 1 / 16
_SCALES_MXFP4 = 1 / 32

PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", "FP32", 4.0, "tf32", "bf16", "4 bytes a parameter"),
        Precision("bf16", "BF16", 2.0, "bf16", "bf16", "2 bytes a parameter"),
        Precision("fp16", "FP16", 2.0, "bf16", "bf16", "2 bytes a parameter; the same rate as BF16"),
        Precision("fp8", "FP8 (W8A8)", 1.0 + _SCALES_FP8, "fp8", "fp8",
                  "E4M3, 1 byte, one FP32 scale a block of 128 x 128 (DeepSeek-V3, arXiv 2412.19437, 3.3.2)"),
        Precision("int8", "INT8 (W8A8)", 1.0 + 4 / 4096, "int8", "bf16",
                  "1 byte, one FP32 scale a channel (SmoothQuant, arXiv 2211.10438)"),
        Precision("int4", "INT4 (AWQ, GPTQ, W4A16)", 0.5 + _SCALES_AWQ, "bf16", "bf16",
                  "4 bits, FP16 scale and 4-bit zero a group of 128 (AWQ, arXiv 2306.00978); products in BF16"),
        Precision("nvfp4", "NVFP4", 0.5 + _SCALES_NVFP4, "fp4", "fp8",
                  "E2M1, 4 bits, one FP8 scale a block of 16 (NVIDIA, Introducing NVFP4, 2025)"),
        Precision("mxfp4", "MXFP4", 0.5 + _SCALES_MXFP4, "mxfp4", "bf16",
                  "E2M1, 4 bits, one 8-bit scale a block of 32 (OCP MX 1.0); experts only, as GPT-OSS has it (its "
                  "model card); products in FP8 where FP4 is there, else in BF16", experts_only=True),
    )
}  # fmt: skip

KV_BYTES = {"bf16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + _SCALES_NVFP4}
"""Of one number in the KV cache."""


def precision_of(name: str) -> Precision:
    names = {"awq": "int4", "gptq": "int4", "w4a16": "int4", "float16": "fp16", "bfloat16": "bf16", "fp4": "nvfp4"}
    found = PRECISIONS.get(names.get(name.lower(), name.lower()))
    if found is None:
        raise SizingError("precision", f"There is no precision {name}; there are {', '.join(PRECISIONS)}")
    return found


def kv_bytes_of(name: str) -> float:
    if name not in KV_BYTES:
        raise SizingError("kv_precision", f"There is no KV precision {name}; there are {', '.join(KV_BYTES)}")
    return KV_BYTES[name]

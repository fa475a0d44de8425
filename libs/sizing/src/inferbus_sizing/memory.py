"""What lies in the memory of each GPU: weights, KV cache, and what the runtime keeps for itself."""

from dataclasses import dataclass

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.hardware import Gpu
from inferbus_sizing.precision import Precision

CONTEXT_BYTES = 1.5e9
"""CUDA context, CUDA graphs, NCCL's buffers and the libraries' kernels: 1 to 2 GB a GPU in what vLLM and TensorRT-LLM
log when they start."""
KV_SHARE = 0.90
"""Of what is free after weights and activations, for the KV cache: TensorRT-LLM's own default
(kv_cache_free_gpu_mem_fraction)."""
PREFILL_TOKENS = 8192
"""In one step at most: the default of TensorRT-LLM's max_num_tokens, for which activations are reserved."""
BLOCK_TOKENS = 32
"""TensorRT-LLM's tokens_per_block: a sequence's last block is used by half on average."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """``tensor`` GPUs share each layer, ``pipeline`` such groups share the layers. ``expert``: within a group the
    experts are split and attention is not: each GPU keeps whole sequences (attention data parallelism, DEP)."""

    tensor: int = 1
    pipeline: int = 1
    expert: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    @property
    def name(self) -> str:
        first = f"{'DEP' if self.expert else 'TP'}{self.tensor}"
        return f"{first} x PP{self.pipeline}" if self.pipeline > 1 else first


@dataclass(frozen=True, slots=True)
class Deployment:
    """One replica: a model at a precision on GPUs."""

    model: Architecture
    precision: Precision
    kv_bytes: float
    gpu: Gpu
    parallel: Parallel

    @property
    def weight_bytes(self) -> float:
        """Of the fullest GPU."""
        held, split = self.precision.weights(self.model), self.parallel.tensor
        around = 1 if self.parallel.expert else split
        inside = (held.attention + held.dense) / around + held.experts / split + held.small
        return (
            inside / self.parallel.pipeline
            + max(held.embedding, held.head or held.embedding) / around
            + (0 if self.parallel.pipeline > 1 else held.head / around)
        )

    @property
    def reserve_bytes(self) -> float:
        """Of each GPU: the runtime, and activations for as many tokens as one step takes in."""
        model = self.model
        widest = model.dense_size
        if model.experts is not None:
            widest = max(widest, model.experts.size * model.experts.active + model.experts.shared_size)
        split = 1 if self.parallel.expert else self.parallel.tensor
        query = model.attention.heads * max(model.attention.head_size, model.attention.nope + model.attention.rope)
        wide = 4 * model.hidden + (2 * widest + 2 * query) / split
        return CONTEXT_BYTES + 2.0 * PREFILL_TOKENS * wide

    @property
    def kv_split(self) -> float:
        """By how much a sequence's KV cache is spread over a group's GPUs. Heads cannot be split, so that beyond their
        number they are copied; a latent has no heads. With ``expert`` each GPU has sequences of its own, which is as
        good as a split."""
        if self.parallel.expert:
            return self.parallel.tensor
        return 1 if self.model.attention.kv_rank else min(self.parallel.tensor, self.model.attention.kv_heads)

    @property
    def free_bytes(self) -> float:
        """Of each GPU, for the KV cache; below 0: the weights alone do not fit."""
        return (self.gpu.memory - self.weight_bytes - self.reserve_bytes) * KV_SHARE

    def kv_bytes_of(self, tokens: float) -> float:
        """Of one sequence of ``tokens``, all GPUs together, each head once."""
        return self.model.kv_elements(tokens) * self.kv_bytes

    def kv_bytes_on_gpu(self, tokens: float) -> float:
        """That a sequence of ``tokens`` takes of each GPU's memory, on average."""
        padded = tokens + BLOCK_TOKENS / 2
        return self.kv_bytes_of(padded) / self.kv_split / self.parallel.pipeline

    def sequences(self, tokens: float) -> int:
        """That fit at once, each with blocks for ``tokens``."""
        return max(0, int(self.free_bytes / self.kv_bytes_on_gpu(tokens)))

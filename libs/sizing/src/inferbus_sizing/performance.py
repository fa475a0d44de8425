"""How fast: a roofline of each part of a step, with one set of constants for all models, GPUs and precisions.

A step is the sum of its parts, since a layer's products, its attention and its exchange between GPUs come one after the
other; each part takes the longer of its arithmetic and its memory traffic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from inferbus_sizing.memory import Deployment
from inferbus_sizing.precision import WIDE, Weights

_BUSIEST = 0.99
MOST_SEQUENCES = 2048
"""In one step: TensorRT-LLM's default max_batch_size."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What real kernels reach of a data sheet's figures, and what a step costs beside them. One record for everything:
    fitted all together to the throughputs that NVIDIA publishes for TensorRT-LLM 1.0 and 0.6.1 (dense models;
    ``experts`` to its mixtures), then rounded: tests/fitting.py does it anew. docs/sizing.md says how far off they
    are. Nothing is fitted to one model or GPU."""

    products: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType({"tf32": 0.70, "bf16": 0.70, "int8": 0.62, "fp8": 0.62, "fp4": 0.42})
    )
    """Of the dense FLOPS, by arithmetic. ``int8`` and ``tf32`` are not measured: taken as FP8's and BF16's."""
    attention: float = 0.65
    """Of the BF16 FLOPS, in attention."""
    bandwidth: float = 0.82
    """Of the memory's, reading weights."""
    kv_bandwidth: float = 0.88
    """The same, reading the KV cache."""
    experts: float = 0.40
    """Of all that, in the many small and uneven products of a mixture."""
    link: float = 0.48
    """Of the link's bandwidth, in exchanges between GPUs."""
    exchange_seconds: float = 15e-6
    """Of one exchange, however little it carries."""
    layer_seconds: float = 30e-6
    """Of a layer's kernels beside their work: starts, norms, gaps."""
    step_seconds: float = 2e-3
    """Of a step on the host."""
    sequence_seconds: float = 8e-6
    """Of each sequence in a step on the host: scheduling, sampling, its token on its way."""


EFFICIENCY_SOURCE = "Efficiency: fitted to NVIDIA's published TensorRT-LLM throughputs, see docs/sizing.md"

DEFAULT = Efficiency()


@dataclass(frozen=True)
class Speed:
    """Of one replica."""

    of: Deployment
    efficiency: Efficiency = DEFAULT

    @cached_property
    def _weights(self) -> Weights:
        return self.of.precision.weights(self.of.model)

    # --- parts of a step ---

    def products_seconds(self, tokens: float, *, sampled: float) -> float:
        """All layers' products over ``tokens``, and the output layer over those that are ``sampled``; by the GPUs of
        one group."""
        model, gpu, weights, parallel = self.of.model, self.of.gpu, self._weights, self.of.parallel
        arithmetic, _ = gpu.rate(self.of.precision.arithmetic)
        narrow = self._part(
            weights.attention + weights.dense, 2 * (model.attention_parameters + model.dense_parameters), tokens,
            "bf16" if self.of.precision.experts_only else arithmetic, copied=parallel.expert,
        )  # fmt: skip
        head = max(weights.head, model.embedding_parameters * min(WIDE, self.of.precision.bytes) if model.tied else 0.0)
        out = self._part(head, 2 * model.embedding_parameters, sampled, "bf16", copied=parallel.expert)
        if model.experts is None:
            return narrow + out
        touched = 1 - (1 - model.experts.active / model.experts.count) ** max(1.0, tokens)
        mixture = self._part(
            weights.experts * touched, 2 * model.active_expert_parameters, tokens, arithmetic, copied=False
        )
        return narrow + out + mixture / self.efficiency.experts

    def _part(self, held: float, flops: float, tokens: float, arithmetic: str, *, copied: bool) -> float:
        """``copied``: each GPU has all of it and a share of the tokens; else all have a share of it and all tokens."""
        gpu, split = self.of.gpu, self.of.parallel.tensor
        rate = gpu.flops[arithmetic] * self.efficiency.products[arithmetic]
        read = held / (1 if copied else split) / (gpu.bandwidth * self.efficiency.bandwidth)
        return max(read, flops * tokens / split / rate)

    def looking_back_seconds(self, sequences: float, context: float) -> float:
        """Attention of one new token of each of ``sequences`` at ``context``, all layers."""
        gpu, model = self.of.gpu, self.of.model
        read = self.of.kv_bytes_of(context) * sequences / self.of.kv_split
        split = self.of.parallel.tensor
        flops = model.decode_attention_flops(context) * sequences / split
        return max(
            read / (gpu.bandwidth * self.efficiency.kv_bandwidth),
            flops / (gpu.flops["bf16"] * self.efficiency.attention),
        )

    def exchange_seconds(self, tokens: float) -> float:
        """Two all-reduces a layer under tensor parallelism, or a dispatch and a combine under expert parallelism; of a
        vector of ``hidden`` BF16 numbers a token. Then one hand-over a pipeline stage."""
        model, gpu, parallel = self.of.model, self.of.gpu, self.of.parallel
        vector = 2.0 * model.hidden
        total = 0.0
        if parallel.tensor > 1:
            others = (parallel.tensor - 1) / parallel.tensor
            if parallel.expert and model.experts is not None:
                carried = 2 * tokens / parallel.tensor * vector * min(model.experts.active, parallel.tensor) * others
                layers = model.mixture
            else:
                carried, layers = 2 * 2 * tokens * vector * others, model.layers
            total += layers * (2 * self.efficiency.exchange_seconds + carried / (gpu.link * self.efficiency.link))
        if parallel.pipeline > 1:
            hand = self.efficiency.exchange_seconds + tokens * vector / (gpu.link * self.efficiency.link)
            total += (parallel.pipeline - 1) * hand
        return total

    # --- steps ---

    def decode_seconds(self, sequences: float, context: float) -> float:
        """Of a step that gives each of ``sequences`` at ``context`` a token: the ITL. Through a pipeline they go in as
        many parts as it has stages, each stage busy with one of them."""
        part = sequences / self.of.parallel.pipeline
        return (
            self.products_seconds(part, sampled=part)
            + self.looking_back_seconds(part, context)
            + self.exchange_seconds(part)
            + self._fixed_seconds
            + sequences * self.efficiency.sequence_seconds
        )

    def prefill_seconds(self, tokens: int) -> float:
        """Reading one prompt takes so long when nothing else runs, from its first stage to its last: arithmetic,
        attention, exchanges, without what a step costs anyhow."""
        gpu, split = self.of.gpu, self.of.parallel.tensor
        back = self.of.model.prefill_attention_flops(tokens) / split / (gpu.flops["bf16"] * self.efficiency.attention)
        return self._prefill_products(tokens) + back + self.exchange_seconds(tokens) - self.exchange_seconds(0)

    def prefill_work_seconds(self, tokens: int) -> float:
        """That reading one prompt takes from the decoding of others: a pipeline's stages read different prompts."""
        return self.prefill_seconds(tokens) / self.of.parallel.pipeline + self.efficiency.sequence_seconds

    def _prefill_products(self, tokens: int) -> float:
        model, weights, gpu = self.of.model, self.of.precision, self.of.gpu
        arithmetic, _ = gpu.rate(weights.arithmetic)
        around = "bf16" if weights.experts_only else arithmetic
        split = self.of.parallel.tensor
        dense = 2 * (model.attention_parameters + model.dense_parameters) * tokens / split
        spent = dense / (gpu.flops[around] * self.efficiency.products[around])
        mixture = 2 * model.active_expert_parameters * tokens / split
        rate = gpu.flops[arithmetic] * self.efficiency.products[arithmetic] * self.efficiency.experts
        return spent + mixture / rate

    def first_seconds(self, tokens: int) -> float:
        """From a prompt to its first token on an idle replica."""
        read = self.products_seconds(1, sampled=1)
        return max(self.prefill_seconds(tokens), read) + self._fixed_seconds + self.exchange_seconds(0)

    @property
    def _fixed_seconds(self) -> float:
        return self.of.model.layers * self.efficiency.layer_seconds + self.efficiency.step_seconds

    # --- throughput ---

    def cycle_seconds(self, sequences: float, input_tokens: int, output_tokens: int) -> float:
        """From one token of a sequence to its next on average, prompts read in between: the ITL under load."""
        context = input_tokens + output_tokens / 2
        reading = sequences / output_tokens * self.prefill_work_seconds(input_tokens)
        return self.decode_seconds(sequences, context) + reading

    def tokens_per_second(self, sequences: float, input_tokens: int, output_tokens: int) -> float:
        """Output tokens of one replica with ``sequences`` under way at all times."""
        return sequences / self.cycle_seconds(sequences, input_tokens, output_tokens)

    def ttft_seconds(self, sequences: float, input_tokens: int, output_tokens: int) -> float:
        """On average under that load: prompts before it (M/D/1 over the share of time that is spent on prompts), what
        is left of the step that runs, and its own prompt in a step with the others' tokens."""
        if sequences <= 1:
            return self.first_seconds(input_tokens)
        work = self.prefill_work_seconds(input_tokens)
        cycle = self.cycle_seconds(sequences, input_tokens, output_tokens)
        busy = min(_BUSIEST, sequences / output_tokens * work / cycle)
        step = self.decode_seconds(sequences, input_tokens + output_tokens / 2)
        own = max(self.first_seconds(input_tokens), self.prefill_seconds(input_tokens) + step)
        return busy / (2 * (1 - busy)) * work + step / 2 + own

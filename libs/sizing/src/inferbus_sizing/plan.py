"""A plan: what was chosen, and every figure with its formula and source."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from inferbus_sizing.choice import Choice, choose
from inferbus_sizing.cost import Crossover, cost_figures, crossover
from inferbus_sizing.errors import DoesNotFitError
from inferbus_sizing.figure import Figure
from inferbus_sizing.hardware import GPUS
from inferbus_sizing.memory import BLOCK_TOKENS, CONTEXT_BYTES, KV_SHARE, PREFILL_TOKENS
from inferbus_sizing.performance import DEFAULT, EFFICIENCY_SOURCE, Efficiency
from inferbus_sizing.wanted import Wanted

_CONFIG = "the model's config.json"
_ROOFLINE = f"roofline of each part of a step; {EFFICIENCY_SOURCE}"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the fullest GPU; ``kv`` is what the wanted sequences take at their whole context."""

    weights: float
    reserve: float
    kv: float
    total: float

    @property
    def spare(self) -> float:
        return max(0.0, self.total - self.weights - self.reserve - self.kv)


@dataclass(frozen=True, slots=True)
class Timing:
    """One replica as the scheduler's simulator and the engine ``synthetic`` know it."""

    step_seconds: float
    step_seconds_per_sequence: float
    prefill_tokens_per_second: float
    kv_blocks: int
    kv_block_tokens: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Plan:
    wanted: Wanted
    choice: Choice
    figures: tuple[Figure, ...]
    memory: Memory
    crossover: Crossover | None

    def __getitem__(self, name: str) -> float:
        """A figure's value. Raises KeyError if it has none of that name, or one without a value."""
        for one in self.figures:
            if one.name == name and one.value is not None:
                return one.value
        raise KeyError(name)

    @property
    def timing(self) -> Timing:
        """Steps as a line through one sequence and as many as are wanted. The simulator's steps are not slowed by
        prompts, so that these have the prompts' share in them."""
        speed, wanted, many = self.choice.speed, self.wanted, max(2, self.choice.sequences)
        one, all_ = (speed.cycle_seconds(n, wanted.input_tokens, wanted.output_tokens) for n in (1, many))
        slope = (all_ - one) / (many - 1)
        deployment = self.choice.deployment
        return Timing(
            step_seconds=max(0.0, one - slope),
            step_seconds_per_sequence=slope,
            prefill_tokens_per_second=wanted.input_tokens / speed.prefill_work_seconds(wanted.input_tokens),
            kv_blocks=int(deployment.free_bytes / deployment.kv_bytes_on_gpu(wanted.context) * wanted.context)
            // BLOCK_TOKENS,
            kv_block_tokens=BLOCK_TOKENS,
            capacity=min(self.choice.room, many),
        )


def plan(wanted: Wanted, efficiency: Efficiency = DEFAULT) -> Plan:
    """Raises :class:`DoesNotFitError`, which says what would fit."""
    choice = choose(wanted, efficiency)
    deployment = choice.deployment
    memory = Memory(
        weights=deployment.weight_bytes,
        reserve=deployment.reserve_bytes,
        kv=deployment.kv_bytes_on_gpu(wanted.context) * choice.sequences,
        total=deployment.gpu.memory,
    )
    speed = tuple(_speed(wanted, choice))
    rate = next(one.value for one in speed if one.name == "requests_per_second") or 0.0
    costs = tuple(cost_figures(wanted, choice, rate))
    figures = (*_model(wanted), *_memory(wanted, choice, memory), *speed, *costs)
    return Plan(wanted, choice, figures, memory, crossover(wanted, choice, rate))


def compare(wanted: Wanted, gpus: Iterable[str] = GPUS) -> list[tuple[str, Plan | DoesNotFitError]]:
    """A plan for each of ``gpus``, or why there is none. A price that was given is for the one GPU that was named."""
    results: list[tuple[str, Plan | DoesNotFitError]] = []
    for name in gpus:
        price = wanted.dollars_per_hour if name == wanted.gpu else None
        try:
            results.append((name, plan(replace(wanted, gpu=name, dollars_per_hour=price))))
        except DoesNotFitError as error:
            results.append((name, error))
    return results


def _model(wanted: Wanted) -> Iterator[Figure]:
    model, numbers = wanted.model, wanted.numbers
    weights, attention = numbers.weights(model), model.attention
    yield Figure(
        "parameters", model.parameters, "parameters",
        f"embedding {model.embedding_parameters:,} + output layer {model.head_parameters:,} + attention "
        f"{model.attention_parameters:,} + dense {model.dense_parameters:,} + experts {model.expert_parameters:,} + "
        f"norms and routers {model.small_parameters:,}", _CONFIG,
    )  # fmt: skip
    if model.experts is not None:
        yield Figure(
            "active_parameters", model.active_parameters, "parameters",
            f"parameters - experts + {model.experts.active} of {model.experts.count} experts a layer; with the "
            f"embedding's {model.embedding_parameters:,}", _CONFIG,
        )  # fmt: skip
    yield Figure(
        "weights", weights.total, "bytes",
        f"parameters x {numbers.bytes:.4g} bytes ({numbers.title}); embedding, output layer, norms"
        f"{', attention' if numbers.experts_only and model.experts else ''} x {max(2.0, numbers.bytes):g}",
        f"{_CONFIG}; {numbers.source}",
    )  # fmt: skip
    if attention.kv_rank:
        kept = f"({attention.kv_rank} latent + {attention.rope} rotary)"
    else:
        kept = f"2 x {attention.kv_heads} KV heads x {attention.head_size}"
    yield Figure(
        "kv_per_token", model.kv_elements_per_token * wanted.kv_bytes, "bytes",
        f"{model.layers} layers x {kept} x {wanted.kv_bytes:g} bytes ({wanted.kv_name})"
        + (f"; {model.windowed} of the layers keep {model.window:,} tokens at most" if model.windowed else ""), _CONFIG,
    )  # fmt: skip
    yield Figure(
        "kv_per_sequence", model.kv_elements(wanted.context) * wanted.kv_bytes, "bytes",
        f"the same for {wanted.context:,} tokens", _CONFIG,
    )  # fmt: skip


def _memory(wanted: Wanted, choice: Choice, memory: Memory) -> Iterator[Figure]:
    deployment, gpu = choice.deployment, wanted.hardware
    parallel = deployment.parallel
    yield Figure(
        "gpus_per_replica", parallel.gpus, "GPUs",
        f"{parallel.name}: of all that hold it, what gives the fewest GPUs in total", "tried one by one",
    )  # fmt: skip
    yield Figure(
        "weights_per_gpu", memory.weights, "bytes", f"weights split by {parallel.name}", f"{_CONFIG}; {gpu.title}"
    )
    yield Figure(
        "reserve_per_gpu", memory.reserve, "bytes",
        f"{CONTEXT_BYTES / 1e9:g} GB runtime + activations of {PREFILL_TOKENS:,} tokens",
        "what vLLM and TensorRT-LLM log at their start; TensorRT-LLM's max_num_tokens",
    )  # fmt: skip
    yield Figure(
        "memory_per_gpu", memory.total, "bytes", "what the driver reports", f"nvidia-smi's memory.total, {gpu.title}"
    )
    yield Figure(
        "sequences_fit", choice.room, "sequences",
        f"(memory - weights - reserve) x {KV_SHARE} / KV cache of {wanted.context:,} tokens on a GPU",
        "TensorRT-LLM's kv_cache_free_gpu_mem_fraction; no two sequences share a prefix",
    )  # fmt: skip
    yield Figure(
        "sequences", choice.sequences, "sequences",
        f"{wanted.concurrency:,} concurrent over {choice.replicas} replicas, within memory and targets", "as asked for",
    )  # fmt: skip
    yield Figure(
        "replicas", choice.replicas, "replicas", "concurrency / sequences that fit and meet the targets", "as asked for"
    )
    yield Figure("gpus", choice.gpus, "GPUs", "replicas x GPUs of a replica", "as asked for")


def _speed(wanted: Wanted, choice: Choice) -> Iterator[Figure]:
    speed, gpu = choice.speed, wanted.hardware
    given = (choice.sequences, wanted.input_tokens, wanted.output_tokens)
    arithmetic, flops = gpu.rate(wanted.numbers.arithmetic)
    context = wanted.input_tokens + wanted.output_tokens / 2
    step, reading = speed.decode_seconds(choice.sequences, context), speed.prefill_seconds(wanted.input_tokens)
    itl, ttft = speed.cycle_seconds(*given), speed.ttft_seconds(*given)
    rate = choice.replicas * speed.tokens_per_second(*given)
    yield Figure(
        "prefill", reading, "seconds",
        f"2 x active parameters x {wanted.input_tokens:,} / ({flops / 1e12:,.0f} TFLOPS {arithmetic.upper()} x "
        f"efficiency) + attention + exchanges", f"{_ROOFLINE}; {gpu.source}",
    )  # fmt: skip
    yield Figure(
        "decode_step", step, "seconds",
        f"weights read + KV cache of {choice.sequences:,} x {context:,.0f} tokens read at "
        f"{gpu.bandwidth / 1e9:,.0f} GB/s x efficiency (or its arithmetic, if longer) + exchanges over "
        f"{gpu.link_title} + layers + host",
        f"{_ROOFLINE}; {gpu.source}",
    )  # fmt: skip
    yield Figure(
        "itl", itl, "seconds",
        f"decode step + {choice.sequences:,} / {wanted.output_tokens:,} x prefill: the mean gap under load",
        _ROOFLINE,
    )  # fmt: skip
    yield Figure(
        "ttft", ttft, "seconds",
        "wait for prompts before it (M/D/1) + half a decode step + prefill + a decode step: the mean, without network "
        "and scheduler",
        _ROOFLINE,
    )  # fmt: skip
    yield Figure("ttft_idle", speed.first_seconds(wanted.input_tokens), "seconds", "prefill + a step, alone", _ROOFLINE)
    yield Figure("tokens_per_second_user", 1 / itl, "tokens/s", "1 / ITL", _ROOFLINE)
    yield Figure("tokens_per_second", rate, "tokens/s", "replicas x sequences / ITL: output tokens", _ROOFLINE)
    yield Figure("tokens_per_second_gpu", rate / choice.gpus, "tokens/s", "output tokens a second / GPUs", _ROOFLINE)
    yield Figure(
        "requests_per_second", rate / wanted.output_tokens, "requests/s", "output tokens a second / output", _ROOFLINE
    )

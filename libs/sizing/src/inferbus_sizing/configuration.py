"""A Hugging Face ``config.json`` as an :class:`~inferbus_sizing.architecture.Architecture`."""

from collections.abc import Mapping
from typing import Any

from inferbus_sizing.architecture import Architecture, Attention, Experts
from inferbus_sizing.errors import SizingError

# What the libraries' own configuration classes take where a file says nothing.
_VOCABULARY = {"gemma3": 262_208, "gemma3_text": 262_208}
_UNGATED = ("gpt2", "gptj", "gpt_neox", "phi", "starcoder2")
_WIDER = 4
_TIED = ("gpt2", "starcoder2", "gemma", "gemma2", "gemma3", "gemma3_text")
# What says that layers keep a state instead of a KV cache; and the kinds of layers that are known.
_STATES = (
    "hybrid_override_pattern",
    "mamba_d_state",
    "ssm_state_size",
    "state_size",
    "ssm_cfg",
    "linear_num_key_heads",
)
_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
_GEMMA_PATTERN = {"gemma3": 6, "gemma3_text": 6, "gemma2": 2}
_ALTERNATING = 2
_CHUNKED_EVERY = 4
_BIASED = ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl")
_MOST = {"hidden_size": 1 << 17, "num_hidden_layers": 2048, "vocab_size": 1 << 24}
_LARGEST = 1 << 22
_WINDOWLESS = "full_attention"


def architecture_of(config: Mapping[str, Any], name: str = "") -> Architecture:
    """Raises :class:`SizingError` with the field that is missing, is no positive number or is beyond all measure."""
    text = config.get("text_config")
    fields = Fields({**config, **text} if isinstance(text, Mapping) else config)
    kind = str(fields.raw("model_type", ""))
    _known(fields)
    layers = fields.number("num_hidden_layers", "n_layer", most=_MOST["num_hidden_layers"])
    hidden = fields.number("hidden_size", "n_embd", most=_MOST["hidden_size"])
    mixture, experts = _experts(fields, kind, layers)
    windowed, window = _windows(fields, kind, layers)
    return Architecture(
        name=name or str(fields.raw("_name_or_path", "") or kind or "model"),
        hidden=hidden,
        layers=layers,
        vocabulary=fields.number("vocab_size", default=_VOCABULARY.get(kind), most=_MOST["vocab_size"]),
        attention=_attention(fields, kind, hidden),
        dense_size=_dense_size(fields, kind, hidden, all_mixture=mixture == layers),
        context_limit=fields.number("max_position_embeddings", "n_positions", default=4096, most=1 << 30),
        tied=bool(fields.raw("tie_word_embeddings", kind in _TIED)),
        experts=experts,
        mixture=mixture,
        windowed=windowed,
        window=window,
        gated=kind not in _UNGATED,
        native=_native(fields),
    )


class Fields:
    """Reads numbers, and says of a wrong one which it was."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def raw(self, name: str, default: Any = None) -> Any:
        found = self._config.get(name)
        return default if found is None else found

    def number(self, *names: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """The first of ``names`` that is there."""
        for name in names:
            found = self._config.get(name)
            if found is None:
                continue
            if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
                raise SizingError(f"config.{name}", f"config.{name} must be a whole number from {least} to {most:,}")
            return found
        if default is None:
            raise SizingError(f"config.{names[0]}", f"The config has no {' or '.join(names)}: is it a decoder's?")
        return default


def _attention(fields: Fields, kind: str, hidden: int) -> Attention:
    heads = fields.number("num_attention_heads", "n_head")
    if fields.raw("kv_lora_rank"):
        return Attention(
            heads=heads,
            kv_heads=heads,
            head_size=fields.number("v_head_dim"),
            query_rank=fields.number("q_lora_rank", default=0),
            kv_rank=fields.number("kv_lora_rank"),
            nope=fields.number("qk_nope_head_dim"),
            rope=fields.number("qk_rope_head_dim"),
            value_size=fields.number("v_head_dim"),
        )
    biased = bool(fields.raw("attention_bias", kind in _BIASED))
    return Attention(
        heads=heads,
        kv_heads=fields.number("num_key_value_heads", default=heads),
        head_size=fields.number("head_dim", default=max(1, hidden // heads)),
        bias=biased,
        output_bias=biased and kind == "gpt_oss",
    )


def _known(fields: Fields) -> None:
    """Raises :class:`SizingError` for layers that have no KV cache: what it says of them would be wrong."""
    for name in _STATES:
        if fields.raw(name):
            raise SizingError(f"config.{name}", f"config.{name}: layers that keep a state are not known here")
    listed = fields.raw("layer_types")
    for one in listed if isinstance(listed, list) else ():
        if one not in _KINDS:
            said = str(one)[:40]
            raise SizingError("config.layer_types", f"config.layer_types: '{said}' is none of {', '.join(_KINDS)}")


def _dense_size(fields: Fields, kind: str, hidden: int, *, all_mixture: bool) -> int:
    """Llama 4 names its dense layers' apart; a model of experts alone has no dense layer at all."""
    if kind in _UNGATED:
        return fields.number("intermediate_size", "n_inner", default=_WIDER * hidden)
    if fields.raw("intermediate_size_mlp"):
        return fields.number("intermediate_size_mlp")
    return fields.number("intermediate_size", "n_inner", default=0 if all_mixture else None)


def _experts(fields: Fields, kind: str, layers: int) -> tuple[int, Experts | None]:
    """How many layers are mixtures, and of what."""
    count = fields.number("n_routed_experts", "num_local_experts", "num_experts", default=0, least=0)
    if count <= 1:
        return 0, None
    size = fields.number("moe_intermediate_size", "intermediate_size")
    shared = fields.number("shared_expert_intermediate_size", default=0, least=0)
    if fields.raw("n_shared_experts"):
        shared = fields.number("n_shared_experts") * size
    elif kind.startswith("llama4"):
        shared = size
    active = fields.number("num_experts_per_tok", "experts_per_token", "num_experts_per_token", most=count)
    experts = Experts(count, active, size, shared, bias=kind == "gpt_oss")
    return _mixtures(fields, layers), experts


def _mixtures(fields: Fields, layers: int) -> int:
    """A list names each layer (1: experts), or those without; else every so many, after the first dense ones."""
    listed, dense = fields.raw("moe_layer_freq"), fields.raw("mlp_only_layers")
    if isinstance(listed, list):
        return sum(bool(one) for one in listed[:layers])
    every = fields.number("interleave_moe_layer_step", "moe_layer_freq", "decoder_sparse_step", default=1)
    first = fields.number("first_k_dense_replace", default=0, least=0)
    without = min(len(dense), layers) if isinstance(dense, list) else 0
    return max(0, layers - first - without) // every


def _windows(fields: Fields, kind: str, layers: int) -> tuple[int, int]:
    """How many layers have a window, and how wide it is."""
    if kind.startswith("llama4") and fields.raw("attention_chunk_size"):
        return layers - layers // _CHUNKED_EVERY, fields.number("attention_chunk_size", most=1 << 30)
    if not fields.raw("sliding_window") or fields.raw("use_sliding_window") is False:
        return 0, 0
    window = fields.number("sliding_window", most=1 << 30)
    listed = fields.raw("layer_types")
    if isinstance(listed, list):
        return sum(one != _WINDOWLESS for one in listed[:layers]), window
    pattern = fields.number("sliding_window_pattern", default=_GEMMA_PATTERN.get(kind, 0), least=0)
    if kind == "gpt_oss":
        pattern = _ALTERNATING
    return (layers - layers // pattern if pattern else layers), window


def _native(fields: Fields) -> str:
    """What the file says of quantization, or else its type."""
    said = fields.raw("quantization_config", {})
    method = str(said.get("quant_method", "")) if isinstance(said, Mapping) else ""
    if method in ("fp8", "mxfp4"):
        return method
    narrowed = str(said.get("quant_algo", "")).lower() if isinstance(said, Mapping) else ""
    if narrowed in ("fp8", "nvfp4"):
        return narrowed
    if method in ("awq", "gptq"):
        return "int4"
    return "fp32" if fields.raw("torch_dtype", fields.raw("dtype")) == "float32" else "bf16"

"""What is read from a config.json, and what is said of a wrong one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_sizing import SizingError, architecture_of, model_of

PLAIN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


def test_parameters_of_a_small_model_by_hand() -> None:
    attention, dense, norms = 4 * 64 * 64, 3 * 64 * 128, 5 * 64
    assert architecture_of(PLAIN).parameters == 2 * 100 * 64 + 2 * (attention + dense) + norms
    tied = architecture_of(PLAIN | {"tie_word_embeddings": True})
    assert tied.parameters == architecture_of(PLAIN).parameters - 100 * 64


def test_grouped_heads_narrow_the_kv_cache() -> None:
    assert architecture_of(PLAIN).kv_elements_per_token == 2 * 2 * 4 * 16
    assert architecture_of(PLAIN | {"num_key_value_heads": 1}).kv_elements_per_token == 2 * 2 * 16
    assert architecture_of(PLAIN | {"head_dim": 32}).kv_elements_per_token == 2 * 2 * 4 * 32


def test_latent_attention_keeps_one_latent_and_one_rotary_key() -> None:
    model = model_of("deepseek-r1").architecture
    assert model.kv_elements_per_token == 61 * (512 + 64)


@pytest.mark.parametrize(("name", "windowed", "window"), [("gpt-oss-20b", 12, 128), ("gemma-3-27b", 52, 1024)])
def test_windows_bound_what_is_kept(name: str, windowed: int, window: int) -> None:
    model = model_of(name).architecture
    assert (model.windowed, model.window) == (windowed, window)
    short, long = model.kv_elements(window), model.kv_elements(10 * window)
    assert short == model.kv_elements_per_token * window
    assert long == model.attention.kv_elements * window * (windowed + 10 * (model.layers - windowed))


def test_windows_that_are_not_used_are_none() -> None:
    assert architecture_of(PLAIN | {"sliding_window": 16}).windowed == 2
    assert architecture_of(PLAIN | {"sliding_window": 16, "use_sliding_window": False}).windowed == 0


def test_mixture_with_dense_first_layers_and_shared_experts() -> None:
    mixed = architecture_of(
        PLAIN | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                 "n_shared_experts": 1, "first_k_dense_replace": 1}
    )  # fmt: skip
    assert mixed.mixture == 1
    expert = 3 * 64 * 16
    assert mixed.expert_parameters == 4 * expert
    assert mixed.parameters - mixed.active_parameters == 2 * expert
    assert mixed.dense_parameters == 3 * 64 * 128 + expert


def test_a_wrapped_text_model_is_read() -> None:
    assert (
        architecture_of({"model_type": "llava", "text_config": PLAIN}).parameters == architecture_of(PLAIN).parameters
    )


def test_what_a_config_says_of_its_precision() -> None:
    assert architecture_of(PLAIN).native == "bf16"
    assert architecture_of(PLAIN | {"quantization_config": {"quant_method": "awq"}}).native == "int4"
    modelopt = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    assert architecture_of(PLAIN | {"quantization_config": modelopt}).native == "nvfp4"
    assert architecture_of(PLAIN | {"torch_dtype": "float32"}).native == "fp32"


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}, 124e6),
        ({"model_type": "phi", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
          "intermediate_size": 10240, "vocab_size": 51200}, 2.78e9),
        ({"model_type": "starcoder2", "hidden_size": 4608, "num_hidden_layers": 32, "num_attention_heads": 36,
          "num_key_value_heads": 4, "intermediate_size": 18432, "vocab_size": 49152}, 7.17e9),
    ],
)  # fmt: skip
def test_older_blocks_have_two_matrices(config: dict[str, Any], parameters: float) -> None:
    assert architecture_of(config).parameters == pytest.approx(parameters, rel=0.01)


def test_mixture_layers_that_are_listed() -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1}
    assert architecture_of(PLAIN | experts | {"moe_layer_freq": [0, 1]}).mixture == 1
    assert architecture_of(PLAIN | experts | {"mlp_only_layers": [0]}).mixture == 1
    assert architecture_of(PLAIN | experts | {"mlp_only_layers": []}).mixture == 2


@pytest.mark.parametrize(
    "more", [{"layer_types": ["linear_attention", "full_attention"]}, {"mamba_d_state": 16}, {"state_size": 16}]
)
def test_layers_without_a_kv_cache_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(SizingError) as raised:
        architecture_of(PLAIN | more)
    assert raised.value.param == f"config.{next(iter(more))}"


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "many", True, [], 1 << 60])
def test_a_wrong_field_is_named(name: str, value: Any) -> None:
    with pytest.raises(SizingError) as raised:
        architecture_of(PLAIN | {name: value})
    assert raised.value.param == f"config.{name}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "num_experts", "n_routed_experts", "moe_layer_freq", "layer_types", "sliding_window", "kv_lora_rank", "text_config",
    "quantization_config", "model_type", "head_dim", "first_k_dense_replace", "n_shared_experts", "attention_bias",
    "num_experts_per_tok", "max_position_embeddings",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=5))
def test_whatever_a_file_says_there_is_a_model_or_a_reason(changes: dict[str, Any]) -> None:
    try:
        model = architecture_of(PLAIN | changes)
    except SizingError:
        return
    assert 0 < model.active_parameters <= model.parameters
    assert 0 <= model.windowed <= model.layers

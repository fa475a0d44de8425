"""Folders that the engine transformers serves with weights that are drawn: a real model's shape, and as many tokens as
it has, most of them words of made-up letters, so that a random text has the size of a real one."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LETTERS = "aeiou", "bdfgklmnprst"
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
_QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0}
# As the models' config.json have them.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _LLAMA | {
        "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    },
    "qwen2.5-0.5b": _QWEN | {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": _LLAMA | {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": _LLAMA | {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def write(folder: Path, shape: str) -> Path:
    """``config.json`` and a tokenizer with an id for each of the model's logits, none of which ends an answer: each has
    the length that is asked for. Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape] | {"torch_dtype": "bfloat16", "eos_token_id": None, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    # Of words that no text is split into only the first bytes are found; outputs have all of them.
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"Ġ{_word(number)}" for number in range(SHAPES[shape]["vocab_size"] - len(tokens))]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def _word(number: int) -> str:
    """Four letters and more, another for each number."""
    letters = ""
    while number or len(letters) < 4:
        kind = LETTERS[len(letters) % 2]
        number, at = divmod(number, len(kind))
        letters += kind[at]
    return letters

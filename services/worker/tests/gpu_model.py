"""A tiny model made on the spot, for engines on a GPU: random weights, a real tokenizer, nothing downloaded.

Two layers of Llama's form with random weights, whose head is tied to the embeddings by a random chain through the
vocabulary: after token i the next one of the chain has about half of the probability. So a greedy text goes along the
chain, whatever GPU and batch it is computed in, and ends after :data:`CHAIN` tokens, while a draw leaves it at once.
"""

import argparse
import json
import string
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 32_768
CHAIN = 1400
HIDDEN = 256
NAMED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
START, END = 1, 2
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the tokenizer is trained on: any English will do that is there wherever Python is.
_TRAINED_ON = ("argparse", "asyncio.base_events", "decimal", "email.message", "logging", "socket", "tarfile")
_VOCABULARY = 2048
# The next token of the chain has logit _HEAD * sqrt(HIDDEN), 8; all others are about 0 with a spread of _HEAD.
_HEAD = 0.5


def write_tokenizer(folder: Path) -> Tokenizer:
    """``tokenizer.json`` and ``tokenizer_config.json``: byte-level BPE that has learned ASCII, so that most tokens are
    whole characters and may follow any other (:func:`plain`); of other text, each byte is a token."""
    from importlib.util import find_spec

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in NAMED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    specs = [find_spec(name) for name in _TRAINED_ON]
    texts = [Path(spec.origin).read_text() for spec in specs if spec is not None and spec.origin is not None]
    tokenizer.train_from_iterator(["".join(c for c in text if c.isascii()) for text in texts], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": NAMED[START],
        "eos_token": NAMED[END],
        "pad_token": NAMED[END],
        "chat_template": TEMPLATE,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def plain(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that are whole printable characters of ASCII."""
    shown = {*string.printable} - {*string.whitespace} | {" ", "\n"}
    texts = {number: tokenizer.decode([number]) for number in range(len(NAMED), tokenizer.get_vocab_size())}
    return [number for number, text in texts.items() if text and shown.issuperset(text)]


def chain(size: int, ids: list[int], torch: Any) -> Any:
    """``next[i]``: the token after ``i``, one of ``ids``; after those that are not in the chain, its first."""
    order = torch.tensor(ids)[torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))]
    following = order[0].repeat(size)
    following[order] = order.roll(-1)
    return following


def write_model(folder: Path) -> Path:
    """Everything that a checkpoint has, in ``folder``; seconds. Needs torch and transformers."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = write_tokenizer(folder)
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=HIDDEN // 4, max_position_embeddings=CONTEXT, bos_token_id=START,
        eos_token_id=END, pad_token_id=END, tie_word_embeddings=False, torch_dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = plain(tokenizer)
    following = chain(size, ids, torch)
    # A prompt ends with this token: from it on the chain is CHAIN long.
    (last,) = tokenizer.encode("\n").ids
    at = last
    for _ in range(CHAIN):
        at = int(following[at])
    following[at] = END
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(torch.randn(size, HIDDEN), dim=1)
        model.model.embed_tokens.weight.copy_(embeddings * HIDDEN**0.5)
        head = torch.nn.functional.normalize(torch.randn(size, HIDDEN), dim=1)
        head[following[ids]] = embeddings[ids]
        model.lm_head.weight.copy_(head * _HEAD)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=START, eos_token_id=END, pad_token_id=END)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the tiny model in a folder.")
    parser.add_argument("folder", type=Path)
    sys.stdout.write(f"{write_model(parser.parse_args().folder)}\n")


if __name__ == "__main__":
    main()

"""The small model's tokenizer as Hugging Face's files have it, made of the GGUF that its package ships."""

import json
import struct
from io import BufferedReader
from pathlib import Path
from typing import Any

from inferbus_worker.engines.llama_cpp_model import _shipped_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTEXT = 8192
_CONTROL = 3  # GGUF's token type of special tokens


def write(folder: Path) -> Path:
    """The three files of it in ``folder``, which is returned."""
    fields = _fields()
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # The pre-tokenizer that GGUF calls "smollm".
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    # The model's own end of turn, and the end of a text, at which llama.cpp ends, too.
    ends = {"eos_token_id": [fields["tokenizer.ggml.eos_token_id"], tokens.index("<|endoftext|>")]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


def _fields() -> dict[str, Any]:
    """What the file says before its weights. The package gguf takes ten times as long for it."""
    with _shipped_file().open("rb") as file:
        file.seek(16)  # magic, version, count of tensors
        count = _number(file, "Q")
        return {_text(file): _value(file, _number(file, "I")) for _ in range(count)}


_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def _value(file: BufferedReader, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        inner, count = _number(file, "I"), _number(file, "Q")
        return [_value(file, inner) for _ in range(count)]
    return _number(file, _FORMATS[kind])


def _text(file: BufferedReader) -> str:
    return file.read(_number(file, "Q")).decode()


def _number(file: BufferedReader, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]

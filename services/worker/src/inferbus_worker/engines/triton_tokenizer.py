"""The tokenizer and chat template of the model behind a Triton server, read from Hugging Face's files.

The server has its own copy, out of our reach: with ours, requests carry token ids, and streams go on by them.
"""

import hashlib
import json
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.template_files import template_in, text_of

# What a tokenizer_config.json says that knows no length.
_ENDLESS = 10**9


@dataclass(frozen=True, slots=True, eq=False)
class ModelFiles:
    """Any of them may be missing. ``context_length``: of the model, in tokens. ``digest``: names their content."""

    tokenizer: "TextTokenizer | None"
    template: ChatTemplate | None
    context_length: int | None
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class TextTokenizer:
    """``pieces``: what each id stands for, special ones as they are written. ``special``: those that are no text.

    ``end_ids``: tokens that end an answer, the model's own end token first. ``begin``: the text that is put in front of
    every prompt. ``strips``: the first blank of a text is not part of it.
    """

    pieces: list[bytes]
    special: frozenset[int]
    end_ids: tuple[int, ...]
    begin: str
    strips: bool
    _tokenizer: Tokenizer
    _plain: Tokenizer

    def encode(self, text: str, *, parse_special: bool = True, add_special: bool = True) -> list[int]:
        """``parse_special``: special tokens in a text are read as such. 1 s for a text of 2 MB."""
        tokenizer = self._tokenizer if parse_special else self._plain
        return list(tokenizer.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Special ones are written out. Ids are below the number of pieces."""
        text = b"".join(self.pieces[token] for token in ids)
        return text[1:] if self.strips and text.startswith(b" ") else text


class TextDecoder:
    """Ids into text as they come; a character that is not complete is held back."""

    __slots__ = ("_begun", "_tokenizer", "_utf8")

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8: IncrementalDecoder = getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False

    def feed(self, ids: Sequence[int]) -> str:
        """What of the text is sure now. Special tokens have none."""
        tokenizer = self._tokenizer
        raw = b"".join(tokenizer.pieces[token] for token in ids if token not in tokenizer.special)
        if not self._begun and raw:
            self._begun = True
            raw = raw[1:] if tokenizer.strips and raw.startswith(b" ") else raw
        return self._utf8.decode(raw)


@lru_cache(maxsize=4)
def load(path: Path) -> ModelFiles:
    """``path``: a folder, or a tokenizer.json; read once. Blocks for up to a second, or two for a large vocabulary.

    Raises InferBusError for one of no use.
    """
    folder = path if path.is_dir() else path.parent
    try:
        config = _json(folder / "tokenizer_config.json")
        generation = _json(folder / "generation_config.json")
        source = folder / "tokenizer.json" if path.is_dir() else path
        tokenizer = _tokenizer(source, config, generation) if source.exists() else None
        template = template_in(folder, config)
    except (OSError, ValueError, KeyError, TemplateError) as error:
        raise start_failed(f"the tokenizer's files cannot be used: {error!r}") from error
    if tokenizer is None and template is None:
        raise start_failed("there is neither a tokenizer.json nor a chat template where the tokenizer should be")
    length = int(config.get("model_max_length") or _ENDLESS)
    return ModelFiles(tokenizer, template, length if length < _ENDLESS else None, _digest(folder, source))


def _tokenizer(source: Path, config: dict[str, Any], generation: dict[str, Any]) -> TextTokenizer:
    text = source.read_text()
    tokenizer, plain = Tokenizer.from_str(text), Tokenizer.from_str(text)
    plain.encode_special_tokens = True
    ends = generation.get("eos_token_id", [])
    named = tokenizer.token_to_id(text_of(config.get("eos_token")))
    end_ids = dict.fromkeys([*([named] if named is not None else []), *(ends if isinstance(ends, list) else [ends])])
    if not end_ids:
        raise ValueError("tokenizer_config.json names no eos_token, and there is no generation_config.json that does")
    decoder = json.dumps(json.loads(text).get("decoder"))
    added = tokenizer.get_added_tokens_decoder()
    pieces = [
        added[number].content.encode() if number in added else _piece(tokenizer.id_to_token(number) or "", decoder)
        for number in range(max(tokenizer.get_vocab().values()) + 1)
    ]
    special = frozenset(number for number, token in added.items() if token.special)
    begin = [pieces[token].decode() for token in tokenizer.encode("", add_special_tokens=True).ids]
    strips = '"Strip"' in decoder or ('"Metaspace"' in decoder and '"prepend_scheme": "never"' not in decoder)
    return TextTokenizer(pieces, special, tuple(end_ids), begin[0] if begin else "", strips, tokenizer, plain)


def _piece(token: str, decoder: str) -> bytes:
    """Of an entry of the vocabulary. ``decoder``: how the tokenizer makes text of it, as JSON."""
    if '"ByteLevel"' in decoder:
        return b"".join(_BYTES.get(character, character.encode()) for character in token)
    if '"ByteFallback"' in decoder and len(token) == 6 and token.startswith("<0x"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, bytes]:
    """The printable characters with which byte-level tokenizers write bytes: those of Latin-1 that can be seen stand
    for themselves, the others for what comes after Latin-1."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): bytes([byte]) for byte in seen} | {
        chr(256 + at): bytes([byte]) for at, byte in enumerate(unseen)
    }


_BYTES = _byte_alphabet()


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _digest(folder: Path, source: Path) -> str:
    digest = hashlib.sha256()
    for file in (source, *(folder / name for name in ("tokenizer_config.json", "chat_template.jinja"))):
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()

"""From text to token ids and back, read off the tokenizer itself.

A token is a few bytes, looked up in a list, and a text grows by whole characters. The engine would decode to text as
well, but neither in bytes nor with what each single token stands for, and on the thread that steps all generations.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class UnknownTokenizerError(ValueError):
    """The tokenizer is of a kind whose tokens have no bytes of their own."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What each id stands for, maybe a part of a character.

    ``pieces``: as a prompt has it, special tokens by their names. ``texts``: as an output shows it, special tokens not
    at all. Ids that the model has and its tokenizer has not are empty.
    """

    pieces: list[bytes]
    texts: list[bytes]

    def text(self, ids: Iterable[int]) -> bytes:
        """The text of an output's ids; not valid UTF-8 where they begin or end in a character."""
        return b"".join([self.texts[token] for token in ids])


def vocabulary_of(tokenizer: str, size: int = 0) -> Vocabulary:
    """Of a ``tokenizer.json``'s content, for a model with ``size`` logits. Raises UnknownTokenizerError."""
    content = json.loads(tokenizer)
    model, added = content["model"], content.get("added_tokens") or []
    entries = model["vocab"]
    ids = entries if isinstance(entries, dict) else {token: number for number, (token, _) in enumerate(entries)}
    spelled = _speller(content.get("decoder"), model)
    count = 1 + max([*ids.values(), *(token["id"] for token in added), size - 1])
    pieces = [b""] * count
    for token, number in ids.items():
        pieces[number] = spelled(token)
    for token in added:  # taken as they are: no decoder spells them
        pieces[token["id"]] = token["content"].encode()
    texts = list(pieces)
    for token in added:
        if token["special"]:
            texts[token["id"]] = b""
    return Vocabulary(pieces, texts)


def _speller(decoder: dict[str, Any] | None, model: dict[str, Any]) -> Callable[[str], bytes]:
    parts = {part["type"]: part for part in _parts(decoder)}
    if "ByteLevel" in parts:
        return _byte_level
    if "ByteFallback" in parts or "Metaspace" in parts or model.get("byte_fallback"):
        space = parts.get("Metaspace", {}).get("replacement", _SPACE)
        return lambda token: _sentence_piece(token, space)
    kind = decoder["type"] if decoder else "no"
    raise UnknownTokenizerError(f"a tokenizer with {kind} decoder; byte-level and SentencePiece ones are known")


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _parts(inner)]
    return [decoder]


def _characters() -> dict[str, int]:
    """GPT-2's names for bytes: those that print are themselves, the others come after 255 in their order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTES = _characters()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:  # a token that was added by its text
        return token.encode()


def _sentence_piece(token: str, space: str) -> bytes:
    if (byte := _BYTE_TOKEN.fullmatch(token)) is not None:
        return bytes([int(byte[1], 16)])
    return token.replace(space, " ").encode()


class Detokenizer:
    """The text of one output as its tokens come: what it has given is valid UTF-8 at any time.

    What is no UTF-8 at all reads as U+FFFD. What it gives does not depend on how the tokens are grouped.
    """

    __slots__ = ("_decoder", "_texts")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._texts = vocabulary.texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """What ``ids`` add; a character that they begin waits for its last token."""
        return self._decoder.decode(b"".join([self._texts[token] for token in ids]))

    def flush(self) -> str:
        """The end: a character that was begun and not completed reads as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class Encoder:
    """Text into token ids, with copies of the model's tokenizer: nobody else changes their settings, so that they may
    be used from any thread."""

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: of the package ``tokenizers``."""
        content = tokenizer.to_str()
        self._parsing, self._plain = (type(tokenizer).from_str(content) for _ in range(2))
        for copy in (self._parsing, self._plain):
            copy.no_truncation()
            copy.no_padding()
        self._plain.encode_special_tokens = True

    def encode(self, text: str, *, parse_special: bool = True, add_special: bool = True) -> Sequence[int]:
        """``parse_special``: names of special tokens in the text are those tokens. ``add_special``: the model's own
        ones around a text are added."""
        tokenizer = self._parsing if parse_special else self._plain
        ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

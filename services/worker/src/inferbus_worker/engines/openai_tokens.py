"""Tokens of texts and chats: asked of an upstream that tells them, or of a tokenizer that lies beside the worker.

vLLM and llama.cpp tell them at addresses of their own, outside of OpenAI's API.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engine import Chat, Embed, Infer, Prompt, Source, Tokens
from inferbus_worker.engines.openai_body import chat_of
from inferbus_worker.engines.openai_errors import Kind, RefusedError, TooLongError, UpstreamError
from inferbus_worker.engines.openai_http import UpstreamHttp
from inferbus_worker.engines.openai_probe import Upstream

_SECONDS = 30.0
# Of texts in most languages; only where nobody can tell.
_BYTES_A_TOKEN = 4


class LocalTokenizer:
    """A ``tokenizer.json``. It counts, spells and reads texts; a chat needs its template, which is the upstream's."""

    def __init__(self, file: Path) -> None:
        """Raises InferBusError ``engine_start_failed``."""
        try:
            from tokenizers import Tokenizer  # an extra of this package
        except ImportError as error:
            raise start_failed("TOKENIZER needs the package tokenizers") from error
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare ones
            raise start_failed(f"the tokenizer {file} cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def tokens(self, text: str, parse_special: bool, add_special: bool) -> Tokens:
        self._tokenizer.encode_special_tokens = not parse_special
        read = self._tokenizer.encode(text, add_special_tokens=add_special)
        self._tokenizer.encode_special_tokens = False
        whole = text.encode()
        # Tokens inside one character have the whole of it as their place: the first one gets its bytes.
        pieces, at = list[bytes](), 0
        for token, (_, end) in zip(read.ids, read.offsets, strict=True):
            upto = len(text[:end].encode())
            pieces.append(whole[at:upto] if upto > at else b"" if end else self.text([token]))
            at = max(at, upto)
        return Tokens(list(read.ids), pieces)

    def text(self, ids: Sequence[int]) -> bytes:
        said: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return said.encode()


def guessed(source: Source, tokenizer: LocalTokenizer | None) -> int:
    """Input tokens, without the template's own: for a limit, or where the upstream never says."""
    if isinstance(source, Embed):
        return sum(guessed(one, tokenizer) for one in source.inputs)
    if isinstance(source, Infer):
        return 0  # refused by its capabilities
    if isinstance(source, Prompt) and not isinstance(source.content, str):
        return len(source.content)
    texts = [one.content for one in source.messages] if isinstance(source, Chat) else [str(source.content)]
    if tokenizer is not None:
        return sum(map(tokenizer.count, texts))
    return sum(len(text.encode()) // _BYTES_A_TOKEN + 1 for text in texts)


def known(ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Raises InferBusError (invalid) if one of ``ids`` is no token. ``vocabulary``: how many there are; 0: unknown."""
    for token in ids:
        if token < 0 or (vocabulary and token >= vocabulary):
            most = f"; its tokens are 0 to {vocabulary - 1}" if vocabulary else ""
            raise invalid(f"The model has no token {token}{most}.", param=param)


class UpstreamTokens:
    """Raises InferBusError."""

    def __init__(self, http: UpstreamHttp, upstream: Upstream, local: LocalTokenizer | None) -> None:
        self._http = http
        self._asking = upstream.asking
        self._model = upstream.asking.model
        self._kind = upstream.asking.dialect.tokenizer
        self._vocabulary = upstream.vocabulary or (local.vocabulary if local is not None else 0)
        self._local = local

    async def of(self, source: Prompt | Chat, parse_special: bool, add_special: bool, open_turn: bool) -> Tokens:
        if source == Chat(()):
            raise invalid("Send at least one message.", param="messages")
        if isinstance(source, Prompt) and not isinstance(source.content, str):
            known(source.content, self._vocabulary, "prompt")
            return Tokens(list(source.content), [await self.text([token]) for token in source.content])
        if self._kind == "llama_cpp":
            return await self._of_llama_cpp(source, parse_special, add_special, open_turn)
        if self._kind == "vllm":
            return await self._of_vllm(source, add_special, open_turn)
        if self._local is not None and isinstance(source, Prompt):
            return self._local.tokens(str(source.content), parse_special, add_special)
        raise _untold("messages" if isinstance(source, Chat) else "prompt")

    async def text(self, ids: Sequence[int]) -> bytes:
        known(ids, self._vocabulary, "tokens")
        if self._kind == "none":
            if self._local is None:
                raise _untold("tokens")
            return self._local.text(ids)
        answer = await self._ask("detokenize", {"model": self._model, "tokens": list(ids)})
        return str(answer["prompt" if self._kind == "vllm" else "content"]).encode()

    async def _of_llama_cpp(self, source: Prompt | Chat, parse: bool, add: bool, open_turn: bool) -> Tokens:
        if isinstance(source, Chat):
            chat = {**chat_of(self._asking, source), "add_generation_prompt": open_turn}
            text, parse, add = (await self._ask("apply-template", chat))["prompt"], True, False
        else:
            text = str(source.content)
        body = {"content": text, "parse_special": parse, "add_special": add, "with_pieces": True}
        said = (await self._ask("tokenize", body))["tokens"]
        pieces = [one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"]) for one in said]
        return Tokens([one["id"] for one in said], pieces)

    async def _of_vllm(self, source: Prompt | Chat, add: bool, open_turn: bool) -> Tokens:
        """It reads special tokens as such, always."""
        body: dict[str, Any] = {"model": self._model}
        if isinstance(source, Chat):
            body |= {**chat_of(self._asking, source), "add_generation_prompt": open_turn}
            body.pop("tool_choice", None)
        else:
            body |= {"prompt": source.content, "add_special_tokens": add}
        answer = await self._ask("tokenize", body | {"return_token_strs": True})
        return Tokens(answer["tokens"], [_spelled(text) for text in answer["token_strs"]])

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        try:
            answer = await self._http.ask_root(path, body, _SECONDS)
            if not isinstance(answer, dict):
                raise UpstreamError(Kind.BROKEN, "an answer of an unknown form")
            return answer
        except RefusedError as refusal:
            raise refusal.error from refusal
        except TooLongError as refusal:
            raise refusal.refusal from refusal
        except (UpstreamError, aiohttp.ClientError) as failure:
            raise engine_failed(str(failure)) from failure


def _untold(param: str) -> InferBusError:
    return invalid("The tokens of this model cannot be told.", param=param, reason="unsupported_parameter")


def _byte_letters() -> dict[str, int]:
    """The letters that GPT-2's vocabularies write bytes in: printable ones as they are, others from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_LETTERS = _byte_letters()
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _spelled(token: str) -> bytes:
    """A vocabulary's entry as the text that it stands for: in GPT-2's letters, or in SentencePiece's."""
    if (byte := _BYTE.fullmatch(token)) is not None:
        return bytes([int(byte[1], 16)])
    if all(letter in _LETTERS for letter in token):
        return bytes(_LETTERS[letter] for letter in token)
    return token.replace("\u2581", " ").encode()

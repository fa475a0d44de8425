"""An engine twice: behind a whole InferBus, and called directly. Both sides are asked the same, and answer greedily.

Of ``triton`` and ``openai`` both sides ask one and the same server; ``llama_cpp`` has its own in the worker, and beside
it a second one of the same settings. What prompts have in common at their beginning is read from the engine's cache on
both sides, or (openai) on neither.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from inferbus_worker.engine import Chat, Message
from inferbus_worker.engines.triton_tokenizer import load
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from bench.load import Answer, connect, request_bytes
from bench.local import running
from services.worker.tests import smollm2_tokenizer
from services.worker.tests.openai_upstreams import servers
from services.worker.tests.triton_repository import server
from tests.harness.local import Stack

MODEL = "smollm2-135m-instruct"
TOKENS = 32
_CAPACITY = "16"


class Side(Protocol):
    async def ask(self, prompt: str) -> Answer:
        """A streamed answer of TOKENS tokens."""
        ...

    def read(self, answer: Answer) -> tuple[int, str]:
        """How many tokens an answer has, and its text. Raises RuntimeError for one that failed."""
        ...


@dataclass(frozen=True)
class Pair:
    stack: Stack
    platform: Side
    direct: Side


class OpenAiSide:
    """A stream over OpenAI's API, on a connection of its own: llama.cpp closes idle ones at any moment."""

    def __init__(self, url: str, key: str, **fields: Any) -> None:
        self._url, self._key = url, key
        self._fields = {
            "model": MODEL, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": TOKENS,
            "temperature": 0, **fields,
        }  # fmt: skip

    async def ask(self, prompt: str) -> Answer:
        body = {**self._fields, "messages": [{"role": "user", "content": prompt}]}
        connection = await connect(self._url, keep=True)
        try:
            return await connection.ask(request_bytes(self._url, self._key, body))
        finally:
            connection.transport.close()  # type: ignore[union-attr]

    def read(self, answer: Answer) -> tuple[int, str]:
        if answer.status != 200:
            raise RuntimeError(f"{self._url} answered {answer.status}: {answer.body[:500]!r}")
        text, tokens = "", 0
        for line in _unchunked(answer.body).splitlines():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"{self._url} broke off: {event['error']}")
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return tokens, text


def _unchunked(body: bytes) -> bytes:
    found, at = b"", 0
    while (end := body.find(b"\r\n", at)) >= 0 and (size := int(body[at:end], 16)):
        found += body[end + 2 : end + 2 + size]
        at = end + 4 + size
    return found


class TritonSide:
    """The core model over tritonclient's asyncio streams, with the ids that the chat template gives."""

    def __init__(self, client: InferenceServerClient, tokenizer: Path) -> None:
        files = load(tokenizer)
        assert files.tokenizer is not None
        assert files.template is not None
        self._client, self._tokenizer, self._template = client, files.tokenizer, files.template
        self._said: dict[str, list[int]] = {}
        self._asked = 0

    async def ask(self, prompt: str) -> Answer:
        text = self._template.render(Chat((Message("user", prompt),)))
        ids = self._tokenizer.encode(text, add_special=False)
        self._asked += 1
        name, said, gaps = str(self._asked), list[int](), list[float]()
        started = last = perf_counter()
        first = 0.0
        async for result, error in self._client.stream_infer(self._requests(name, ids)):
            if error is not None:
                raise error
            now = perf_counter()
            new = result.as_numpy("output_ids")
            if new is None or not new.size:
                continue  # the final flag alone
            if first:
                gaps.append(now - last)
            first, last = first or now, now
            said += new.reshape(-1).tolist()
        self._said[name] = said
        return Answer(200, len(said), first - started, perf_counter() - started, name, gaps)

    def read(self, answer: Answer) -> tuple[int, str]:
        ids = self._said.pop(answer.request_id)
        said = [token for token in ids if token not in self._tokenizer.end_ids]
        return len(said), self._tokenizer.decode(said).decode(errors="replace")

    async def _requests(self, name: str, ids: list[int]) -> AsyncIterator[dict[str, Any]]:
        """What the engine sends, too."""
        ends = self._tokenizer.end_ids
        inputs = {
            "input_ids": np.array([ids], np.int32),
            "input_lengths": np.array([[len(ids)]], np.int32),
            "request_output_len": np.array([[TOKENS]], np.int32),
            "streaming": np.array([[True]]),
            "exclude_input_in_output": np.array([[True]]),
            "runtime_top_k": np.array([[1]], np.int32),
            "end_id": np.array([[ends[0]]], np.int32),
            "stop_words_list": np.array([[ends[1:], list(range(1, len(ends)))]], np.int32),
        }
        yield {
            "model_name": "tensorrt_llm",
            "request_id": name,
            "inputs": [_tensor(key, value) for key, value in inputs.items()],
            "outputs": [InferRequestedOutput("output_ids"), InferRequestedOutput("sequence_length")],
        }


_TYPES = {np.dtype(np.int32): "INT32", np.dtype(np.bool_): "BOOL"}


def _tensor(name: str, value: Any) -> InferInput:
    tensor = InferInput(name, value.shape, _TYPES[value.dtype])
    tensor.set_data_from_numpy(value)
    return tensor


def _platform(stack: Stack) -> OpenAiSide:
    return OpenAiSide(stack.chat_url, stack.api_key)


def _stack(engine: str, **variables: str) -> AbstractAsyncContextManager[Stack]:
    return running(
        engine, "--no-embeddings", INFERBUS_WORKER_MODEL=MODEL, INFERBUS_WORKER_CAPACITY=_CAPACITY, **variables
    )


@asynccontextmanager
async def llama_cpp() -> AsyncIterator[Pair]:
    async with server.llama(None) as own, _stack("llama_cpp") as stack:
        yield Pair(stack, _platform(stack), OpenAiSide(f"{own.url}/v1/chat/completions", "-"))


@asynccontextmanager
async def openai() -> AsyncIterator[Pair]:
    async with servers.llama() as own, _stack("openai", INFERBUS_WORKER_OPENAI__BASE_URL=own.url) as stack:
        # The engine looks for no cached prefix in a server that keeps tenants not apart.
        direct = OpenAiSide(f"{own.url}/chat/completions", "-", cache_prompt=False)
        yield Pair(stack, _platform(stack), direct)


@asynccontextmanager
async def triton() -> AsyncIterator[Pair]:
    with TemporaryDirectory() as name:
        tokenizer = await asyncio.to_thread(smollm2_tokenizer.write, Path(name) / "tokenizer")
        async with (
            server.llama(None) as model,
            server.triton(Path(name), model.url.removeprefix("http://"), ["tensorrt_llm"]) as there,
            _stack(
                "triton", INFERBUS_WORKER_TRITON__URL=there.grpc, INFERBUS_WORKER_TRITON__TOKENIZER=str(tokenizer)
            ) as stack,
            InferenceServerClient(there.grpc) as client,
        ):
            yield Pair(stack, _platform(stack), TritonSide(client, tokenizer))


# No process may be started any more once gRPC has threads here: triton is the last.
PAIRS = {"llama_cpp": llama_cpp, "openai": openai, "triton": triton}
MISSING: Mapping[str, Any] = {
    "llama_cpp": servers.llama_missing, "triton": server.missing, "openai": servers.llama_missing,
}  # fmt: skip

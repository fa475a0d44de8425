"""One completion of llama.cpp's server, read as typed items.

The server streams an event a token, with two gaps closed here: it sends no event for tokens that end inside a character
(their ids are found again from the text), and it sends one for the end-of-turn token (nobody receives that).
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from inferbus_worker.engine import Finish, Sampling


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompt is known: ``tokens`` in all, ``cached`` of them served from the KV cache."""

    tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Delta:
    token_ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    reason: Finish


class CompletionError(Exception):
    """The server refused or gave up one completion. ``kind`` is its error type; the process itself is well."""

    def __init__(self, kind: str, message: str, prompt_tokens: int) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.prompt_tokens = prompt_tokens


Tokenize = Callable[[str], Awaitable[list[int]]]


def request_body(prompt: str, resume_ids: list[int], sampling: Sampling, max_new: int | None) -> bytes:
    """The POST body of /completion: OpenAI's defaults, not llama.cpp's."""
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
    repetition = sampling.repetition_penalty or 1.0
    body: dict[str, Any] = {
        "prompt": [prompt, *resume_ids] if resume_ids else prompt,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        # A prompt from the cache gives the last bits of the logits differently, which greedy does not notice but a
        # draw does: who names a seed gets the same draw each time, and pays for the prefill.
        "cache_prompt": sampling.seed is None or temperature == 0,
        "n_predict": -1 if max_new is None else max_new,
        "temperature": temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": 0.0,
        "frequency_penalty": frequency,
        "presence_penalty": presence,
        "repeat_penalty": repetition,
        "repeat_last_n": 1 << 20,  # the penalties see the whole context
        "samplers": ["penalties", "temperature", "top_k", "top_p"] if temperature > 0 else ["penalties", "temperature"],
        "response_fields": ["stop", "stop_type", "tokens_predicted"],
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % 0xFFFFFFFF  # the largest one means "random" to llama.cpp
    return orjson.dumps(body)


async def completion(response: aiohttp.ClientResponse, tokenize: Tokenize) -> AsyncIterator[Prefill | Delta | Ended]:
    """The items of an answer: one Prefill or more, Deltas, one Ended.

    Raises CompletionError if the server refuses or gives up, aiohttp.ClientError if the connection breaks.
    """
    if response.status != 200:
        raise _error_of(orjson.loads(await response.read()))
    seen = 0
    unsure: int | None = None  # a token without text: the next event says whether it was the end-of-turn token
    async for event in _events(response):
        if "error" in event:
            raise _error_of(event)
        if (progress := event.get("prompt_progress")) is not None:
            yield Prefill(progress["total"], progress["cache"])
            continue
        if event.get("stop"):
            if unsure is not None and event.get("stop_type") != "eos":
                yield Delta([unsure], "")
            yield Ended(Finish.STOP if event.get("stop_type") == "eos" else Finish.LENGTH)
            return
        if unsure is not None:
            yield Delta([unsure], "")
            unsure = None
        hidden, seen = event["tokens_predicted"] - seen - 1, event["tokens_predicted"]
        text, last = event["content"], event["tokens"][-1]
        if hidden > 0:
            yield Delta(await tokenize(text), text)
        elif text:
            yield Delta([last], text)
        else:
            unsure = last
    raise aiohttp.ClientPayloadError("the stream ended without its last event")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events. Own framing, since aiohttp's line reader refuses long lines."""
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            _, _, data = event.partition(b":")
            if data.startswith(b" {"):  # comments and keep-alives carry no object
                yield orjson.loads(data)


def _error_of(body: Any) -> CompletionError:
    error = body.get("error", {}) if isinstance(body, dict) else {}
    return CompletionError(
        str(error.get("type", "unknown")), str(error.get("message", "")), int(error.get("n_prompt_tokens", 0))
    )

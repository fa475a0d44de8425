"""One completion of llama.cpp's server, read as typed items.

The server streams an event a token, with two gaps closed here: it sends no event for tokens that end inside a character
(their ids are found again from the text, their probabilities are lost), and it sends one for the end-of-turn token
(nobody receives that).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from inferbus_worker.core.slots import Content
from inferbus_worker.engine import UNKNOWN_LOGPROB, Alternative, Finish, Sampling, TokenLogprob


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompt is known: ``tokens`` in all, ``cached`` of them served from the KV cache."""

    tokens: int
    cached: int


@dataclass(frozen=True, slots=True)
class Delta:
    """``logprobs``: one a token if they were asked for, else empty."""

    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ended:
    reason: Finish


class CompletionError(Exception):
    """The server refused or gave up one completion. ``kind`` is its error type; the process itself is well."""

    def __init__(self, kind: str, message: str, prompt_tokens: int) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.prompt_tokens = prompt_tokens


Spell = Callable[[str], Awaitable[list[int]]]


@dataclass(frozen=True, slots=True)
class Task:
    """One completion as the server is asked for it.

    ``resume_ids`` follow the prompt and were generated before. ``slot``: the one that runs it; ``reuse``: it may read
    on from what that slot holds. ``seed``: used if ``sampling`` has none. ``scales``: of each adapter, in their order.
    """

    prompt: Content
    resume_ids: Sequence[int]
    sampling: Sampling
    max_new: int | None
    slot: int
    reuse: bool
    grammar: str = ""
    seed: int | None = None
    scales: Sequence[float] = ()


def request_body(task: Task) -> bytes:
    """The POST body of /completion: OpenAI's defaults, not llama.cpp's."""
    sampling = task.sampling
    temperature = 1.0 if sampling.temperature is None else sampling.temperature
    seed = task.seed if sampling.seed is None else sampling.seed
    samplers = ["penalties", "temperature"]
    if temperature > 0:
        samplers += ["top_k", "top_p", "min_p"] if sampling.min_p else ["top_k", "top_p"]
    body: dict[str, Any] = {
        "prompt": _prompt(task),
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "id_slot": task.slot,
        # A prompt from the cache gives the last bits of the logits differently, which greedy does not notice but a
        # draw does: who names a seed gets the same draw each time, and pays for the prefill.
        "cache_prompt": task.reuse and (sampling.seed is None or temperature == 0),
        "n_predict": -1 if task.max_new is None else task.max_new,
        "temperature": temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p or 0.0,
        "frequency_penalty": sampling.frequency_penalty or 0.0,
        "presence_penalty": sampling.presence_penalty or 0.0,
        "repeat_penalty": sampling.repetition_penalty or 1.0,
        "repeat_last_n": 1 << 20,  # the penalties see the whole context
        "samplers": samplers,
        "response_fields": ["stop", "stop_type", "tokens_predicted"],
    }
    if seed is not None:
        body["seed"] = seed % 0xFFFFFFFF  # the largest one means "random" to llama.cpp
    if task.scales:
        body["lora"] = [{"id": number, "scale": scale} for number, scale in enumerate(task.scales)]
    if task.grammar:
        body["grammar"] = task.grammar
    if sampling.logit_bias:
        body["logit_bias"] = sampling.logit_bias
    if sampling.logprobs is not None:
        body["n_probs"] = max(1, sampling.logprobs)  # 0 would mean none, also of the token itself
    return orjson.dumps(body)


def _prompt(task: Task) -> str | list[int | str]:
    if isinstance(task.prompt, str):
        return [task.prompt, *task.resume_ids] if task.resume_ids else task.prompt
    return [*task.prompt, *task.resume_ids]


class Logprobs:
    """Reads the server's log-probabilities, ``alternatives`` a token."""

    def __init__(self, alternatives: int, vocabulary: Sequence[bytes]) -> None:
        self._alternatives = alternatives
        self._vocabulary = vocabulary

    def of(self, ids: list[int], event: dict[str, Any]) -> list[TokenLogprob]:
        """One a token of an event: the last is the one that the server speaks of."""
        said = event["completion_probabilities"][-1]
        top = said["top_logprobs"][: self._alternatives]
        hidden = [TokenLogprob(token, self._vocabulary[token], UNKNOWN_LOGPROB) for token in ids[:-1]]
        alternatives = tuple(Alternative(one["id"], self._vocabulary[one["id"]], one["logprob"]) for one in top)
        return [*hidden, TokenLogprob(ids[-1], self._vocabulary[ids[-1]], said["logprob"], alternatives)]


async def completion(
    response: aiohttp.ClientResponse, spell: Spell, logprobs: Logprobs | None
) -> AsyncIterator[Prefill | Delta | Ended]:
    """The items of an answer: one Prefill or more, Deltas, one Ended.

    Raises CompletionError if the server refuses or gives up, aiohttp.ClientError if the connection breaks.
    """
    if response.status != 200:
        raise _error_of(orjson.loads(await response.read()))
    seen = 0
    unsure: Delta | None = None  # a token without text: the next event says whether it was the end-of-turn token
    async for event in _events(response):
        if "error" in event:
            raise _error_of(event)
        if (progress := event.get("prompt_progress")) is not None:
            yield Prefill(progress["total"], progress["cache"])
            continue
        if event.get("stop"):
            if unsure is not None and event.get("stop_type") != "eos":
                yield unsure
            yield Ended(Finish.STOP if event.get("stop_type") == "eos" else Finish.LENGTH)
            return
        if unsure is not None:
            yield unsure
            unsure = None
        hidden, seen = event["tokens_predicted"] - seen - 1, event["tokens_predicted"]
        text = event["content"]
        ids = await spell(text) if hidden > 0 else event["tokens"][-1:]
        delta = Delta(ids, text) if logprobs is None else Delta(ids, text, logprobs.of(ids, event))
        if text:
            yield delta
        else:
            unsure = delta
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

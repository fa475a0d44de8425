"""What an upstream says, event by event, in one form: chat or completion, streamed or whole.

Fields beyond OpenAI's are read wherever they are (vLLM, SGLang, trtllm-serve, llama.cpp and dasLLAMA were looked at):
nobody sends one that means something else.
"""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from inferbus_worker.engine import UNKNOWN_TOKEN, Alternative, TokenLogprob

MAX_EVENT = 32 * 1024 * 1024


class BrokenAnswerError(Exception):
    """The upstream stopped in the middle, or said what nobody understands. The text is for the log only."""


class FailedEventError(Exception):
    """It said in its stream that it failed. ``status``: the HTTP status that it names, 500 if none."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"error event {status}")
        self.status = status
        self.body = body


@dataclass(slots=True)
class Chunk:
    """One event. ``finish`` and ``stop`` come with the last one that has a choice: how it ended, and the stop string
    that it met, if the upstream says so. ``input_tokens``, ``cached`` and ``output_tokens``: as counted so far.
    ``ids``: of the tokens of this event. ``final``: its counts are the last ones. ``answer``: which one it is of."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    ids: list[int] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    stop: str | None = None
    input_tokens: int | None = None
    cached: int | None = None
    output_tokens: int | None = None
    final: bool = False
    answer: str | None = None

    @property
    def says(self) -> bool:
        """There is something of the answer in it."""
        return bool(self.text or self.reasoning or self.calls or self.ids)


async def chunks_of(response: aiohttp.ClientResponse) -> AsyncGenerator[Chunk, None]:
    """Of a stream. Ends with ``[DONE]``, or with the connection if the answer was complete by then.

    Raises BrokenAnswerError, FailedEventError, aiohttp.ClientError."""
    finished = False
    async for data in _data(response):
        if data == b"[DONE]":
            return
        event = _parsed(data)
        chunk = chunk_of(event)
        finished = finished or chunk.finish is not None
        yield chunk
    if not finished:
        raise BrokenAnswerError("the stream ended in the middle")


async def _data(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """What the events carry. Own framing, since aiohttp's line reader refuses long lines. An event that is cut off at
    the end is not one."""
    rest, lines = b"", list[bytes]()
    async for received in response.content.iter_any():
        *whole, rest = (rest + received).split(b"\n")
        if len(rest) > MAX_EVENT:
            raise BrokenAnswerError("an event is too long")
        for line in whole:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:  # other lines are comments, names and numbers
                yield b"\n".join(lines)
                lines.clear()


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:  # half a surrogate pair in an escape: the other half comes with the next event
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswerError(f"an event that is no JSON: {data[:40]!r}") from error


def chunk_of(event: Any) -> Chunk:
    """Of an event, or of a whole answer. Raises BrokenAnswerError, FailedEventError."""
    if not isinstance(event, dict):
        raise BrokenAnswerError("an event that is no object")
    if event.get("error"):
        error = event["error"]
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else 500
        raise FailedEventError(status, event)
    chunk = Chunk(answer=event.get("id"))
    try:
        _add_counts(chunk, event)
        choices = event.get("choices")
        if choices:
            _add_choice(chunk, choices[0], event.get("__verbose") or {})
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise BrokenAnswerError(f"an event of an unknown form: {error!r}") from error
    return chunk


def _add_counts(chunk: Chunk, event: dict[str, Any]) -> None:
    if usage := event.get("usage"):
        chunk.input_tokens, chunk.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        chunk.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        chunk.final = not event.get("choices") or event["choices"][0].get("finish_reason") is not None
    elif (timings := event.get("timings") or {}).keys() >= {"prompt_n", "predicted_n"}:  # llama.cpp's
        chunk.cached = timings.get("cache_n", 0)
        chunk.input_tokens = timings["prompt_n"] + timings.get("cache_n", 0)
        chunk.output_tokens = timings["predicted_n"]


def _add_choice(chunk: Chunk, choice: dict[str, Any], verbose: dict[str, Any]) -> None:
    """``verbose``: where llama.cpp says what ended it."""
    said = choice.get("delta") or choice.get("message") or {}
    # Texts of a completion lie in the choice itself; what a model refuses to say is text too.
    chunk.text = said.get("content") or choice.get("text") or said.get("refusal") or ""
    chunk.reasoning = said.get("reasoning_content") or said.get("reasoning") or ""
    if not isinstance(chunk.text, str) or not isinstance(chunk.reasoning, str):
        raise TypeError("text that is none")
    chunk.calls = said.get("tool_calls") or []
    chunk.ids = choice.get("token_ids")
    chunk.finish = choice.get("finish_reason")
    if logprobs := choice.get("logprobs"):
        chunk.logprobs = _logprobs(logprobs)
    stop = choice.get("stop_reason") or choice.get("matched_stop") or verbose.get("stopping_word")
    chunk.stop = stop if isinstance(stop, str) else None  # or the id of a token


def _logprobs(said: dict[str, Any]) -> list[TokenLogprob]:
    """Of a chat, or a completion in its old form. Ids are llama.cpp's addition."""
    if (entries := said.get("content")) is not None:
        return [
            TokenLogprob(_id(one), _bytes(one), one["logprob"], tuple(map(_alternative, one.get("top_logprobs") or ())))
            for one in entries
        ]
    tokens, values = said.get("tokens") or (), said.get("token_logprobs") or ()
    tops = said.get("top_logprobs") or [None] * len(tokens)
    made = []
    for token, value, top in zip(tokens, values, tops, strict=False):
        others = sorted((top or {}).items(), key=lambda item: -item[1])
        alternatives = tuple(Alternative(UNKNOWN_TOKEN, text.encode(), logprob) for text, logprob in others)
        made.append(TokenLogprob(UNKNOWN_TOKEN, token.encode(), 0.0 if value is None else value, alternatives))
    return made


def _alternative(one: dict[str, Any]) -> Alternative:
    return Alternative(_id(one), _bytes(one), one["logprob"])


def _id(one: dict[str, Any]) -> int:
    return int(one.get("id", UNKNOWN_TOKEN))


def _bytes(one: dict[str, Any]) -> bytes:
    spelled = one.get("bytes")
    return str(one["token"]).encode(errors="replace") if spelled is None else bytes(spelled)

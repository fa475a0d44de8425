"""What an upstream is and can do, found out at the start: its list of models, and a few requests of one token or so.

What a server only says is not believed: some take ``response_format``, ``tool_choice`` or ``logprobs`` and do nothing.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson
from inferbus_runtime import clock

from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engines.openai_body import Asking, Events
from inferbus_worker.engines.openai_dialect import DIALECTS, Continuing, dialect_of
from inferbus_worker.engines.openai_errors import Kind, RefusedError, TooLongError, UpstreamError
from inferbus_worker.engines.openai_events import BrokenAnswerError, Chunk, FailedEventError, chunk_of, chunks_of
from inferbus_worker.engines.openai_http import NOBODY, UpstreamHttp

log = logging.getLogger(__name__)

# Of an upstream that does not say: long enough for any input that it takes.
_UNKNOWN_CONTEXT = 131072
_RETRY_SECONDS = 0.5
# Of its list of models, asked again until the start's own time is up: some answer one connection and not another.
_LIST_SECONDS = 5.0
_MAX_NAMED = 8
_TRIES = 3
_SAY = [{"role": "user", "content": "Say hi."}]
_FORM = {
    "type": "object",
    "properties": {"zq": {"type": "boolean"}},
    "required": ["zq"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "zq_now", "description": "The time", "parameters": _FORM}


@dataclass(frozen=True, slots=True)
class Upstream:
    """``vocabulary``: how many tokens it knows, 0 if it does not say. ``dimensions``: of its vectors."""

    asking: Asking
    capabilities: tuple[str, ...]
    vocabulary: int = 0
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator has set; None and "auto": to be found out. ``forms``: outputs can be followed here, as those
    with a form must be. ``seconds``: of one request."""

    model: str | None
    dialect: str
    continuing: Continuing | None
    context_length: int | None
    capabilities: tuple[str, ...] | None
    streams: bool
    shares: bool
    forms: bool
    seconds: float


async def upstream_of(http: UpstreamHttp, wanted: Wanted, start_seconds: float) -> Upstream:
    """Waits until it is there. Raises InferBusError ``engine_start_failed``."""
    card = await _card(http, wanted, clock.monotonic() + start_seconds)
    dialect = dialect_of(str(card.get("owned_by"))) if wanted.dialect == "auto" else DIALECTS[wanted.dialect]
    meta = card.get("meta") or {}
    context = wanted.context_length or card.get("max_model_len") or meta.get("n_ctx") or _UNKNOWN_CONTEXT
    asking = Asking(
        model=card["id"],
        dialect=dialect,
        continuing=wanted.continuing or dialect.continuing,
        context_length=int(context),
        streams=wanted.streams,
        shares=wanted.shares,
    )
    upstream = Upstream(asking, wanted.capabilities or (), int(meta.get("n_vocab") or 0))
    return await _Probe(http, wanted).tried(upstream)


async def _card(http: UpstreamHttp, wanted: Wanted, until: float) -> dict[str, Any]:
    """Of the model that is served, from the list of models."""
    while True:
        try:
            models = await http.models(min(_LIST_SECONDS, wanted.seconds))
            break
        except UpstreamError as failure:
            if failure.kind is Kind.DENIED and failure.status in (404, 405) and wanted.model:
                return {"id": wanted.model}  # it has no list
            if failure.kind is Kind.DENIED or clock.monotonic() >= until:
                raise start_failed(f"the upstream's list of models: {failure}") from failure
        except RefusedError as refusal:
            raise start_failed(f"the upstream's list of models: {refusal}") from refusal
        await asyncio.sleep(_RETRY_SECONDS)
    names = [model["id"] for model in models]
    found = [model for model in models if wanted.model in (model["id"], *(model.get("aliases") or ()))]
    if wanted.model and not found:
        # A managed API need not list what it serves, and tells it at the first request.
        return {"id": wanted.model, "owned_by": models[0].get("owned_by") if models else None}
    if not wanted.model and len(models) != 1:
        raise start_failed(f"the upstream has {len(names)} models; name one in UPSTREAM_MODEL: {names[:_MAX_NAMED]}")
    return (found or models)[0]


class _Probe:
    def __init__(self, http: UpstreamHttp, wanted: Wanted) -> None:
        self._http = http
        self._seconds = wanted.seconds
        self._told = wanted.capabilities
        self._forms = wanted.forms

    async def tried(self, upstream: Upstream) -> Upstream:
        """With all that is not told found out."""
        asking = upstream.asking
        if (told := self._told) is not None:
            dimensions = await self._dimensions(asking) if "embeddings" in told else 0
            can = tuple(name for name in told if self._forms or name != "structured_output")
            return replace(upstream, capabilities=can, dimensions=dimensions)
        chat, asking = await self._chat(asking)
        checks: dict[str, Callable[[Asking], Awaitable[bool]]] = {"completions": self._completions}
        if chat is not None:
            checks |= {
                "tools": self._tools,
                "logprobs": self._logprobs,
                "logit_bias": self._logit_bias,
            }
            if self._forms:
                checks["structured_output"] = self._structured
        if chat is not None and asking.streams:
            asking = await self._stream(asking)
        if chat is not None and asking.dialect.lark and self._forms:
            asking = replace(asking, grammars=await self._grammars(asking))
        answers = await asyncio.gather(self._dimensions(asking), *(check(asking) for check in checks.values()))
        found = ["chat"] if chat is not None else []
        found += [name for name, can in zip(checks, answers[1:], strict=True) if can]
        if chat is not None and chat.reasoning:
            found.append("reasoning")
        if answers[0]:
            found.append("embeddings")
        if not found:
            raise start_failed("the upstream refuses chats, completions and embeddings")
        return replace(upstream, asking=asking, capabilities=tuple(found), dimensions=answers[0])

    async def _chat(self, asking: Asking) -> tuple[Chunk | None, Asking]:
        """Some models know the limit by its newer name only."""
        for limit in ("max_tokens", "max_completion_tokens"):
            body = {"model": asking.model, "messages": _SAY, limit: 16}
            try:
                return chunk_of(await self._http.ask("chat/completions", body, self._seconds)), replace(
                    asking, limit=limit
                )
            except TooLongError:
                continue
            except (RefusedError, BrokenAnswerError, FailedEventError):
                break
            except UpstreamError as failure:
                if failure.status in (404, 405, 501):
                    break
                raise start_failed(f"the upstream's chat: {failure}") from failure
        return None, asking

    async def _stream(self, asking: Asking) -> Asking:
        """Whether the field is known that asks for the usage of a stream, and whether its events name their answer."""
        body: dict[str, Any] = {"model": asking.model, "messages": _SAY, asking.limit: 4, "stream": True}
        options = {"include_usage": True, **asking.dialect.stream_options}
        for usage, more in ((True, {"stream_options": options}), (False, {})):
            try:
                async with (
                    asyncio.timeout(self._seconds),
                    self._http.post("chat/completions", orjson.dumps(body | more)) as answer,
                ):
                    await self._http.checked(answer, NOBODY)
                    chunks = [chunk async for chunk in chunks_of(answer)]
                names = {chunk.answer for chunk in chunks}
                named = len(chunks) > 1 and len(names) == 1 and None not in names
                events = Events(named, opened=named and not chunks[0].says)
                return replace(asking, usage=usage, events=events)
            except (RefusedError, TooLongError):
                continue
            except (UpstreamError, aiohttp.ClientError, TimeoutError, BrokenAnswerError, FailedEventError) as failure:
                raise start_failed(f"the upstream's first stream: {failure!r}") from failure
        raise start_failed("the upstream refuses to stream; set UNARY if it cannot")

    async def _completions(self, asking: Asking) -> bool:
        answer = await self._try("completions", {"model": asking.model, "prompt": "Hi", asking.limit: 1})
        return answer is not None

    async def _grammars(self, asking: Asking) -> bool:
        """Those of ours are understood, and held to."""
        answer = await self._ask(asking, {"grammar": "%llguidance {}\nstart: /zqzq/\n", asking.limit: 8})
        return answer is not None and answer.text == "zqzq"

    async def _tools(self, asking: Asking) -> bool:
        """A call that must be is one."""
        if asking.grammars:
            return True
        function = _FUNCTION | ({"strict": True} if asking.dialect.strict_tools else {})
        tools = [{"type": "function", "function": function}]
        answer = await self._ask(asking, {"tools": tools, "tool_choice": "required", asking.limit: 96})
        if answer is None:
            return False
        return bool(answer.calls) or answer.text.lstrip().startswith("<tool_call>")

    async def _structured(self, asking: Asking) -> bool:
        if asking.grammars:
            return True
        schema = {"name": "answer", "schema": _FORM, "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}, asking.limit: 48}
        answer = await self._ask(asking, form)
        if answer is None:
            return False
        try:
            return set(json.loads(answer.text)) == {"zq"}
        except (ValueError, TypeError):
            return False

    async def _logprobs(self, asking: Asking) -> bool:
        answer = await self._ask(asking, {"logprobs": True, "top_logprobs": 1, asking.limit: 8})
        return answer is not None and bool(answer.logprobs)

    async def _logit_bias(self, asking: Asking) -> bool:
        """One that wins every time says one thing over and over, and another one another."""
        texts = []
        for token in ("30", "60"):
            answer = await self._ask(asking, {"logit_bias": {token: 100}, asking.limit: 3})
            texts.append("" if answer is None else answer.text)
        return all(text and text == text[: len(text) // 3] * 3 for text in texts) and texts[0] != texts[1]

    async def _dimensions(self, asking: Asking) -> int:
        answer = await self._try("embeddings", {"model": asking.model, "input": ["Hi"]})
        try:
            return len(answer["data"][0]["embedding"]) if answer is not None else 0
        except (TypeError, KeyError, IndexError):
            return 0

    async def _ask(self, asking: Asking, more: dict[str, Any]) -> Chunk | None:
        answer = await self._try("chat/completions", {"model": asking.model, "messages": _SAY} | more)
        try:
            return None if answer is None else chunk_of(answer)
        except (BrokenAnswerError, FailedEventError):
            return None

    async def _try(self, path: str, body: dict[str, Any]) -> Any:
        """None: it cannot. Raises InferBusError if nobody can tell."""
        for attempt in range(_TRIES):
            try:
                return await self._http.ask(path, body, self._seconds)
            except (RefusedError, TooLongError):
                return None
            except UpstreamError as failure:
                if failure.kind is Kind.DENIED or failure.status == 501:
                    return None
                log.info("upstream at its start", extra={"path": path, "error": str(failure)})
                unsure = failure
            await asyncio.sleep(_RETRY_SECONDS * 2**attempt)
        if unsure.kind is Kind.BROKEN:  # what it cannot do may end in a fault of its own
            return None
        raise start_failed(f"the upstream at its start: {unsure}")

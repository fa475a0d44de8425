"""Any server that speaks OpenAI's API: vLLM, SGLang, trtllm-serve, TGI, llama.cpp, a managed one.

One HTTP request a generation, streamed; dropping the connection is its cancel. What breaks off is gone on with, within
a budget of retries, and nobody sees it; an upstream that keeps failing is left alone for a while, and one that is gone
counts as a dead engine.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config, OpenAiConfig
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.grammar import grammar_of
from inferbus_worker.core.sampling import fault_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    Embed,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Source,
    Step,
    Tokens,
    ToolMode,
)
from inferbus_worker.engines.openai_answer import Times
from inferbus_worker.engines.openai_body import unsupported
from inferbus_worker.engines.openai_generate import Ended, Generating
from inferbus_worker.engines.openai_health import Health, Patience
from inferbus_worker.engines.openai_http import UpstreamHttp, key_of
from inferbus_worker.engines.openai_limits import BreakerLimits
from inferbus_worker.engines.openai_probe import Upstream, Wanted, upstream_of
from inferbus_worker.engines.openai_run import Run
from inferbus_worker.engines.openai_tokens import LocalTokenizer, UpstreamTokens, guessed, known
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import Follows, Runs, not_up

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 64
_PROBE_SECONDS = 60.0
# The package that follows outputs, an extra of this one.
_FORMS = find_spec("llguidance") is not None


class OpenAi:
    """Engine ``openai``."""

    def __init__(self, model: str | None, capacity: int, context_length: int | None, settings: OpenAiConfig) -> None:
        self._model = model
        self._capacity = capacity
        self._context_length = context_length
        self._settings = settings
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "OpenAi":
        return cls(config.model, config.capacity or DEFAULT_CAPACITY, config.context_length, config.openai)

    def _reset(self) -> None:
        self._runs: Runs[Run] = Runs(self._capacity)
        self._outbox = Outbox(self._runs.running)
        self._http: UpstreamHttp | None = None
        self._upstream: Upstream | None = None
        self._health: Health | None = None
        self._generating: Generating | None = None
        self._tokens: UpstreamTokens | None = None
        self._local: LocalTokenizer | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> EngineInfo:
        """Waits for the upstream, for ``start_timeout``. Raises InferBusError."""
        settings = self._settings
        self._local = LocalTokenizer(settings.tokenizer) if settings.tokenizer is not None else None
        key = key_of(settings.api_key, settings.api_key_file)
        http = self._http = UpstreamHttp(
            settings.base_url, key, settings.connect_timeout.total_seconds(), settings.tls_ca
        )
        upstream = self._upstream = await upstream_of(http, self._wanted(), settings.start_timeout.total_seconds())
        self._tokens = UpstreamTokens(http, upstream, self._local)
        self._health = Health(http, _patience(settings), self._outbox.die)
        self._generating = Generating(http, upstream.asking, _times(settings), self._health, self._outbox)
        self._outbox.open()
        asking = upstream.asking
        log.info(
            "upstream is there",
            extra={
                "dialect": asking.dialect.name,
                "upstream_model": asking.model,
                "capabilities": ",".join(upstream.capabilities),
                "usage": asking.usage,
                "resumes_chats_by": asking.continuing,
            },
        )
        return EngineInfo(
            "openai",
            self._model or _public_name(asking.model),
            hashlib.sha256(f"{settings.base_url} {asking}".encode()).hexdigest()[:12],
            self._capacity,
            asking.context_length,
            upstream.capabilities,
            upstream.dimensions,
            resumes_by_text=True,
            patience=_patience_of_all(settings, upstream),
        )

    def submit(self, generation: Generation) -> None:
        try:
            run = self._run_of(generation)
        except InferBusError as error:
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            return
        self._runs.waiting.append(run)
        self._admit()

    def _run_of(self, generation: Generation) -> Run:
        """Raises InferBusError for what this upstream cannot do."""
        if self._upstream is None:
            raise not_up()
        capabilities, asking = self._upstream.capabilities, self._upstream.asking
        if (fault := fault_of(generation, capabilities)) is not None:
            raise fault
        if param := unsupported(asking, generation):
            raise invalid(f"This model does not support '{param}'.", param=param, reason="unsupported_parameter")
        vocabulary = self._upstream.vocabulary or (self._local.vocabulary if self._local is not None else 0)
        known([token for token, _ in generation.sampling.logit_bias], vocabulary, "logit_bias")
        known([token for token in generation.resume_ids if token != UNKNOWN_TOKEN], vocabulary, "messages")
        source = generation.input
        if isinstance(source, Prompt) and not isinstance(source.content, str):
            known(source.content, vocabulary, "prompt")
        chat = source if isinstance(source, Chat) else None
        asked = chat is not None and chat.reasoning_effort not in ("", "none")
        stops = StopFilter(generation.sampling.stop, reader_of(generation, reasons="reasoning" in capabilities))
        return Run(
            generation,
            stops,
            shows_thoughts=asked,
            continues=_continues(source, asking.continuing) and not (asking.grammars and _has_form(generation)),
            count=None if self._local is None else self._local.count,
        )

    def close(self, key: bytes) -> None:
        if (run := self._runs.take(key)) is not None:
            self._end(run, Ended(Finish.CANCELLED))

    def steps(self) -> AsyncIterator[Step]:
        return self._outbox.steps()

    def statistics(self) -> EngineStatistics:
        """OpenAI's API says nothing of a server's load."""
        return self._runs.statistics()

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        return await self._told().of(source, parse_special, add_special, open_turn)

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        return await self._told().text(ids)

    def _told(self) -> UpstreamTokens:
        if self._tokens is None:
            raise not_up()
        return self._tokens

    async def stop(self) -> None:
        tasks = [*self._runs.tasks(), *self._leaving]
        http, health = self._http, self._health
        self._outbox.close()
        self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if health is not None:
            await health.stop()
        if http is not None:
            await http.close()

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while (run := self._runs.next()) is not None:
            self._runs.begin(run, self._run(run))

    async def _run(self, run: Run) -> None:
        try:
            ended = await self._ended_before(run)
            if ended is None and self._generating is not None:
                ended = await self._generating.generate(run, guessed(run.generation.input, self._local))
        except Exception as error:  # whatever it is, it is about this generation: left alone it would never end
            log.exception("a generation failed")
            ended = Ended(Finish.ERROR, engine_failed(repr(error)))
        if ended is not None and self._runs.has(run):
            self._end(run, ended)

    async def _ended_before(self, run: Run) -> Ended | None:
        """How it ends if there is nothing to ask for: refused, or complete already."""
        generation, upstream = run.generation, self._upstream
        if upstream is None:
            return None
        try:
            run.follower = await _follower(generation, exact=upstream.asking.grammars)
        except InferBusError as fault:
            return Ended(Finish.ERROR, fault)
        if run.follower is not None and not run.follower.takes(generation.resume_text):
            return Ended(Finish.ERROR, engine_failed("what was delivered before does not keep the form"))
        if run.ledger.delivered(generation.resume_text):
            return Ended(Finish.STOP)
        wanted = generation.sampling.max_tokens
        if not isinstance(generation.input, Embed) and wanted is not None and run.tokens >= wanted:
            return Ended(Finish.LENGTH)
        return None

    def _end(self, run: Run, ended: Ended) -> None:
        """The one end of a generation, whatever ended it."""
        if self._runs.leave(run) and run.task is not None:  # which drops the connection
            self._leaving.add(run.task)
            run.task.add_done_callback(self._leaving.discard)
        reason, found = ended.reason, None
        if reason in (Finish.STOP, Finish.LENGTH):
            if (out := run.ledger.flush()).ids or out.text:
                self._outbox.add(run.key, out.ids, out.text, out.logprobs)
            found = run.ledger.found
            if found is None and ended.stop is not None:
                stops = run.generation.sampling.stop
                found = stops.index(ended.stop) if ended.stop in stops else None
            reason = reason if found is None else Finish.STOP
        if run.tokens and reason is not Finish.ERROR:
            run.guess_input(guessed(run.generation.input, self._local))
        shown = self._upstream is not None and (self._upstream.asking.dialect.salts or self._settings.shared_prefixes)
        self._outbox.finish(
            Finished(
                run.key,
                reason,
                run.input_tokens or 0,
                run.cached_tokens if shown else 0,
                ended.error,
                found,
                estimated=run.estimated,
            )
        )
        self._admit()

    def _wanted(self) -> Wanted:
        settings = self._settings
        return Wanted(
            model=settings.upstream_model,
            dialect=settings.dialect,
            continuing=None if settings.continues == "auto" else settings.continues,
            context_length=self._context_length,
            capabilities=settings.capabilities,
            streams=not settings.unary,
            shares=settings.shared_prefixes,
            forms=_FORMS,
            seconds=_PROBE_SECONDS,
        )


async def _follower(generation: Generation, *, exact: bool) -> Follows | None:
    """Of what the output must look like; ``exact``: it is made by our grammar. Raises InferBusError ``invalid_schema``,
    also for tools' parameters."""
    grammar = grammar_of(generation, flexible_space=not exact)
    if grammar is None or not _FORMS:
        return None
    from inferbus_worker.engines.follower import Follower  # needs a package that only forms need

    follower = await asyncio.to_thread(Follower, grammar)
    chat = generation.input
    if exact or not isinstance(chat, Chat) or not chat.tools:
        return follower
    # Calls are held to their parameters by whoever makes them.
    return None if generation.constraint is None or chat.tool_mode is ToolMode.REQUIRED else follower


def _has_form(generation: Generation) -> bool:
    """A grammar has no middle to begin in."""
    chat = generation.input
    calls = isinstance(chat, Chat) and bool(chat.tools) and chat.tool_mode is not ToolMode.NONE
    return calls or generation.constraint is not None


def _public_name(model: str) -> str:
    """Of a model that the upstream names by its file, that without its path."""
    return (model.rsplit("/", 1)[-1] if model.startswith("/") else model)[:128]


def _continues(source: Source, continuing: str) -> bool:
    """Whether the upstream can be given what there is of the answer."""
    if isinstance(source, Chat):
        return continuing != "none"
    return isinstance(source, Prompt) and isinstance(source.content, str)


def _patience(settings: OpenAiConfig) -> Patience:
    breaker = BreakerLimits(settings.breaker_failures, settings.breaker_rate, settings.breaker_open.total_seconds())
    return Patience(
        settings.max_retries,
        settings.retry_budget,
        settings.retry_floor,
        settings.retry_window.total_seconds(),
        settings.busy_timeout.total_seconds(),
        breaker,
    )


def _times(settings: OpenAiConfig) -> Times:
    first, stall = settings.first_token_timeout.total_seconds(), settings.stall_timeout.total_seconds()
    return Times(first, stall, settings.answer_timeout.total_seconds())


def _patience_of_all(settings: OpenAiConfig, upstream: Upstream) -> float:
    """How long the upstream may say nothing at all, seconds: as long as one answer may."""
    times = _times(settings)
    whole = settings.unary or "embeddings" in upstream.capabilities
    return max(times.first + times.stall, times.whole if whole else 0.0)

"""The CPU default: llama.cpp's server in a child process, spoken to over loopback HTTP.

The child batches continuously and may crash without taking the worker along; all of its streams are coalesced here into
steps. It is asked for at most ``capacity`` generations at once, and for no more than its KV cache holds: the youngest
step back when it fills, and go on later from the tokens that they have.

Which of the child's slots runs a generation is decided here: a slot's content is read on from by its own salt only.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
from inferbus_runtime.errors import InferBusError, invalid
from jinja2 import TemplateError

from inferbus_worker.config import Config, usable_cores
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.grammar import grammar_of
from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.core.sampling import check_ids, fault_of
from inferbus_worker.core.slots import Content
from inferbus_worker.core.start_faults import refusal
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import (
    Chat,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Source,
    Step,
    Tokens,
)
from inferbus_worker.engines.llama_cpp_adapters import adapters_of, digest_of, scales_of
from inferbus_worker.engines.llama_cpp_generate import Generating
from inferbus_worker.engines.llama_cpp_http import ServerHttp
from inferbus_worker.engines.llama_cpp_model import PUBLIC_NAME, Weights, given, prepare
from inferbus_worker.engines.llama_cpp_places import SPARE_SLOTS, Places
from inferbus_worker.engines.llama_cpp_process import START_TIMEOUT_SECONDS, ServerProcess, ServerSettings
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.llama_cpp_run import Run
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, not_up

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 16
CAPABILITIES = ("chat", "completions", "tools", "structured_output", "logprobs", "logit_bias")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """``cache``: where the shipped model's weights are made; ``weights`` and ``template``: those taken instead of its
    own."""

    cache: Path | None = None
    weights: Path | None = None
    template: Path | None = None


class LlamaCpp:
    """Engine ``llama_cpp``."""

    def __init__(
        self,
        model: str,
        capacity: int,
        files: ModelFiles,
        settings: ServerSettings,
        prompt_cache_tokens: int,
        prefixes_told: int,
    ) -> None:
        self.prefixes = PrefixCache(prefixes_told)
        self._model = model
        self._capacity = capacity
        self._files = files
        self._given: Weights | None = None
        self._settings = settings
        self._prompt_cache_tokens = prompt_cache_tokens
        self._vocabulary: list[bytes] = []
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "LlamaCpp":
        capacity = config.capacity or DEFAULT_CAPACITY
        settings = ServerSettings(
            slots=capacity + SPARE_SLOTS,
            context_length=config.context_length or 0,
            precision=config.llama_cpp.precision,
            kv_tokens=config.llama_cpp.kv_tokens,
            batch_tokens=config.llama_cpp.batch_tokens,
            threads=config.threads or usable_cores(),
            omp_wait_policy=config.llama_cpp.omp_wait_policy,
            adapters=adapters_of(config.llama_cpp.lora),
        )
        files = ModelFiles(config.model_cache, config.llama_cpp.weights, config.llama_cpp.chat_template)
        own_name = files.weights.stem if files.weights is not None else PUBLIC_NAME
        cached = config.llama_cpp.prompt_cache_tokens
        return cls(config.model or own_name, capacity, files, settings, cached, config.prefixes_told)

    def _reset(self) -> None:
        self.prefixes.clear()
        self._places = Places(
            self._capacity, self._settings.kv_tokens, self._prompt_cache_tokens, self._erase, self.prefixes
        )
        self._outbox = Outbox(self._places.runs.running)
        self._server: ServerProcess | None = None
        self._http_session: ServerHttp | None = None
        self._generating: Generating | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        """The first start on a machine also prepares the weights (seconds). Raises InferBusError."""
        weights = await asyncio.to_thread(self._weights)
        template = None if self._files.template is None else await asyncio.to_thread(_read, self._files.template)
        server = self._server = await ServerProcess.start(weights.path, self._settings)
        http = self._http_session = ServerHttp(server.url)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                props = await http.props()
                self._vocabulary = self._vocabulary or await http.vocabulary()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise engine_failed(f"it died or stands still at its start: {error!r}") from error
        self._template = _compiled(template, props)
        self._capabilities = (*CAPABILITIES, "reasoning") if self._template.reasoning else CAPABILITIES
        self._generating = Generating(server, http, self._vocabulary, self._outbox, self._places)
        self._watch = asyncio.create_task(_watch(server, self._outbox), name="engine-watch")
        self._outbox.open()
        context_length = int(props["default_generation_settings"]["n_ctx"])
        adapters = self._settings.adapters
        build = f"{weights.digest} llama.cpp {version('xllamacpp')} {context_length}{await digest_of(adapters)}"
        if template is not None:
            build += f" {hashlib.sha256(template.encode()).hexdigest()}"
        revision = hashlib.sha256(build.encode()).hexdigest()[:12]
        return EngineInfo(
            "llama_cpp", self._model, revision, self._capacity, context_length, self._capabilities,
            adapters=tuple(adapters),
        )  # fmt: skip

    def _weights(self) -> Weights:
        if self._given is not None:
            return self._given
        if self._files.weights is not None:
            weights = self._given = given(self._files.weights)
            log.info("weights read", extra={"path": str(weights.path), "seconds": round(weights.seconds, 1)})
            return weights
        weights = prepare(self._files.cache, self._settings.precision)
        if weights.seconds:
            log.info("weights prepared", extra={"seconds": round(weights.seconds, 1)})
        return weights

    def submit(self, generation: Generation) -> None:
        try:
            run = self._run_of(generation)
        except InferBusError as error:
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            return
        self._places.runs.waiting.append(run)
        self._places.admit(self._run)

    def _run_of(self, generation: Generation) -> Run:
        """Raises InferBusError for what this engine cannot do."""
        if (fault := fault_of(generation, self._capabilities)) is not None:
            raise fault
        scales = scales_of(self._settings.adapters, generation.adapter)
        check_ids([token for token, _ in generation.sampling.logit_bias], len(self._vocabulary), "logit_bias")
        prompt = self._content_of(generation.input)
        ids = list(generation.resume_ids)
        check_ids(ids, len(self._vocabulary), "messages")
        # A token has more than two bytes in all but exotic texts; the exact number follows with the prefill.
        guess = (len(prompt.encode()) // 2 if isinstance(prompt, str) else len(prompt)) + len(ids)
        stops = StopFilter(generation.sampling.stop, reader_of(generation, reasons=self._template.reasoning))
        return Run(generation, prompt, grammar_of(generation), ids, stops, guess, scales)

    def _content_of(self, source: Source, open_turn: bool = True) -> Content:
        match source:
            case Chat():
                return self._template.render(source, open_turn)
            case Prompt(str() as text):
                return text
            case Prompt(tuple() as ids):
                check_ids(ids, len(self._vocabulary), "prompt")
                return ids
        raise invalid("This model makes no vectors; choose an embedding model.", param="input")

    def close(self, key: bytes) -> None:
        if (run := self._places.runs.take(key)) is not None:
            self._end(run, End(Finish.CANCELLED))

    def steps(self) -> AsyncIterator[Step]:
        return self._outbox.steps()

    def statistics(self) -> EngineStatistics:
        return self._places.statistics()

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        if source == Chat(()):
            raise invalid("Send at least one message.", param="messages")
        content = self._content_of(source, open_turn)
        if isinstance(content, str):
            # The template has written the special tokens into a chat.
            parse, add = (True, False) if isinstance(source, Chat) else (parse_special, add_special)
            try:
                content = tuple(await self._http.tokenize(content, parse, add))
            except (aiohttp.ClientError, TimeoutError) as error:
                raise engine_failed(repr(error)) from error
        return Tokens(list(content), [self._vocabulary[token] for token in content])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        check_ids(ids, len(self._vocabulary), "tokens")
        return b"".join(self._vocabulary[token] for token in ids)

    async def stop(self) -> None:
        tasks = self._places.tasks()
        if self._watch is not None:
            tasks.append(self._watch)
        server, session = self._server, self._http_session
        self._outbox.close()
        self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()
        if server is not None:
            await server.stop()

    async def _run(self, run: Run) -> None:
        if self._generating is None:
            self._end(run, End(Finish.ERROR, not_up()))
        elif (end := await self._generating.generate(run)) is not None and self._places.runs.has(run):
            self._end(run, end)

    def _end(self, run: Run, end: End) -> None:
        """The one end of a generation, whatever ended it. Its task is dropped, with its connection: llama.cpp's
        cancel."""
        self._places.leave(run)
        text, reason = run.filter.end(end.reason)
        if text:
            self._outbox.add(run.key, [], text)
        counts = run.input_tokens, run.cached_tokens
        self._outbox.finish(Finished(run.key, reason, *counts, end.error, run.filter.found))
        self._places.admit(self._run)

    async def _erase(self, slot: int) -> None:
        await self._http.erase(slot)

    @property
    def _http(self) -> ServerHttp:
        if self._http_session is None:
            raise not_up()
        return self._http_session


def _read(template: Path) -> str:
    try:
        return template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise refusal("LLAMA_CPP__CHAT_TEMPLATE", str(error)) from error


def _compiled(template: str | None, props: dict[str, Any]) -> ChatTemplate:
    """``template`` None: that of the weights. The child needs neither: it is asked for tokens of a finished prompt."""
    source = props["chat_template"] if template is None else template
    try:
        return ChatTemplate(source, props["bos_token"], props["eos_token"])
    except TemplateError as error:
        setting = "LLAMA_CPP__WEIGHTS" if template is None else "LLAMA_CPP__CHAT_TEMPLATE"
        raise refusal(setting, f"the chat template cannot be read: {error}") from error


async def _watch(server: ServerProcess, outbox: Outbox) -> None:
    """Turns the child's death into the end of steps()."""
    await server.dead.wait()
    outbox.die(server.last_words())

"""The CPU default: llama.cpp's server in a child process, spoken to over loopback HTTP.

The child batches continuously and may crash without taking the worker along; all of its streams are coalesced here into
steps. It is asked for at most ``capacity`` generations at once, and for no more than its KV cache holds: the youngest
step back when it fills, and go on later from the tokens that they have.

Which of the child's slots runs a generation is decided here: a slot's content is read on from by its own salt only.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import aiohttp
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_worker.config import Config, usable_cores
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.grammar import grammar_of
from inferbus_worker.core.kv_budget import KvBudget
from inferbus_worker.core.sampling import context_exceeded, fault_of
from inferbus_worker.core.slots import Content, SlotTable
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import (
    Chat,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Prompt,
    Source,
    Step,
    Tokens,
)
from inferbus_worker.engines.llama_cpp_grammar import Follower
from inferbus_worker.engines.llama_cpp_http import ServerHttp, known
from inferbus_worker.engines.llama_cpp_model import PUBLIC_NAME, prepare
from inferbus_worker.engines.llama_cpp_process import ServerProcess, ServerSettings
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.llama_cpp_run import Run
from inferbus_worker.engines.llama_cpp_stream import (
    CompletionError,
    Delta,
    Ended,
    Logprobs,
    Prefill,
    completion,
    request_body,
)

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 16
CAPABILITIES = ("chat", "completions", "tools", "structured_output", "logprobs", "logit_bias")
# Closed generations leave the server up to a second later: until then their slots are not free.
_SPARE_SLOTS = 4
_LEAVING_SECONDS = 1.0
# Events of one engine step arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096
_STALL_SECONDS = 120.0


class LlamaCpp:
    """Engine ``llama_cpp``."""

    def __init__(
        self, model: str, capacity: int, cache: Path | None, settings: ServerSettings, prompt_cache_tokens: int
    ) -> None:
        self._model = model
        self._capacity = capacity
        self._cache = cache
        self._settings = settings
        self._budget = KvBudget(settings.kv_tokens)
        self._prompt_cache_tokens = prompt_cache_tokens
        self._vocabulary: list[bytes] = []
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "LlamaCpp":
        capacity = config.capacity or DEFAULT_CAPACITY
        settings = ServerSettings(
            slots=capacity + _SPARE_SLOTS,
            context_length=config.context_length or 0,
            precision=config.llama_cpp.precision,
            kv_tokens=config.llama_cpp.kv_tokens,
            batch_tokens=config.llama_cpp.batch_tokens,
            threads=config.threads or usable_cores(),
            omp_wait_policy=config.llama_cpp.omp_wait_policy,
        )
        cached = config.llama_cpp.prompt_cache_tokens
        return cls(config.model or PUBLIC_NAME, capacity, config.model_cache, settings, cached)

    def _reset(self) -> None:
        self._waiting: deque[Run] = deque()
        self._running: dict[bytes, Run] = {}
        self._steps = StepBuilder()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._server: ServerProcess | None = None
        self._http_session: ServerHttp | None = None
        self._slots = SlotTable(self._settings.slots)
        self._erasing: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._moved_at = 0.0

    async def start(self) -> EngineInfo:
        """The first start on a machine also prepares the weights (seconds). Raises InferBusError."""
        weights = await asyncio.to_thread(prepare, self._cache, self._settings.precision)
        if weights.seconds:
            log.info("weights prepared", extra={"seconds": round(weights.seconds, 1)})
        self._server = await ServerProcess.start(weights.path, self._settings)
        http = self._http_session = ServerHttp(self._server.url)
        try:
            props = await http.props()
            self._vocabulary = self._vocabulary or await http.vocabulary()
        except aiohttp.ClientError as error:
            raise _engine_failed(f"it died at its start: {error!r}") from error
        self._template = ChatTemplate(props["chat_template"], props["bos_token"], props["eos_token"])
        self._capabilities = (*CAPABILITIES, "reasoning") if self._template.reasoning else CAPABILITIES
        self._watch = asyncio.create_task(self._watch_server(self._server), name="engine-watch")
        context_length = int(props["default_generation_settings"]["n_ctx"])
        build = f"{weights.digest} llama.cpp {version('xllamacpp')} {context_length}"
        revision = hashlib.sha256(build.encode()).hexdigest()[:12]
        return EngineInfo("llama_cpp", self._model, revision, self._capacity, context_length, self._capabilities)

    def submit(self, generation: Generation) -> None:
        try:
            run = self._run_of(generation)
        except InferBusError as error:
            self._steps.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            self._moved()
            return
        self._waiting.append(run)
        self._admit()

    def _run_of(self, generation: Generation) -> Run:
        """Raises InferBusError for what this engine cannot do."""
        if (fault := fault_of(generation, self._capabilities)) is not None:
            raise fault
        known([token for token, _ in generation.sampling.logit_bias], self._vocabulary, "logit_bias")
        prompt = self._content_of(generation.input)
        ids = list(generation.resume_ids)
        known(ids, self._vocabulary, "messages")
        # A token has more than two bytes in all but exotic texts; the exact number follows with the prefill.
        guess = (len(prompt.encode()) // 2 if isinstance(prompt, str) else len(prompt)) + len(ids)
        stops = StopFilter(generation.sampling.stop, reader_of(generation, reasons=self._template.reasoning))
        return Run(generation, prompt, grammar_of(generation), ids, stops, guess)

    def _content_of(self, source: Source, open_turn: bool = True) -> Content:
        match source:
            case Chat():
                return self._template.render(source, open_turn)
            case Prompt(str() as text):
                return text
            case Prompt(tuple() as ids):
                known(ids, self._vocabulary, "prompt")
                return ids
        raise invalid("This model makes no vectors; choose an embedding model.", param="input")

    def close(self, key: bytes) -> None:
        run = self._running.pop(key, None)
        if run is None:
            run = next((waiting for waiting in self._waiting if waiting.key == key), None)
            if run is None:
                return
            self._waiting.remove(run)
        self._end(run, Finish.CANCELLED)

    async def steps(self) -> AsyncIterator[Step]:
        while self._server is not None:
            await self._ready.wait()
            self._ready.clear()
            server = self._server
            if self._steps:
                self._cancel_timer()
                yield self._steps.take(clock.now_us())
                self._room.set()
            if server is not None and server.dead.is_set() and self._server is server:
                raise EngineDiedError(server.last_words())

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
                raise _engine_failed(repr(error)) from error
        return Tokens(list(content), [self._vocabulary[token] for token in content])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        known(ids, self._vocabulary, "tokens")
        return b"".join(self._vocabulary[token] for token in ids)

    async def stop(self) -> None:
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if self._watch is not None:
            tasks.append(self._watch)
        tasks += self._erasing
        server, session, ready = self._server, self._http_session, self._ready
        self._cancel_timer()
        self._reset()
        ready.set()  # whoever waits for a step sees that there is no server any more
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()
        if server is not None:
            await server.stop()

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._capacity:
            held = [run.held for run in self._running.values()]
            if not self._budget.admits(held, self._waiting[0].held):
                return
            run = self._waiting.popleft()
            self._running[run.key] = run
            run.lease = self._slots.take(run.generation.cache_salt, run.prompt, clock.monotonic())
            run.prefilled = False
            if len(self._running) == 1:
                self._moved_at = clock.monotonic()
            run.task = asyncio.create_task(self._generate(run), name="generation")

    def _step_back(self) -> None:
        """The youngest leave the server before its KV cache overflows; they are the first to come back."""
        runs = list(self._running.values())
        count = self._budget.overflow([run.held for run in runs])
        for run in reversed(runs[len(runs) - count :]):
            log.info("generation waits for KV cache", extra={"held": run.held})
            del self._running[run.key]
            if run.task is not None:
                run.task.cancel()
            self._leave_slot(run, _LEAVING_SECONDS)
            self._waiting.appendleft(run)

    def _leave_slot(self, run: Run, leaving_seconds: float) -> None:
        """It stays the engine's for a while if the engine has not ended it; then others are taken first."""
        lease, run.lease = run.lease, None
        if lease is None:
            return
        now = clock.monotonic()
        content = run.prompt if run.prefilled else None
        self._slots.release(lease, run.generation.cache_salt, content, run.held, now + leaving_seconds)
        for slot in self._slots.evict(self._prompt_cache_tokens, now):
            task = asyncio.create_task(self._erase(slot), name="erase")
            self._erasing.add(task)
            task.add_done_callback(self._erasing.discard)

    async def _erase(self, slot: int) -> None:
        try:
            await self._http.erase(slot)
        except aiohttp.ClientError as error:  # its cells make steps slower and are taken when they are needed
            log.warning("idle slot not emptied", extra={"error": repr(error)})

    def _end(self, run: Run, reason: Finish, error: InferBusError | None = None, leaving: bool = True) -> None:
        """The one end of a generation, whatever ended it. ``leaving``: the engine may still be at it."""
        self._running.pop(run.key, None)
        self._leave_slot(run, _LEAVING_SECONDS if leaving else 0.0)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()  # drops the connection, which is llama.cpp's cancel
        found = None
        if reason in (Finish.STOP, Finish.LENGTH):
            if held := run.filter.flush():
                self._steps.add(run.key, [], held.encode())
            found = run.filter.found
            reason = reason if found is None else Finish.STOP
        self._steps.finish(Finished(run.key, reason, run.input_tokens, run.cached_tokens, error, found))
        self._moved()
        self._admit()

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _generate(self, run: Run) -> None:
        try:
            if await self._ended_before(run):
                return
            sampling = run.generation.sampling
            logprobs = None if sampling.logprobs is None else Logprobs(sampling.logprobs, self._vocabulary)
            async with self._http.session.post("/completion", data=request_body(run.task_of())) as response:
                await self._read(run, response, logprobs)
                response.close()
        except CompletionError as error:
            self._refused(run, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._broken(run, error)
        except Exception as error:  # an answer of the server that we do not understand ends this generation only
            log.exception("a generation failed")
            self._end(run, Finish.ERROR, _engine_failed(repr(error)))

    async def _ended_before(self, run: Run) -> bool:
        """Ends it if there is nothing to generate: refused, or complete already."""
        if run.grammar is not None and run.follower is None:
            try:
                run.follower = await asyncio.to_thread(Follower, run.grammar)
            except InferBusError as fault:
                self._end(run, Finish.ERROR, fault)
                return True
        if run.stopped_before(self._vocabulary):
            self._end(run, Finish.STOP)
            return True
        max_tokens = run.generation.sampling.max_tokens
        if max_tokens is not None and max_tokens <= len(run.ids):
            self._end(run, Finish.LENGTH)
            return True
        return False

    async def _read(self, run: Run, response: aiohttp.ClientResponse, logprobs: Logprobs | None) -> None:
        async for item in completion(response, self._http.spell, logprobs):
            self._moved_at = clock.monotonic()
            if self._running.get(run.key) is not run:
                return  # closed or stepped back while this item was already here
            match item:
                case Delta(text=text) if not run.fits(text):
                    self._left_form(run)
                    return
                case Prefill():
                    run.prefill(item)
                    self._step_back()
                case Delta(ids) if run.repeats:
                    if not run.repeated(ids):
                        self._differs(run)
                        return
                    self._step_back()
                case Delta():
                    if self._deliver(run, item):
                        self._end(run, Finish.STOP)
                        return
                    if not self._room.is_set():
                        await self._room.wait()
                case Ended(Finish.STOP) if run.follower is not None and not run.follower.complete():
                    self._left_form(run)
                    return
                case Ended(reason):
                    if run.repeats:
                        self._differs(run)
                        return
                    self._end(run, reason, leaving=False)
                    return

    def _left_form(self, run: Run) -> None:
        assert run.follower is not None  # noqa: S101
        error = run.follower.broken()
        log.warning("an output left its form", extra={"tokens": len(run.ids), "error": error.diagnostic})
        self._end(run, Finish.ERROR, error)

    def _differs(self, run: Run) -> None:
        self._end(run, Finish.ERROR, _engine_failed("a generation made again under its grammar came out differently"))

    def _deliver(self, run: Run, delta: Delta) -> bool:
        """True if a stop string was found."""
        cut = run.filter.feed(delta.text)
        run.ids += delta.token_ids
        run.held += len(delta.token_ids)
        self._steps.add(run.key, delta.token_ids, cut.text.encode(), delta.logprobs)
        if self._steps.tokens >= _BUFFERED_TOKENS:
            self._room.clear()
        self._moved()
        if not cut.stopped:  # who ends now must not wait to come back
            self._step_back()
        return cut.stopped

    def _refused(self, run: Run, error: CompletionError) -> None:
        log.info("engine refused", extra={"kind": error.kind})
        if error.kind == "exceed_context_size_error":
            if run.ids:  # it fitted when it began: what has grown too long is its output
                self._end(run, Finish.LENGTH)
                return
            self._end(run, Finish.ERROR, context_exceeded(run.generation.input, error.prompt_tokens))
        elif error.kind == "invalid_request_error":
            refusal = invalid("The engine cannot run this request.")
            refusal.diagnostic = str(error)
            self._end(run, Finish.ERROR, refusal)
        else:
            self._end(run, Finish.ERROR, _engine_failed(str(error)))

    async def _broken(self, run: Run, error: Exception) -> None:
        """A broken connection almost always means a dead child: then steps() says so, once for all."""
        server = self._server
        if server is not None:
            try:
                await asyncio.wait_for(server.dead.wait(), 2.0)
            except TimeoutError:
                self._end(run, Finish.ERROR, _engine_failed(repr(error)))

    @property
    def _http(self) -> ServerHttp:
        if self._http_session is None:
            raise _engine_failed("it is not started, or about to be started again")
        return self._http_session

    # --- steps ------------------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        """Ready at once if everybody has moved, else when the rest of this engine step had time to arrive."""
        if self._steps.moved() >= len(self._running):
            self._ready.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self._ready.set)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _watch_server(self, server: ServerProcess) -> None:
        """Turns the child's death into the end of steps(), and a child that stands still into a dead one."""
        while not server.dead.is_set():
            try:
                await asyncio.wait_for(server.dead.wait(), 5.0)
            except TimeoutError:
                if not self._room.is_set():
                    self._moved_at = clock.monotonic()  # it waits for us, not we for it
                elif self._running and clock.monotonic() - self._moved_at > _STALL_SECONDS:
                    log.error("engine stands still", extra={"running": len(self._running)})
                    server.kill()
        self._ready.set()


def _engine_failed(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_failed", "The engine failed; retry.", retry_after=timedelta(seconds=1), diagnostic=diagnostic
    )

"""The CPU default: llama.cpp's server in a child process, spoken to over loopback HTTP.

The child batches continuously and may crash without taking the worker along; all of its streams are coalesced here into
steps. It is asked for at most ``capacity`` generations at once, and for no more than its KV cache holds: the youngest
step back when it fills, and go on later from the tokens that they have.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_worker.config import Config, usable_cores
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.kv_budget import KvBudget
from inferbus_worker.core.sampling import fault_of
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import EngineDiedError, EngineInfo, Finish, Finished, Generation, Step
from inferbus_worker.engines.llama_cpp_model import PUBLIC_NAME, prepare
from inferbus_worker.engines.llama_cpp_process import ServerProcess, ServerSettings
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.llama_cpp_stream import CompletionError, Delta, Ended, Prefill, completion, request_body

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 16
# Closed generations leave the server up to a second later: until then their slots are not free.
_SPARE_SLOTS = 4
# Events of one engine step arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096
_STALL_SECONDS = 120.0
_SPELLINGS = 4096


@dataclass(slots=True, eq=False)
class _Run:
    """A submitted generation. ``held``: KV tokens, first a guess from the prompt's size, then exact."""

    generation: Generation
    prompt: str
    ids: list[int]
    filter: StopFilter
    held: int
    input_tokens: int = 0
    cached_tokens: int = 0
    filter_knows: bool = False
    task: asyncio.Task[None] | None = field(default=None)

    @property
    def key(self) -> bytes:
        return self.generation.key


class LlamaCpp:
    """Engine ``llama_cpp``."""

    def __init__(self, model: str, capacity: int, cache: Path | None, settings: ServerSettings) -> None:
        self._model = model
        self._capacity = capacity
        self._cache = cache
        self._settings = settings
        self._budget = KvBudget(settings.kv_tokens)
        self._spellings: dict[str, list[int]] = {}
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
            prompt_cache_mib=config.llama_cpp.prompt_cache_mib,
            threads=config.threads or usable_cores(),
            omp_wait_policy=config.llama_cpp.omp_wait_policy,
        )
        return cls(config.model or PUBLIC_NAME, capacity, config.model_cache, settings)

    def _reset(self) -> None:
        self._waiting: deque[_Run] = deque()
        self._running: dict[bytes, _Run] = {}
        self._steps = StepBuilder()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._server: ServerProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._moved_at = 0.0

    async def start(self) -> EngineInfo:
        """The first start on a machine also prepares the weights (seconds). Raises InferBusError."""
        weights = await asyncio.to_thread(prepare, self._cache, self._settings.precision)
        if weights.seconds:
            log.info("weights prepared", extra={"seconds": round(weights.seconds, 1)})
        self._server = await ServerProcess.start(weights.path, self._settings)
        # A connection a generation: the server closes idle ones at moments when we may just be using them.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(self._server.url, connector=connector, timeout=timeout)
        async with self._session.get("/props") as response:
            props: dict[str, Any] = orjson.loads(await response.read())
        self._template = ChatTemplate(props["chat_template"], props["bos_token"], props["eos_token"])
        self._watch = asyncio.create_task(self._watch_server(self._server), name="engine-watch")
        context_length = int(props["default_generation_settings"]["n_ctx"])
        build = f"{weights.digest} llama.cpp {version('xllamacpp')} {context_length}"
        revision = hashlib.sha256(build.encode()).hexdigest()[:12]
        return EngineInfo("llama_cpp", self._model, revision, self._capacity, context_length)

    def submit(self, generation: Generation) -> None:
        try:
            if (fault := fault_of(generation)) is not None:
                raise fault
            prompt = self._template.render(generation.messages)
        except InferBusError as error:
            self._steps.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            self._moved()
            return
        ids = list(generation.resume_ids)
        # A token has more than two bytes in all but exotic texts; the exact number follows with the prefill.
        guess = len(prompt.encode()) // 2 + len(ids)
        self._waiting.append(_Run(generation, prompt, ids, StopFilter(generation.sampling.stop), guess))
        self._admit()

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

    async def stop(self) -> None:
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if self._watch is not None:
            tasks.append(self._watch)
        server, session, ready = self._server, self._session, self._ready
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
            self._waiting.appendleft(run)

    def _end(self, run: _Run, reason: Finish, error: InferBusError | None = None) -> None:
        """The one end of a generation, whatever ended it."""
        self._running.pop(run.key, None)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()  # drops the connection, which is llama.cpp's cancel
        self._steps.finish(Finished(run.key, reason, run.input_tokens, run.cached_tokens, error))
        self._moved()
        self._admit()

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _generate(self, run: _Run) -> None:
        try:
            if run.generation.resume_ids and run.generation.sampling.stop and await self._stopped_before(run):
                self._end(run, Finish.STOP)
                return
            max_tokens = run.generation.sampling.max_tokens
            max_new = None if max_tokens is None else max_tokens - len(run.ids)
            if max_new is not None and max_new <= 0:
                self._end(run, Finish.LENGTH)
                return
            body = request_body(run.prompt, run.ids, run.generation.sampling, max_new)
            async with self._http.post("/completion", data=body) as response:
                await self._read(run, response)
                response.close()
        except CompletionError as error:
            self._refused(run, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            await self._broken(run, error)
        except Exception as error:  # an answer of the server that we do not understand ends this generation only
            log.exception("a generation failed")
            self._end(run, Finish.ERROR, _engine_failed(repr(error)))

    async def _read(self, run: _Run, response: aiohttp.ClientResponse) -> None:
        async for item in completion(response, self._tokenize):
            self._moved_at = clock.monotonic()
            if self._running.get(run.key) is not run:
                return  # closed or stepped back while this item was already here
            match item:
                case Prefill(tokens, cached):
                    resumed = len(run.ids)
                    run.held = tokens
                    if not run.input_tokens:  # a second prefill, after stepping back, finds its own tokens cached
                        run.input_tokens = tokens - resumed
                        run.cached_tokens = min(cached, run.input_tokens)
                    self._step_back()
                case Delta(ids, text):
                    if self._deliver(run, ids, text):
                        self._end(run, Finish.STOP)
                        return
                    if not self._room.is_set():
                        await self._room.wait()
                case Ended(reason):
                    if held := run.filter.flush():
                        self._steps.add(run.key, [], held.encode())
                    self._end(run, reason)
                    return

    def _deliver(self, run: _Run, ids: list[int], text: str) -> bool:
        """True if a stop string was found."""
        cut = run.filter.feed(text)
        run.ids += ids
        run.held += len(ids)
        self._steps.add(run.key, ids, cut.text.encode())
        if self._steps.tokens >= _BUFFERED_TOKENS:
            self._room.clear()
        self._moved()
        self._step_back()
        return cut.stopped

    async def _stopped_before(self, run: _Run) -> bool:
        """Tells the filter what an earlier attempt delivered: a stop string may have begun, or ended, in it."""
        if run.filter_knows:
            return False
        async with self._http.post("/detokenize", json={"tokens": run.ids}) as response:
            text = (await response.json())["content"]
        run.filter_knows = True
        return run.filter.feed(text).stopped

    def _refused(self, run: _Run, error: CompletionError) -> None:
        log.info("engine refused", extra={"kind": error.kind})
        if error.kind == "exceed_context_size_error":
            if run.ids:  # it fitted when it began: what has grown too long is its output
                self._end(run, Finish.LENGTH)
                return
            message = f"The messages have {error.prompt_tokens} tokens, which is more than the model's context."
            self._end(run, Finish.ERROR, invalid(message, param="messages", reason="context_length_exceeded"))
        elif error.kind == "invalid_request_error":
            refusal = invalid("The engine cannot run this request.")
            refusal.diagnostic = str(error)
            self._end(run, Finish.ERROR, refusal)
        else:
            self._end(run, Finish.ERROR, _engine_failed(str(error)))

    async def _broken(self, run: _Run, error: Exception) -> None:
        """A broken connection almost always means a dead child: then steps() says so, once for all."""
        server = self._server
        if server is not None:
            try:
                await asyncio.wait_for(server.dead.wait(), 2.0)
            except TimeoutError:
                self._end(run, Finish.ERROR, _engine_failed(repr(error)))

    async def _tokenize(self, text: str) -> list[int]:
        """The ids of a short text as the tokenizer spells it; remembered, since the same emoji come again."""
        if (ids := self._spellings.get(text)) is None:
            async with self._http.post("/tokenize", json={"content": text, "parse_special": False}) as response:
                ids = (await response.json())["tokens"]
            if len(self._spellings) >= _SPELLINGS:
                self._spellings.clear()
            self._spellings[text] = ids
        return ids

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("submit needs a started engine")
        return self._session

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
                if self._running and clock.monotonic() - self._moved_at > _STALL_SECONDS:
                    log.error("engine stands still", extra={"running": len(self._running)})
                    server.kill()
        self._ready.set()


def _engine_failed(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_failed", "The engine failed; retry.", retry_after=timedelta(seconds=1), diagnostic=diagnostic
    )

"""NVIDIA's TensorRT-LLM in this process, through the asyncio side of its LLM API.

It batches continuously, pages its KV cache and keeps a queue of its own; it is given at most ``capacity`` generations
at once, as token ids, and gives token ids back. Text, stop strings and what its versions differ in are ours.

It cannot be paused: while nobody asks for steps, no generation begins, and what the running ones make waits in their
own queues, at most to the end of each.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.engine import (
    Chat,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
)
from inferbus_worker.engines.tensorrt_llm_errors import check_known, failed, not_started
from inferbus_worker.engines.tensorrt_llm_request import arguments_of, content_of, encoded, run_of
from inferbus_worker.engines.tensorrt_llm_results import RefusedError, read, refused, results_of
from inferbus_worker.engines.tensorrt_llm_run import Run
from inferbus_worker.engines.tensorrt_llm_served import Served, serve
from inferbus_worker.engines.tensorrt_llm_stats import KvEvent, KvEvents, Statistics, read_all
from inferbus_worker.engines.tensorrt_llm_thread import in_thread

log = logging.getLogger(__name__)

# Results of one engine step arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096
_WATCH_SECONDS = 1.0
# Arguments of LLM(); the tokenizer and the adapter count by their content.
_NOT_OF_THE_TEXT = frozenset(
    {"max_batch_size", "max_num_tokens", "enable_iter_perf_stats", "kv_cache_config", "tokenizer", "lora_config"}
)


class TensorRtLlm:
    """Engine ``tensorrt_llm``. ``statistics``: of its last iteration. ``on_kv_events``: told what its cache holds."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.on_kv_events: list[Callable[[Sequence[KvEvent]], None]] = []
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "TensorRtLlm":
        return cls(config)

    def _reset(self) -> None:
        self._waiting: deque[Run] = deque()
        self._running: dict[bytes, Run] = {}
        self._steps = StepBuilder()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._served: Served | None = None
        self._death = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._moved_at = 0.0
        self.statistics = Statistics()

    async def start(self) -> EngineInfo:
        """Ready after a first token. Raises InferBusError if it cannot be built, or does not work."""
        timeout = self._config.tensorrt_llm.start_timeout.total_seconds()
        try:
            served = await in_thread(lambda: serve(self._config), timeout, lambda late: late.llm.shutdown())
            self._served = served
            async with asyncio.timeout(self._config.engine_stall.total_seconds()):
                await served.prove()
        except InferBusError:
            raise
        except Exception as error:
            raise not_started(repr(error)) from error
        self._tasks.append(asyncio.create_task(self._watch(served), name="engine-watch"))
        self._read_about(served)
        name, plan = self._config.model or served.folder.path.name, served.plan
        revision = _revision(served)
        return EngineInfo("tensorrt_llm", name, revision, plan.capacity, plan.context_length, served.capabilities)

    def submit(self, generation: Generation) -> None:
        try:
            run = run_of(generation, self._started)
        except InferBusError as error:
            self._steps.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            self._moved()
            return
        self._waiting.append(run)
        self._admit()

    def close(self, key: bytes) -> None:
        run = self._running.get(key)
        if run is None:
            run = next((waiting for waiting in self._waiting if waiting.key == key), None)
            if run is None:
                return
            self._waiting.remove(run)
        self._end(run, Finish.CANCELLED)

    async def steps(self) -> AsyncIterator[Step]:
        while (served := self._served) is not None:
            await self._ready.wait()
            self._ready.clear()
            if self._steps:
                self._cancel_timer()
                yield self._steps.take(clock.now_us())
                self._room.set()
                self._admit()
            if self._death and self._served is served:
                raise EngineDiedError(self._death)

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        if source == Chat(()):
            raise invalid("Send at least one message.", param="messages")
        served = self._started
        content = content_of(source, served, open_turn)
        if isinstance(content, str):
            # The template has written the special tokens into a chat.
            parse, add = (True, False) if isinstance(source, Chat) else (parse_special, add_special)
            content = tuple(await encoded(served, content, parse_special=parse, add_special=add))
        return Tokens(list(content), [served.words.pieces[token] for token in content])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        words = self._started.words
        check_known(ids, len(words.texts), "tokens")
        return words.text(ids)

    async def stop(self) -> None:
        served, ready, runs = self._served, self._ready, list(self._running.values())
        tasks = [*self._tasks, *(run.task for run in runs if run.task is not None)]
        self._cancel_timer()
        self._reset()
        ready.set()  # whoever waits for a step sees that there is no engine any more
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if served is None:
            return
        for run in runs:
            _abort(run)
        try:
            await in_thread(served.llm.shutdown, self._config.tensorrt_llm.stop_timeout.total_seconds())
        except Exception:  # it may be what died, and there is nothing that it could still do for us
            log.exception("the engine did not shut down")

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        served = self._served
        while served is not None and self._waiting and len(self._running) < served.plan.capacity:
            if self._death or not self._room.is_set():
                return
            run = self._waiting.popleft()
            self._running[run.key] = run
            run.task = asyncio.create_task(self._generate(run, served), name="generation")

    def _end(self, run: Run, reason: Finish, error: InferBusError | None = None) -> None:
        """The one end of a generation, whatever ended it."""
        self._running.pop(run.key, None)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        _abort(run)
        found = None
        if reason in (Finish.STOP, Finish.LENGTH):
            if held := run.filter.flush():
                self._steps.add(run.key, [], held.encode())
            found = run.filter.found
            reason = reason if found is None else Finish.STOP
        self._steps.finish(Finished(run.key, reason, run.input_tokens, run.cached_tokens, error, found))
        self._moved()
        self._admit()

    def _die(self, why: str) -> None:
        """What runs has no end here: it begins again elsewhere, or in the next start."""
        self._death = self._death or why
        self._ready.set()

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _generate(self, run: Run, served: Served) -> None:
        try:
            arguments = await arguments_of(run, served)
            if isinstance(arguments, Finish):
                self._end(run, arguments)
                return
            await self._follow(run, served, arguments)
        except InferBusError as fault:
            self._end(run, Finish.ERROR, fault)
        except RefusedError as error:
            log.info("engine refused", extra={"error": str(error)})
            end = refused(run, str(error))
            if isinstance(end, Finish):
                self._end(run, end)
            else:
                self._end(run, Finish.ERROR, end)
        except EngineDiedError as error:
            self._die(str(error))
        except Exception as error:  # ours, or an answer that we do not understand: it ends this generation only
            log.exception("a generation failed")
            self._end(run, Finish.ERROR, failed(repr(error)))

    async def _follow(self, run: Run, served: Served, arguments: dict[str, Any]) -> None:
        async with aclosing(results_of(run, served, arguments)) as results:
            async for result in results:
                self._moved_at = clock.monotonic()
                if self._running.get(run.key) is not run:
                    return  # closed while this one was already here
                delta = read(run, served, result)
                cut = run.filter.feed(delta.text)
                if delta.ids or cut.text:
                    self._steps.add(run.key, delta.ids, cut.text.encode(), delta.logprobs)
                    if self._steps.tokens >= _BUFFERED_TOKENS:
                        self._room.clear()
                if cut.stopped or delta.finish is not None:
                    self._end(run, delta.finish if delta.finish is not None and not cut.stopped else Finish.STOP)
                    return
                self._moved()
                if not self._room.is_set():
                    await self._room.wait()
        self._end(run, Finish.ERROR, failed("its results ended without a reason"))

    @property
    def _started(self) -> Served:
        if self._served is None:
            raise failed("it is not started, or about to be started again")
        return self._served

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

    # --- how it is --------------------------------------------------------------------------------------------------

    async def _watch(self, served: Served) -> None:
        """Turns an engine that stands still, or says that it is gone, into a dead one.

        Its own word is not enough: to most of its versions one whose inner loop has died is well.
        """
        well = getattr(served.llm, "_check_health", lambda: True)
        stall = self._config.engine_stall.total_seconds()
        while not self._death:
            await asyncio.sleep(min(_WATCH_SECONDS, stall / 4))
            now = clock.monotonic()
            owed = [run for run in self._running.values() if run.result is not None]
            if not owed or not self._room.is_set():
                self._moved_at = now
            elif now - self._moved_at > stall:
                self._die(f"no token for {now - self._moved_at:.0f} s, with {len(owed)} generations waiting for one")
            try:
                if not well():
                    self._die("its executor is gone")
            except Exception as error:  # a check that fails is an answer, too
                log.exception("the engine's health check failed")
                self._die(f"its health check failed: {error!r}")

    def _read_about(self, served: Served) -> None:
        settings = self._config.tensorrt_llm
        if settings.statistics and hasattr(served.llm, "get_stats_async"):
            reader = read_all(served.llm.get_stats_async, self._tell)
            self._tasks.append(asyncio.create_task(reader, name="engine-statistics"))
        if settings.kv_events:
            events = KvEvents(served.block_tokens)
            reader = read_all(served.llm.get_kv_cache_events_async, lambda one: self._tell_kv(events.take(one)))
            self._tasks.append(asyncio.create_task(reader, name="engine-kv-events"))

    def _tell(self, told: dict[str, Any]) -> None:
        self.statistics = Statistics.of(told)

    def _tell_kv(self, events: list[KvEvent]) -> None:
        for listener in self.on_kv_events if events else ():
            listener(events)


def _abort(run: Run) -> None:
    """Posts its cancel, and waits for nothing: the engine forgets it at its next step."""
    result = run.result
    if result is None or getattr(result, "finished", False):
        return
    try:
        result.abort()
    except Exception:  # an engine that is gone has forgotten it already
        log.exception("a generation could not be cancelled")


def _revision(served: Served) -> str:
    """Names what decides the text: the weights, their engine, and how it is set, but for sizes and reports."""
    arguments = served.plan.arguments
    settings = sorted((name, repr(value)) for name, value in arguments.items() if name not in _NOT_OF_THE_TEXT)
    cache = getattr(arguments.get("kv_cache_config"), "dtype", "auto")
    build = f"{served.folder.digest} {served.package.features.version} {served.plan.adapter} {cache} {settings}"
    return hashlib.sha256(build.encode()).hexdigest()[:12]

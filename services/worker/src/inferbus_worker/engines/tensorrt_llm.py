"""NVIDIA's TensorRT-LLM in this process, through the asyncio side of its LLM API.

It batches continuously, pages its KV cache and keeps a queue of its own; it is given at most ``capacity`` generations
at once, as token ids, and gives token ids back. Text, stop strings and what its versions differ in are ours.

It cannot be paused: while nobody asks for steps, no generation begins, and what the running ones make waits in their
own queues, at most to the end of each.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config
from inferbus_worker.core.block_prefixes import BlockPrefixes
from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.core.sampling import check_ids
from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engine import (
    Chat,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
)
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, Runs, not_up
from inferbus_worker.engines.tensorrt_llm_generate import generate
from inferbus_worker.engines.tensorrt_llm_request import content_of, encoded, run_of
from inferbus_worker.engines.tensorrt_llm_run import Run
from inferbus_worker.engines.tensorrt_llm_served import Served, serve
from inferbus_worker.engines.tensorrt_llm_stats import Iteration, KvEvent, KvEvents, follow, read_all
from inferbus_worker.engines.tensorrt_llm_thread import in_thread

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
# Arguments of LLM(); the tokenizer and the adapter count by their content.
_NOT_OF_THE_TEXT = frozenset(
    {"max_batch_size", "max_num_tokens", "enable_iter_perf_stats", "kv_cache_config", "tokenizer", "lora_config"}
)


class TensorRtLlm:
    """Engine ``tensorrt_llm``. ``on_kv_events``: told of each of its KV cache's blocks. Without TENSORRT_LLM__KV_EVENTS
    it tells of no block, and so of no prompt."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.prefixes = PrefixCache(config.prefixes_told)
        self.on_kv_events: list[Callable[[Sequence[KvEvent]], None]] = []
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "TensorRtLlm":
        return cls(config)

    def _reset(self) -> None:
        self._runs: Runs[Run] = Runs(0)
        self._outbox = Outbox(self._runs.running, self._admit)
        self._served: Served | None = None
        self.prefixes.clear()
        self._blocks: BlockPrefixes | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._iteration = Iteration()

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
            raise start_failed(repr(error)) from error
        self._tasks.append(asyncio.create_task(self._watch(served), name="engine-watch"))
        self._read_about(served)
        self._outbox.open()
        name, plan = self._config.model or served.folder.path.name, served.plan
        self._runs.capacity = plan.capacity
        revision = _revision(served)
        return EngineInfo("tensorrt_llm", name, revision, plan.capacity, plan.context_length, served.capabilities)

    def submit(self, generation: Generation) -> None:
        try:
            run = run_of(generation, self._started)
        except InferBusError as error:
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            return
        self._runs.waiting.append(run)
        self._admit()

    def close(self, key: bytes) -> None:
        if (run := self._runs.take(key)) is not None:
            self._end(run, End(Finish.CANCELLED))

    def steps(self) -> AsyncIterator[Step]:
        return self._outbox.steps()

    def statistics(self) -> EngineStatistics:
        block_tokens = None if self._served is None else self._served.block_tokens
        return self._iteration.statistics(len(self._runs.running), len(self._runs.waiting), block_tokens)

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
        check_ids(ids, len(words.texts), "tokens")
        return words.text(ids)

    async def stop(self) -> None:
        served, runs = self._served, list(self._runs.running.values())
        tasks = self._runs.tasks() + self._tasks
        self._outbox.close()
        self._reset()
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
        while self._outbox.room.is_set() and not self._outbox.death and (run := self._runs.next()) is not None:
            self._runs.begin(run, self._run(run))

    async def _run(self, run: Run) -> None:
        end = await generate(run, self._started, self._runs, self._outbox, self._has_read)
        if end is not None and self._runs.has(run):
            self._end(run, end)

    def _end(self, run: Run, end: End) -> None:
        """The one end of a generation, whatever ended it."""
        self._runs.leave(run)
        _abort(run)
        text, reason = run.filter.end(end.reason)
        if text:
            self._outbox.add(run.key, [], text)
        counts = run.input_tokens, run.cached_tokens
        self._outbox.finish(Finished(run.key, reason, *counts, end.error, run.filter.found))
        self._admit()

    @property
    def _started(self) -> Served:
        if self._served is None:
            raise not_up()
        return self._served

    # --- how it is --------------------------------------------------------------------------------------------------

    async def _watch(self, served: Served) -> None:
        """Turns an engine that says that it is gone into a dead one.

        To most of its versions one whose inner loop has died is well: that one stands still, which the worker finds.
        """
        well = getattr(served.llm, "_check_health", lambda: True)
        while not self._outbox.death:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                if not well():
                    self._outbox.die("its executor is gone")
            except Exception as error:  # a check that fails is an answer, too
                log.exception("the engine's health check failed")
                self._outbox.die(f"its health check failed: {error!r}")

    def _read_about(self, served: Served) -> None:
        settings = self._config.tensorrt_llm
        if settings.statistics and hasattr(served.llm, "get_stats_async"):
            reader = read_all(served.llm.get_stats_async, self._tell)
            self._tasks.append(asyncio.create_task(reader, name="engine-statistics"))
        if settings.kv_events:
            events = KvEvents(served.block_tokens)
            self._blocks = BlockPrefixes(self.prefixes, served.block_tokens)
            reader = read_all(served.llm.get_kv_cache_events_async, lambda one: self._tell_kv(events.take(one)))
            self._tasks.append(asyncio.create_task(reader, name="engine-kv-events"))

    def _tell(self, told: dict[str, Any]) -> None:
        self._iteration = self._iteration.next(told)

    def _has_read(self, run: Run) -> None:
        if self._blocks is not None and isinstance(run.prompt, tuple):
            self._blocks.read(run.prompt, run.input_bytes, run.generation.prefix)

    def _tell_kv(self, events: list[KvEvent]) -> None:
        if self._blocks is not None:
            follow(events, self._blocks)
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

"""Hugging Face's continuous batching on PyTorch, in a child process: for GPUs on which TensorRT-LLM is not installed.

The child is given at most ``capacity`` generations at once, as token ids, and tells one line an engine step: so a step
there is a step here, and costs one message. Text, stop strings and waiting are ours. While nobody asks for steps, the
child's line is not read, and its next step waits.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence

from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import check_ids
from inferbus_worker.engine import (
    Chat,
    EngineDiedError,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
)
from inferbus_worker.engines.transformers_files import read
from inferbus_worker.engines.transformers_process import DEFAULT_CAPACITY, Child, child_settings
from inferbus_worker.engines.transformers_run import Rules, Run, ask_of, content_of, encoded, run_of

log = logging.getLogger(__name__)

_BUFFERED_TOKENS = 4096


class Transformers:
    """Engine ``transformers``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._capacity = config.capacity or DEFAULT_CAPACITY
        self._serials = itertools.count(1)
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "Transformers":
        return cls(config)

    def _reset(self) -> None:
        self._waiting: deque[Run] = deque()
        self._running: dict[bytes, Run] = {}
        self._told: dict[int, Run] = {}
        self._steps = StepBuilder()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._child: Child | None = None
        self._rules: Rules | None = None
        self._reader: asyncio.Task[None] | None = None
        self._death = ""
        self._blocks_used = 0

    async def start(self) -> EngineInfo:
        """Ready after a first token. Raises InferBusError if the model cannot be made, or does not work."""
        settings = self._config.transformers
        files = await asyncio.to_thread(read, settings)
        child = self._child = await Child.start(
            child_settings(self._config, files), settings.start_timeout.total_seconds()
        )
        log.info("engine started", extra={"pid": child.pid, **child.about})
        context = min(files.context_length, self._config.context_length or files.context_length)
        # A generation that the whole cache cannot hold would end the library's loop.
        context = min(context, child.about["blocks"] * child.about["block_tokens"])
        able = (
            ("chat", files.template),
            ("completions", True),
            ("reasoning", files.template and files.template.reasoning),
        )
        capabilities = tuple(name for name, is_able in able if is_able)
        self._rules = Rules(files, capabilities, context, settings.samples)
        self._reader = asyncio.create_task(self._read(child), name="engine-steps")
        revision = f"{files.digest}-{child.about['dtype']}"
        name = self._config.model or files.path.name
        return EngineInfo("transformers", name, revision, self._capacity, context, capabilities)

    def submit(self, generation: Generation) -> None:
        try:
            run = run_of(generation, self._started)
        except InferBusError as error:
            self._steps.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            self._ready.set()
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
        while (child := self._child) is not None:
            await self._ready.wait()
            self._ready.clear()
            if self._steps or (not self._death and self._child is child):
                # One without content: the child has said that it reads a prompt.
                yield self._steps.take(clock.now_us())
                self._room.set()
                self._admit()
            if self._death and self._child is child:
                raise EngineDiedError(self._death)

    def statistics(self) -> EngineStatistics:
        about = self._child.about if self._child is not None else {}
        return EngineStatistics(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_total=about.get("blocks"),
            kv_blocks_used=self._blocks_used if about else None,
            kv_block_tokens=about.get("block_tokens"),
        )

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        if source == Chat(()):
            raise invalid("Send at least one message.", param="messages")
        files = self._started.files
        content = content_of(source, files, open_turn)
        if isinstance(content, str):
            # The template has written the special tokens into a chat.
            parse, add = (True, False) if isinstance(source, Chat) else (parse_special, add_special)
            content = await encoded(files, content, parse_special=parse, add_special=add)
        return Tokens(list(content), [files.words.pieces[token] for token in content])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        words = self._started.files.words
        check_ids(ids, len(words.texts), "tokens")
        return words.text(ids)

    async def stop(self) -> None:
        child, ready = self._child, self._ready
        tasks = [task for task in (self._reader, *(run.task for run in self._running.values())) if task is not None]
        self._reset()
        ready.set()  # whoever waits for a step sees that there is no engine any more
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if child is not None:
            await child.stop()

    @property
    def _started(self) -> Rules:
        if self._rules is None:
            raise engine_failed("it is not started, or about to be started again")
        return self._rules

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._capacity:
            if self._death or self._child is None or not self._room.is_set():
                return
            run = self._waiting.popleft()
            self._running[run.key] = run
            run.task = asyncio.create_task(self._begin(run, self._child, self._started), name="generation")

    async def _begin(self, run: Run, child: Child, rules: Rules) -> None:
        try:
            asked = await ask_of(run, rules)
        except InferBusError as fault:
            self._end(run, Finish.ERROR, fault)
            return
        except Exception as error:  # ours: it ends this generation only
            log.exception("a generation failed")
            self._end(run, Finish.ERROR, engine_failed(repr(error)))
            return
        if isinstance(asked, Finish):
            self._end(run, asked)
            return
        run.serial = next(self._serials)
        self._told[run.serial] = run
        child.send({"add": [run.serial, *asked]})

    def _end(self, run: Run, reason: Finish, error: InferBusError | None = None, *, known: bool = False) -> None:
        """The one end of a generation, whatever ended it. ``known``: the child has ended it."""
        self._running.pop(run.key, None)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()
        if self._told.pop(run.serial, None) is not None and not known and self._child is not None:
            self._child.send({"cancel": [run.serial]})
        found = None
        if reason in (Finish.STOP, Finish.LENGTH):
            if held := run.filter.flush():
                self._steps.add(run.key, [], held.encode())
            found = run.filter.found
            reason = reason if found is None else Finish.STOP
        self._steps.finish(Finished(run.key, reason, run.input_tokens, 0, error, found))
        self._ready.set()
        self._admit()

    # --- the child's steps ------------------------------------------------------------------------------------------

    async def _read(self, child: Child) -> None:
        try:
            async for message in child.steps():
                self._blocks_used = message["used"]
                self._take(*message["step"])
                self._ready.set()
                if self._steps.tokens >= _BUFFERED_TOKENS:
                    self._room.clear()
                    await self._room.wait()
            self._die(child.last_words())
        except Exception as error:  # an answer that we do not understand: nothing that follows can be trusted
            log.exception("the engine's steps cannot be read")
            self._die(repr(error))

    def _take(self, serials: list[int], tokens: list[int], ended: list[int]) -> None:
        """One step: ``tokens[i]`` is the next of ``serials[i]``; then who has ended with it."""
        told, add, ends = self._told, self._steps.add, self._started.files.end_ids
        for serial, token in zip(serials, tokens, strict=True):
            run = told.get(serial)
            if run is None:  # closed while this one was on its way
                continue
            if token in ends:
                self._complete(run, Finish.STOP)
                continue
            cut = run.filter.feed(run.text.feed((token,)))
            add(run.key, [token], cut.text.encode())
            if cut.stopped:
                self._end(run, Finish.STOP)
        for serial in ended:
            if (run := told.get(serial)) is not None:
                self._complete(run, Finish.LENGTH)

    def _complete(self, run: Run, reason: Finish) -> None:
        """The child has ended it: what there is of a character is text after all."""
        if rest := run.text.flush():
            self._steps.add(run.key, [], run.filter.feed(rest).text.encode())
        self._end(run, reason, known=True)

    def _die(self, why: str) -> None:
        """What runs has no end here: it begins again elsewhere, or in the next start."""
        self._death = self._death or why
        self._ready.set()

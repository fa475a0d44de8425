"""A timing model of a GPU: no model makes these tokens, and its text says so.

Every running generation gets one token each ITL, in one step; a new one waits for its prefill first. One timer and a
list of small records: it measures the platform, so it must cost next to nothing itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.core.sampling import context_exceeded, fault_of
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import (
    Chat,
    Embed,
    EngineDiedError,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Infer,
    Prompt,
    Source,
    Step,
    Tokens,
)

PUBLIC_NAME = "synthetic"
DEFAULT_CAPACITY = 1024
DEFAULT_CONTEXT_LENGTH = 32768
# What a generation says without a limit of its own: a real model also comes to an end.
_OWN_LENGTH = 256
# Steps that wait for a consumer who does not ask; then time stands still.
_BUFFERED_STEPS = 64

_SENTENCE = (
    "this is synthetic text: no model made it, a timer of the load test did, one word each step, so that the platform "
    "can be measured without a GPU."
)
_WORDS = tuple(_SENTENCE.split())
_TEXTS = tuple(f"{word} ".encode() for word in _WORDS)
_CYCLE = len(_WORDS)
_JITTER_CYCLE = 97
_WORD_IDS = {word: number for number, word in enumerate(_WORDS)}
# It reads every word, and writes only its own: any other has this id.
_UNKNOWN = _CYCLE
_UNKNOWN_TEXT = b"? "
# No model, no probabilities, no grammar: what would need one is refused.
CAPABILITIES = ("chat", "completions")


@dataclass(slots=True, eq=False)
class _Run:
    """``index``: tokens so far, resumed ones included. ``offset``: where in the words it began, by its seed."""

    key: bytes
    index: int
    limit: int
    reason: Finish
    offset: int
    input_tokens: int
    starts_us: int
    filter: StopFilter | None


class Synthetic:
    """Engine ``synthetic``. Token id ``i`` is the word ``i``; a seed chooses the first one, else it is word 0."""

    def __init__(self, model: str, capacity: int, context_length: int, timing: SyntheticConfig) -> None:
        self._itl_us = _microseconds(timing.itl)
        self._prefill_us = _microseconds(timing.prefill)
        self._jitter = timing.jitter
        self._dies_after = timing.dies_after
        revision = f"synthetic-{self._itl_us}us"
        self._info = EngineInfo("synthetic", model, revision, capacity, context_length, CAPABILITIES)
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "Synthetic":
        return cls(
            config.model or PUBLIC_NAME,
            config.capacity or DEFAULT_CAPACITY,
            config.context_length or DEFAULT_CONTEXT_LENGTH,
            config.synthetic,
        )

    def _reset(self) -> None:
        self._running: dict[bytes, _Run] = {}
        self._waiting: deque[_Run] = deque()
        self._buffer: deque[Step] = deque()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._death: asyncio.TimerHandle | None = None
        self._due_us = 0
        self._step_us: int | None = None
        self._ticks = 0
        self._started = False
        self._died = False

    async def start(self) -> EngineInfo:
        self._started = True
        if self._dies_after is not None:
            self._death = asyncio.get_running_loop().call_later(self._dies_after.total_seconds(), self._die)
        return self._info

    def submit(self, generation: Generation) -> None:
        run = self._accept(generation)
        if run is None:
            return
        if len(self._running) < self._info.capacity:
            self._begin(run)
        else:
            self._waiting.append(run)

    def close(self, key: bytes) -> None:
        run = self._running.pop(key, None)
        if run is None:
            run = next((waiting for waiting in self._waiting if waiting.key == key), None)
            if run is None:
                return
            self._waiting.remove(run)
        self._put(Step(clock.now_us(), finished=[Finished(key, Finish.CANCELLED, run.input_tokens)]))
        self._fill()

    async def steps(self) -> AsyncIterator[Step]:
        while self._started:
            if not self._buffer:
                if self._died:
                    raise EngineDiedError("the synthetic engine was told to die")
                self._wake.clear()
                await self._wake.wait()
                continue
            step = self._buffer.popleft()
            if self._timer is None:
                self._schedule(clock.now_us())
            yield step

    def statistics(self) -> EngineStatistics:
        seconds = None if self._step_us is None else self._step_us / 1e6
        return EngineStatistics(len(self._running), len(self._waiting), step_seconds=seconds)

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        """A word is a token; it has no special ones and no template."""
        if isinstance(source, Prompt) and not isinstance(source.content, str):
            return Tokens(list(source.content), [_piece(token) for token in source.content])
        words = [word for text in _texts(source) for word in text.split()]
        return Tokens([_WORD_IDS.get(word, _UNKNOWN) for word in words], [f"{word} ".encode() for word in words])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        return b"".join(_piece(token) for token in ids)

    async def stop(self) -> None:
        for handle in (self._timer, self._death):
            if handle is not None:
                handle.cancel()
        wake = self._wake
        self._reset()
        wake.set()

    def _die(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._died = True
        self._wake.set()

    def _accept(self, generation: Generation) -> _Run | None:
        """The record of a valid generation; of any other its end is put out."""
        input_tokens = _count(generation.input)
        room = self._info.context_length - input_tokens
        fault = fault_of(generation, CAPABILITIES)
        if fault is None and any(not 0 <= token < _CYCLE for token in generation.resume_ids):
            fault = invalid("The engine cannot run this request.")
        if fault is None and room < 1:
            fault = context_exceeded(generation.input, input_tokens)
        if fault is not None:
            self._put(Step(clock.now_us(), finished=[Finished(generation.key, Finish.ERROR, 0, error=fault)]))
            return None
        sampling = generation.sampling
        wanted = min(sampling.max_tokens or room, room)
        limit, reason = (wanted, Finish.LENGTH) if sampling.max_tokens else (min(_OWN_LENGTH, room), Finish.STOP)
        stops = StopFilter(sampling.stop) if sampling.stop else None
        if stops is not None:
            for token in generation.resume_ids:
                stops.feed(_TEXTS[token].decode())
        index = len(generation.resume_ids)
        if index >= limit:
            step = Step(clock.now_us(), finished=[Finished(generation.key, reason, input_tokens)])
            if stops is not None and (held := stops.flush()):
                step.keys, step.counts, step.texts = [generation.key], [0], [held.encode()]
            self._put(step)
            return None
        offset = (generation.resume_ids[0] if index else sampling.seed or 0) % _CYCLE
        return _Run(generation.key, index, limit, reason, offset, input_tokens, 0, stops)

    def _begin(self, run: _Run) -> None:
        now = clock.now_us()
        run.starts_us = now + round(run.input_tokens * self._prefill_us)
        self._running[run.key] = run
        if self._timer is None and len(self._buffer) < _BUFFERED_STEPS:
            self._schedule(now)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._info.capacity:
            self._begin(self._waiting.popleft())

    def _schedule(self, now_us: int, decoding: bool = False) -> None:
        """The next step is an ITL after the last, or at the end of the first prefill if nobody is ``decoding``."""
        if not self._running or self._died:
            return
        earliest = 0 if decoding else min(run.starts_us for run in self._running.values())
        self._step_us = self._interval_us()
        self._due_us = max(earliest, self._due_us + self._step_us, now_us)
        self._timer = asyncio.get_running_loop().call_later((self._due_us - now_us) / 1e6, self._step)

    def _interval_us(self) -> int:
        self._ticks += 1
        swing = (self._ticks * 37 % _JITTER_CYCLE) / _JITTER_CYCLE * 2 - 1
        return round(self._itl_us * (1 + self._jitter * swing))

    def _step(self) -> None:
        now = clock.now_us()
        self._timer = None
        step = Step(now)
        keys, ids, texts = step.keys, step.token_ids, step.texts
        for run in self._running.values():
            if run.starts_us > now:
                continue
            token = (run.offset + run.index) % _CYCLE
            run.index += 1
            keys.append(run.key)
            ids.append(token)
            texts.append(_TEXTS[token])
            if run.filter is not None or run.index >= run.limit:
                self._check_end(run, step)
        step.counts = [1] * len(keys)
        for finished in step.finished:
            del self._running[finished.key]
        if keys:
            self._put(step)
        self._fill()
        if self._timer is None and len(self._buffer) < _BUFFERED_STEPS:
            self._schedule(now, decoding=len(keys) > len(step.finished))

    def _check_end(self, run: _Run, step: Step) -> None:
        """Stop strings and length of the generation whose delta was just appended."""
        reason = run.reason if run.index >= run.limit else None
        if run.filter is not None:
            cut = run.filter.feed(step.texts[-1].decode())
            if cut.stopped:
                reason = Finish.STOP
            text = cut.text if reason is None or cut.stopped else cut.text + run.filter.flush()
            step.texts[-1] = text.encode()
        if reason is not None:
            found = None if run.filter is None else run.filter.found
            step.finished.append(Finished(run.key, reason, run.input_tokens, stop_index=found))

    def _put(self, step: Step) -> None:
        self._buffer.append(step)
        self._wake.set()


def _texts(source: Prompt | Chat) -> list[str]:
    """What it reads of them."""
    if isinstance(source, Chat):
        return [message.content for message in source.messages]
    return [source.content] if isinstance(source.content, str) else []


def _count(source: Source) -> int:
    """Input tokens: words, or the ids given."""
    if isinstance(source, Embed | Infer):
        return 0  # refused by its capabilities
    if isinstance(source, Prompt) and not isinstance(source.content, str):
        return len(source.content)
    return sum(len(text.split()) for text in _texts(source))


def _piece(token: int) -> bytes:
    if not 0 <= token <= _UNKNOWN:
        raise invalid(f"The model has no token {token}.", param="tokens")
    return _UNKNOWN_TEXT if token == _UNKNOWN else _TEXTS[token]


def _microseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1e6)

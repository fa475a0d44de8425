"""A timing model of a GPU: no model makes these tokens, and its text says so.

Every running generation gets one token each step; a new one waits for its prefill first. One timer and a list of small
records: it measures the platform, so it must cost next to nothing itself. How long what takes is
``inferbus_runtime.timing_model``, which the simulator counts with, too.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from inferbus_runtime import clock
from inferbus_runtime.errors import invalid
from inferbus_runtime.timing_model import TimingModel

from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.core.sampling import context_exceeded, fault_of
from inferbus_worker.core.stops import StopFilter
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
from inferbus_worker.engines.synthetic_places import Run, SyntheticPlaces
from inferbus_worker.engines.synthetic_words import CYCLE, TEXTS, count_of, id_of, piece_of, texts_of

PUBLIC_NAME = "synthetic"
DEFAULT_CAPACITY = 1024
DEFAULT_CONTEXT_LENGTH = 32768
# What a generation says without a limit of its own: a real model also comes to an end.
_OWN_LENGTH = 256
# Steps that wait for a consumer who does not ask; then time stands still.
_BUFFERED_STEPS = 64
_JITTER_CYCLE = 97
# No model, no probabilities, no grammar: what would need one is refused.
CAPABILITIES = ("chat", "completions")


class Synthetic:
    """Engine ``synthetic``. Token id ``i`` is the word ``i``; a seed chooses the first one, else it is word 0."""

    def __init__(
        self, model: str, capacity: int, context_length: int, timing: SyntheticConfig, prefixes_told: int = 0
    ) -> None:
        self.prefixes = PrefixCache(prefixes_told)
        self._model = TimingModel(
            step_seconds=timing.itl.total_seconds(),
            step_seconds_per_sequence=timing.step_per_sequence.total_seconds(),
            prefill_tokens_per_second=timing.prefill_rate,
            kv_blocks=timing.kv_blocks,
            kv_block_tokens=timing.kv_block_tokens,
        )
        self._prefill_us = _microseconds(timing.prefill)
        self._jitter = timing.jitter
        self._dies_after = timing.dies_after
        self._fails = timing.fails
        self._begun = 0
        if timing.kv_blocks:  # what can be asked for always has room, alone
            context_length = min(context_length, timing.kv_blocks * timing.kv_block_tokens)
        revision = f"synthetic-{_microseconds(timing.itl)}us"
        self._info = EngineInfo("synthetic", model, revision, capacity, context_length, CAPABILITIES)
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "Synthetic":
        return cls(
            config.model or PUBLIC_NAME,
            config.capacity or DEFAULT_CAPACITY,
            config.context_length or DEFAULT_CONTEXT_LENGTH,
            config.synthetic,
            config.prefixes_told,
        )

    def _reset(self) -> None:
        self.prefixes.clear()
        self._places = SyntheticPlaces(self._info.capacity, self._model, self._prefill_us, self.prefixes)
        self._buffer: deque[Step] = deque()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._death: asyncio.TimerHandle | None = None
        self._last_us = 0
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
        if run is not None:
            now = clock.now_us()
            self._places.submit(run, now)
            self._arrange(now)

    def close(self, key: bytes) -> None:
        now = clock.now_us()
        run = self._places.take(key, now)
        if run is None:
            return
        self._put(Step(now, finished=[Finished(key, Finish.CANCELLED, run.input_tokens, run.cached_tokens)]))
        self._places.fill(now)
        self._arrange(now)

    async def steps(self) -> AsyncIterator[Step]:
        while self._started:
            if not self._buffer:
                if self._died:
                    raise EngineDiedError("the synthetic engine was told to die")
                self._wake.clear()
                await self._wake.wait()
                continue
            step = self._buffer.popleft()
            self._arrange(clock.now_us())
            yield step

    def statistics(self) -> EngineStatistics:
        return self._places.statistics(self._step_us)

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        """A word is a token; it has no special ones and no template."""
        if isinstance(source, Prompt) and not isinstance(source.content, str):
            return Tokens(list(source.content), [piece_of(token) for token in source.content])
        words = [word for text in texts_of(source) for word in text.split()]
        return Tokens([id_of(word) for word in words], [f"{word} ".encode() for word in words])

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        return b"".join(piece_of(token) for token in ids)

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

    def _accept(self, generation: Generation) -> Run | None:
        """The record of a valid generation; of any other its end is put out."""
        input_tokens = count_of(generation.input)
        room = self._info.context_length - input_tokens
        fault = fault_of(generation, CAPABILITIES)
        if fault is None and any(not 0 <= token < CYCLE for token in generation.resume_ids):
            fault = invalid("The engine cannot run this request.")
        if fault is None and room < 1:
            fault = context_exceeded(generation.input, input_tokens)
        if fault is None and not generation.resume_ids and self._is_to_fail():
            fault = engine_failed("the synthetic engine was told to fail this one")
        if fault is not None:
            self._put(Step(clock.now_us(), finished=[Finished(generation.key, Finish.ERROR, 0, error=fault)]))
            return None
        sampling = generation.sampling
        wanted = min(sampling.max_tokens or room, room)
        limit, reason = (wanted, Finish.LENGTH) if sampling.max_tokens else (min(_OWN_LENGTH, room), Finish.STOP)
        stops = StopFilter(sampling.stop) if sampling.stop else None
        if stops is not None:
            for token in generation.resume_ids:
                stops.feed(TEXTS[token].decode())
        index = len(generation.resume_ids)
        if index >= limit:
            step = Step(clock.now_us(), finished=[Finished(generation.key, reason, input_tokens)])
            if stops is not None and (held := stops.flush()):
                step.keys, step.counts, step.texts = [generation.key], [0], [held.encode()]
            self._put(step)
            return None
        offset = (generation.resume_ids[0] if index else sampling.seed or 0) % CYCLE
        return Run(generation, index, limit, reason, offset, input_tokens, stops)

    def _is_to_fail(self) -> bool:
        """Of any number of generations in a row that part, rounded down."""
        self._begun += 1
        return int(self._begun * self._fails) > int((self._begun - 1) * self._fails)

    def _arrange(self, now: int) -> None:
        """There is a timer for the next step: an ITL after the last one, or, if nobody decodes, at the end of the first
        prefill, which may have come nearer."""
        places = self._places
        if self._died or len(self._buffer) >= _BUFFERED_STEPS:
            return
        if self._timer is not None:
            if places.decoding:
                return
            first = places.first_us
            if first is None or first >= self._due_us:
                return
            self._timer.cancel()
            self._timer = None
        if not places.running:
            return
        earliest = 0 if places.decoding else places.first_us or 0
        self._step_us = self._interval_us(len(places.decoding))
        self._due_us = max(earliest, self._last_us + self._step_us, now)
        self._timer = asyncio.get_running_loop().call_later((self._due_us - now) / 1e6, self._step)

    def _interval_us(self, sequences: int) -> int:
        self._ticks += 1
        swing = (self._ticks * 37 % _JITTER_CYCLE) / _JITTER_CYCLE * 2 - 1
        return round(self._model.step(sequences) * 1e6 * (1 + self._jitter * swing))

    def _step(self) -> None:
        now = clock.now_us()
        self._timer = None
        self._last_us = self._due_us
        # An event loop's timer may be a millisecond early: a prompt that is missed by that would wait for a whole step.
        self._places.read(max(now, self._due_us))
        step = Step(now)
        keys, ids, texts = step.keys, step.token_ids, step.texts
        decoding = self._places.decoding
        for key, run in decoding.items():
            token = (run.offset + run.index) % CYCLE
            run.index += 1
            keys.append(key)
            ids.append(token)
            texts.append(TEXTS[token])
            if run.filter is not None or run.index >= run.limit:
                self._check_end(run, step)
        step.counts = [1] * len(keys)
        for finished in step.finished:
            self._places.end(decoding[finished.key])
        if keys:
            self._put(step)
        self._places.fill(now)
        self._arrange(now)

    def _check_end(self, run: Run, step: Step) -> None:
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
            step.finished.append(Finished(run.key, reason, run.input_tokens, run.cached_tokens, stop_index=found))

    def _put(self, step: Step) -> None:
        self._buffer.append(step)
        self._wake.set()


def _microseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1e6)

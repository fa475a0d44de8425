"""Who waits in ``synthetic``, whose prompt is being read, and who gets a token each step.

Times are microseconds of one clock, given by the caller.
"""

from collections import deque
from dataclasses import dataclass

from inferbus_runtime.kv_model import KvModel
from inferbus_runtime.timing_model import TimingModel

from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import EngineStatistics, Finish, Generation
from inferbus_worker.engines.synthetic_words import tokens_in


@dataclass(slots=True, eq=False)
class Run:
    """``index``: tokens so far, resumed ones included. ``offset``: where in the words it began, by its seed. ``limit``:
    tokens at which it ends, with ``reason``. ``read_us``: how long its prompt is read; ``starts_us``: until then."""

    generation: Generation
    index: int
    limit: int
    reason: Finish
    offset: int
    input_tokens: int
    filter: StopFilter | None
    cached_tokens: int = 0
    read_us: int = 0
    starts_us: int = 0

    @property
    def key(self) -> bytes:
        return self.generation.key


class SyntheticPlaces:
    """``decoding``: those that get a token each step, in the order in which they began to.

    ``timing.prefill_tokens_per_second`` 0: each prompt is read by itself, ``alone_us`` an input token. ``prefixes`` is
    told what the KV cache holds, if it has a bound.
    """

    def __init__(self, capacity: int, timing: TimingModel, alone_us: int, prefixes: PrefixCache) -> None:
        self.decoding: dict[bytes, Run] = {}
        self._reading: dict[bytes, Run] = {}
        self._waiting: deque[Run] = deque()
        self._first_us: int | None = None
        self._capacity = capacity
        self._timing = timing
        self._alone_us = alone_us
        self._in_order = timing.prefill_tokens_per_second > 0
        self._prefixes = prefixes
        self._reused_tokens = 0
        self._kv: KvModel | None = None
        if timing.kv_blocks:
            self._kv = KvModel(timing.kv_blocks, timing.kv_block_tokens, prefixes.stored, prefixes.removed)

    @property
    def running(self) -> int:
        return len(self.decoding) + len(self._reading)

    def submit(self, run: Run, now: int) -> None:
        self._waiting.append(run)
        self.fill(now)

    def fill(self, now: int) -> None:
        """Whoever is next begins, as long as there is a place and room in the KV cache for its whole length."""
        while self._waiting and self.running < self._capacity:
            run = self._waiting[0]
            if not self._take_blocks(run):
                return  # the first in the queue waits, and nobody overtakes it
            self._waiting.popleft()
            self._set_out(run, now)
            self._reading[run.key] = run
            self._first_us = run.starts_us if self._first_us is None else min(self._first_us, run.starts_us)

    def read(self, now: int) -> None:
        """Moves those whose prompt has been read."""
        if self._first_us is None or self._first_us > now:
            return
        for run in list(self._reading.values()):
            if run.starts_us <= now:
                del self._reading[run.key]
                self.decoding[run.key] = run
                if self._kv is not None:
                    self._kv.read(run.key)
                    self._prefixes.used(run.generation.prefix)
            elif self._in_order:
                break
        self._find_first()

    @property
    def first_us(self) -> int | None:
        """When the first prompt will have been read; None: none is being read."""
        return self._first_us

    def end(self, run: Run) -> None:
        """One that decodes is over."""
        del self.decoding[run.key]
        if self._kv is not None:
            self._kv.end(run.key)

    def take(self, key: bytes, now: int) -> Run | None:
        """The one of ``key`` leaves its place, or the queue. None: there is none."""
        if (run := self.decoding.get(key)) is not None:
            self.end(run)
        elif (run := self._reading.pop(key, None)) is not None:
            if self._kv is not None:
                self._kv.end(key)
            self._close_up(now)
            self._find_first()
        elif (run := next((one for one in self._waiting if one.key == key), None)) is not None:
            self._waiting.remove(run)
        return run

    def statistics(self, step_us: int | None) -> EngineStatistics:
        seconds, kv = None if step_us is None else step_us / 1e6, self._kv
        if kv is None:
            return EngineStatistics(self.running, len(self._waiting), step_seconds=seconds)
        block_tokens = self._timing.kv_block_tokens
        return EngineStatistics(
            self.running,
            len(self._waiting),
            kv_blocks_total=kv.total,
            kv_blocks_used=kv.used,
            kv_block_tokens=block_tokens,
            kv_blocks_reused_total=self._reused_tokens // block_tokens,
            step_seconds=seconds,
        )

    def _take_blocks(self, run: Run) -> bool:
        if self._kv is None:
            return True
        generation = run.generation
        found = self._kv.begin(run.key, generation.prefix, run.input_tokens + run.limit)
        if found is None:
            return False
        self._prefixes.used(generation.prefix[:found])
        run.cached_tokens = tokens_in(generation.input, run.input_tokens, found, len(generation.prefix))
        self._reused_tokens += run.cached_tokens
        return True

    def _set_out(self, run: Run, now: int) -> None:
        """When it will have been read: prompt and what was delivered before, but for what is in the cache."""
        tokens = run.input_tokens - run.cached_tokens + run.index
        if not self._in_order:
            run.starts_us = now + tokens * self._alone_us
            return
        run.read_us = round(self._timing.prefill(tokens) * 1e6)
        last = next(reversed(self._reading.values()), None)
        run.starts_us = (now if last is None else max(now, last.starts_us)) + run.read_us

    def _find_first(self) -> None:
        self._first_us = min((run.starts_us for run in self._reading.values()), default=None)

    def _close_up(self, now: int) -> None:
        """Those behind one that has gone before it was read are read the sooner."""
        if not self._in_order:
            return
        free = now
        for run in self._reading.values():
            if run.starts_us - run.read_us > now:
                run.starts_us = free + run.read_us
            free = run.starts_us

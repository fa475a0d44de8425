"""One simulated engine: the rules of :mod:`inferbus_runtime.timing_model`, without an event for each token.

Between two beginnings or ends of generations every step takes equally long, so a count of steps that runs at that rate
says when each generation will have its last token.
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import ceil

from inferbus_contracts.prefixes import CHUNK_TOKENS
from inferbus_runtime.kv_model import KvModel
from inferbus_runtime.timing_model import TimingModel

from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.simulate.measures import Gaps, Measures
from inferbus_scheduler.core.simulate.trace import Arrival

_NEVER = float("inf")
# Steps are counted in fractions: nearer than this to a whole one is whole.
_EXACT = 1e-6
_LEAST_STEP = 1e-6


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """Equal workers of a fleet. ``capacity``: generations at once."""

    name: str
    count: int
    timing: TimingModel
    model: str = "synthetic"
    capacity: int = 64
    cost_per_hour: float = 1.0
    zones: int = 1


UNASKED = Request(b"", "", "", "", Priority.INTERACTIVE, 0.0, 0.0)
"""Of a generation that no scheduler has looked at."""


@dataclass(slots=True, eq=False)
class Generation:
    """What became of one arrival. ``delivered``: tokens of earlier attempts; ``first_at`` of the very first token,
    negative before. ``starts_step``: the step of its engine with its first token; -1: not read yet."""

    number: int
    arrival: Arrival
    request: Request = UNASKED
    attempt: int = 1
    delivered: int = 0
    first_at: float = -1.0
    last_at: float = -1.0
    starts_step: int = -1
    key: bytes = b""
    ended: bool = False
    worker: str = ""
    placed_at: float = 0.0
    fruitless_deaths: int = 0

    @property
    def request_id(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def left(self) -> int:
        return self.arrival.output_tokens - self.delivered

    @property
    def to_read(self) -> int:
        """Tokens: input, and the output so far if it goes on elsewhere."""
        return self.arrival.input_tokens + self.delivered


@dataclass(slots=True)
class Told:
    """What a worker has to say since it said something: a heartbeat and the changes of its KV cache."""

    taken: list[Generation] = field(default_factory=list)
    ended: list[Generation] = field(default_factory=list)
    started: list[Generation] = field(default_factory=list)
    cache: dict[int, bool] = field(default_factory=dict)
    """By chunk, whether its KV cache holds it, of those that came or went: as far as :meth:`Engine.tell_cache` says."""

    @property
    def stored(self) -> list[int]:
        return [chunk for chunk, held in self.cache.items() if held]

    @property
    def removed(self) -> list[int]:
        return [chunk for chunk, held in self.cache.items() if not held]

    def clear(self) -> None:
        """It has been said."""
        self.taken.clear()
        self.ended.clear()
        self.started.clear()
        self.cache.clear()


class Engine:
    """Times are simulated seconds. ``boot`` counts its lives; each begins with an empty KV cache."""

    def __init__(self, name: str, zone: str, kind: WorkerKind, measures: Measures) -> None:
        self.name = name
        self.zone = zone
        self.kind = kind
        self.boot = 0
        self.alive = False
        self.busy_seconds = 0.0
        # Of what will happen here next: what was foreseen under another one does not happen.
        self.version = 0
        self._measures = measures
        self._steps = [max(_LEAST_STEP, kind.timing.step(count)) for count in range(kind.capacity + 1)]
        self._gaps = [Gaps.number(seconds) for seconds in self._steps]
        self.start(0.0)

    def start(self, now: float) -> None:
        self.alive = True
        self.boot += 1
        self.version += 1
        self.told = Told()
        self.waiting: deque[Generation] = deque()
        self.reading: deque[Generation] = deque()
        # Of those that are not read, as heartbeats tell it: what the KV cache holds of them is counted, too.
        self.prefill_tokens = 0
        self.cache_news: dict[int, bool] = {}
        self.kv: KvModel | None = None
        timing = self.kind.timing
        if timing.kv_blocks:
            self.kv = KvModel(timing.kv_blocks, timing.kv_block_tokens, self._stored, self._removed)
        self._at = now
        self._step = 0.0
        self._read_at = _NEVER
        self._unread: dict[bytes, int] = {}
        # By the step of their last token.
        self._decoding: list[tuple[int, int, Generation]] = []

    def _stored(self, chunk: int) -> None:
        self.cache_news[chunk] = True

    def _removed(self, chunk: int) -> None:
        self.cache_news[chunk] = False

    def tell_cache(self) -> None:
        """What came and went is for telling."""
        self.told.cache.update(self.cache_news)
        self.cache_news.clear()

    @property
    def active(self) -> int:
        return len(self.waiting) + len(self.reading) + len(self._decoding)

    @property
    def decoding(self) -> int:
        return len(self._decoding)

    @property
    def step_seconds(self) -> float:
        """Of the steps at the moment; 0 if it makes none."""
        return self._steps[len(self._decoding)] if self._decoding else 0.0

    def running(self) -> list[Generation]:
        return [*self.waiting, *self.reading, *(generation for _, _, generation in self._decoding)]

    def next_at(self) -> float:
        """When something ends of itself: the first prompt is read, or a generation has its last token."""
        if not self._decoding:
            return self._read_at
        left = self._decoding[0][0] - self._step
        return min(self._read_at, self._at + max(0.0, left) * self._steps[len(self._decoding)])

    def submit(self, generation: Generation, now: float) -> None:
        self._advance(now)
        self.version += 1
        generation.starts_step = -1
        self.waiting.append(generation)
        self.told.taken.append(generation)
        self._unread[generation.key] = generation.to_read
        self.prefill_tokens += generation.to_read
        self._begin(now)

    def run(self, now: float) -> list[Generation]:
        """Do what is due by ``now``: those that have ended, with their last token."""
        self._advance(now)
        self.version += 1
        ended: list[Generation] = []
        if self._read_at <= now:
            self._read(now)
        while self._decoding and self._decoding[0][0] <= self._step + _EXACT:
            ends, _, generation = heappop(self._decoding)
            self._step = max(self._step, float(ends))
            if self.kv is not None:
                self.kv.end(generation.key)
            generation.delivered = generation.arrival.output_tokens
            generation.last_at = now
            ended.append(generation)
        if ended:
            self.told.ended += ended
            self._begin(now)
        return ended

    def tokens(self, generation: Generation) -> int:
        """Of this attempt so far, as of the last event here."""
        if generation.starts_step < 0:
            return 0
        return min(generation.left, max(0, int(self._step + _EXACT) - generation.starts_step + 1))

    def withdraw(self, generation: Generation, now: float) -> None:
        """It goes on elsewhere, or not at all; its tokens so far count as delivered."""
        self._advance(now)
        self.version += 1
        self._keep(generation, now)
        if generation in self.waiting:
            self.waiting.remove(generation)
        elif generation in self.reading:
            first = self.reading[0] is generation
            self.reading.remove(generation)
            if first:
                self._read_next(now)
        else:
            self._decoding = [entry for entry in self._decoding if entry[2] is not generation]
            heapify(self._decoding)
        if self._unread.pop(generation.key, None) is not None:
            self.prefill_tokens -= generation.to_read
        if self.kv is not None:
            self.kv.end(generation.key)
        self.told.ended.append(generation)
        self._begin(now)

    def die(self, now: float) -> list[Generation]:
        """Those that it took along, each with the tokens that it has delivered."""
        self._advance(now)
        self.alive = False
        lost = self.running()
        for generation in lost:
            self._keep(generation, now)
        self.version += 1
        self.waiting.clear()
        self.reading.clear()
        self._decoding = []
        self._read_at = _NEVER
        return lost

    def idle_until(self, now: float) -> None:
        """Count the time until ``now``."""
        if self.alive:
            self._advance(now)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        passed = now - self._at
        self._at = now
        if passed <= 0:
            return
        count = len(self._decoding)
        if count:
            steps = passed / self._steps[count]
            self._step += steps
            self._measures.gaps.add(self._gaps[count], steps * count)
        if count or self.reading:
            self.busy_seconds += passed

    def _begin(self, now: float) -> None:
        """Whoever waits begins when it has a place and its KV blocks; nobody overtakes."""
        while self.waiting and len(self.reading) + len(self._decoding) < self.kind.capacity:
            generation = self.waiting[0]
            hits = 0
            if self.kv is not None:
                arrival = generation.arrival
                longest = arrival.input_tokens + max(arrival.max_tokens, arrival.output_tokens)
                found = self.kv.begin(generation.key, arrival.prefix, longest)
                if found is None:
                    return
                hits = min(found * CHUNK_TOKENS, generation.to_read)
            self.waiting.popleft()
            self._measures.read(generation.to_read, hits, again=generation.attempt > 1)
            self._unread[generation.key] -= hits
            self.reading.append(generation)
            if len(self.reading) == 1:
                self._read_next(now)

    def _read_next(self, now: float) -> None:
        if not self.reading:
            self._read_at = _NEVER
            return
        self._read_at = now + self.kind.timing.prefill(self._unread[self.reading[0].key])

    def _read(self, now: float) -> None:
        """The first prompt, and those that take no time: each gets a token in the next step."""
        while self.reading and self._read_at <= now:
            generation = self.reading.popleft()
            del self._unread[generation.key]
            self.prefill_tokens -= generation.to_read
            if self.kv is not None:
                self.kv.read(generation.key)
            if not self._decoding:
                # Nobody is in the middle of a step: its first one is at once.
                self._step = float(ceil(self._step - _EXACT))
            starts = ceil(self._step - _EXACT)
            first_at = now + (starts - self._step) * self._steps[len(self._decoding)]
            generation.starts_step = starts
            if generation.first_at < 0:
                generation.first_at = first_at
            elif generation.last_at >= 0:
                self._measures.gaps.add(Gaps.number(first_at - generation.last_at), 1)
            heappush(self._decoding, (starts + generation.left - 1, generation.number, generation))
            self.told.started.append(generation)
            self._read_next(now)

    def _keep(self, generation: Generation, now: float) -> None:
        """What was delivered so far stays delivered."""
        tokens = self.tokens(generation)
        if tokens:
            generation.delivered += tokens
            generation.last_at = now
        elif not generation.delivered:
            generation.first_at = -1.0
        generation.starts_step = -1

"""What the simulated scheduler knows of one worker, by the rules of :class:`inferbus_scheduler.worker.Worker`."""

from dataclasses import dataclass

from inferbus_contracts.prefixes import CHUNK_TOKENS

from inferbus_scheduler.core.reading import Reading
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.simulate.engine import Engine, Generation
from inferbus_scheduler.core.view import WorkerView

_FOREVER = float("inf")


@dataclass(slots=True, eq=False)
class _Placed:
    """Tokens of one placement that its worker does not hold already: all of them at its end, and those to be read."""

    generation: Generation
    promised: int
    to_read: int
    on_the_way: bool = True


class Desk:
    """One life of a worker: its last heartbeat, and what was placed there."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.boot = engine.boot
        self.suspects: set[bytes] = set()
        self._placed: dict[bytes, _Placed] = {}
        # How many are not in its heartbeats yet, and sums over those, and over the others.
        self._way = self._way_tokens = self._way_to_read = self._counted_tokens = 0
        self._reading = Reading()
        self.hear(0.0)

    def __contains__(self, generation: Generation) -> bool:
        placed = self._placed.get(generation.key)
        return placed is not None and placed.generation is generation

    def generation(self, key: bytes) -> Generation:
        return self._placed[key].generation

    def reserve(self, generation: Generation, cached_chunks: int, now: float) -> None:
        request = generation.request
        cached = min(request.input_tokens, cached_chunks * CHUNK_TOKENS)
        placed = _Placed(generation, request.tokens - cached, request.input_tokens - cached)
        self._placed[generation.key] = placed
        self._way += 1
        self._way_tokens += placed.promised
        self._way_to_read += placed.to_read
        if request.suspect:
            self.suspects.add(generation.key)
        self._reading.changed(self._prefill + self._way_to_read, now)

    def drop(self, generation: Generation) -> None:
        placed = self._placed.pop(generation.key)
        self.suspects.discard(generation.key)
        if placed.on_the_way:
            self._counts(placed)
        self._counted_tokens -= placed.promised

    def hear(self, now: float) -> None:
        """A heartbeat."""
        engine = self.engine
        for generation in engine.told.taken:
            placed = self._placed.get(generation.key)
            if placed is not None and placed.on_the_way:
                self._counts(placed)
        for generation in engine.told.started:
            self.suspects.discard(generation.key)
        self._kv_used = engine.kv.used if engine.kv is not None else 0
        self._prefill = engine.prefill_tokens
        self._step_seconds = engine.step_seconds
        self._reading.changed(self._prefill + self._way_to_read, now, read=bool(engine.told.started))

    def _counts(self, placed: _Placed) -> None:
        placed.on_the_way = False
        self._way -= 1
        self._way_tokens -= placed.promised
        self._way_to_read -= placed.to_read
        self._counted_tokens += placed.promised

    def view(self) -> WorkerView:
        engine, kind = self.engine, self.engine.kind
        timing = kind.timing
        block_tokens = timing.kv_block_tokens
        growth = max(0, self._counted_tokens - self._kv_used * block_tokens)
        return WorkerView(
            name=engine.name,
            boot=self.boot,
            model=kind.model,
            capacity=kind.capacity,
            active=len(self._placed) - self._way,
            on_the_way=self._way,
            draining=False,
            alive_until=_FOREVER,
            node=engine.name,
            zone=engine.zone,
            cost_per_hour=kind.cost_per_hour,
            kv_blocks=timing.kv_blocks,
            kv_blocks_used=self._kv_used,
            kv_block_tokens=block_tokens,
            kv_tokens_promised=self._way_tokens + self._way * (block_tokens - 1) + growth,
            prefill_tokens=self._prefill + self._way_to_read,
            reads_since=self._reading.since,
            token_seconds=self._reading.token_seconds,
            step_seconds=self._step_seconds,
            suspects=len(self.suspects),
        )

    def running(self, generation: Generation) -> RunningView:
        """One of its placements, as a preemption sees it."""
        request = generation.request
        made = self.engine.tokens(generation)
        return RunningView(
            request_id=request.request_id,
            attempt=request.attempt,
            tenant=request.tenant,
            project=request.project,
            priority=request.priority,
            model=request.model,
            worker=self.engine.name,
            boot=self.boot,
            sequence=0 if self._placed[generation.key].on_the_way else 1,
            input_tokens=request.input_tokens,
            output_tokens=request.resumed_tokens + made,
            expected_tokens=request.resumed_tokens + request.output_tokens,
            placed_at=generation.placed_at,
            suspect=request.suspect,
            resumed_tokens=request.resumed_tokens,
        )

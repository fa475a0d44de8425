"""One incarnation of a worker and its account: what was placed there, and how much of it its heartbeats count."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from inferbus.bus.v1.control_pb2 import EngineStatistics, GpuStatus, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_contracts.prefixes import CHUNK_TOKENS

from inferbus_scheduler.core.reading import Reading
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.view import WorkerView

# Looked up once: an enum of protobuf costs a microsecond a time.
_ACTIVE = WorkerState.WORKER_STATE_ACTIVE
_NEVER = float("-inf")


@dataclass(slots=True)
class Placed:
    """One placement. ``counted``: its worker has taken it over, so that its heartbeats count it."""

    view: RunningView
    # Tokens of its input that the worker is thought to hold already.
    cached: int = 0
    sequence: int = 0
    output_tokens: int = 0
    counted: bool = False
    # Its end was told before the answer of its publish.
    ended: bool = False
    # Tokens, as they were added to the sums, so that the same is taken out.
    promised: int = 0
    to_read: int = 0

    @property
    def fresh(self) -> bool:
        """It has not made a token yet."""
        return self.output_tokens <= self.view.resumed_tokens

    def now(self) -> RunningView:
        view = self.view
        return RunningView(
            request_id=view.request_id, attempt=view.attempt, tenant=view.tenant, project=view.project,
            priority=view.priority, model=view.model, worker=view.worker, boot=view.boot, sequence=self.sequence,
            input_tokens=view.input_tokens, output_tokens=self.output_tokens, expected_tokens=view.expected_tokens,
            placed_at=view.placed_at, suspect=view.suspect, resumed_tokens=view.resumed_tokens,
        )  # fmt: skip


class Worker:
    """Times are monotonic seconds."""

    def __init__(self, record: WorkerRecord, now: float) -> None:
        self.record = record
        self.registered_at = now
        # The last heartbeat of this boot; None: never heard.
        self.heard_at: float | None = None
        self.active = 0
        self.work_sequence = 0
        self.output_tokens_total = 0
        self._prefill_tokens = 0
        self._reading = Reading()
        # As it was told last.
        self.gpus: tuple[GpuStatus, ...] = ()
        self.engine: EngineStatistics | None = None
        self._kv = (0, 0, 0)
        self._step_seconds = 0.0
        self._adapters = frozenset(record.adapters)
        # Placements by request: those on the way, and those that its heartbeats count.
        self._way: dict[bytes, Placed] = {}
        self._counted: dict[bytes, Placed] = {}
        # Sums over both.
        self._way_tokens = self._way_to_read = self._counted_tokens = 0
        self._suspects: set[bytes] = set()
        # Of both, how many of each class.
        self._counts: Counter[Priority] = Counter()
        # The lease ended while the broker was away: kept until then, in case it is renewed.
        self.forgotten_at: float | None = None
        # What runs then is given to others.
        self.hand_over_at: float | None = None
        # Its connection was found closed: nothing is expected of it unless it is heard again.
        self.gone_at: float | None = None
        # It was said that its work is to be moved.
        self.given_up = False
        # Cache events: the last one, and whether all before it are known.
        self.cache_sequence = 0
        self.cache_known = False
        # Whether it stands among the candidates, and as what.
        self.candidate: WorkerView | None = None

    @property
    def on_the_way(self) -> int:
        return len(self._way)

    @property
    def _to_read(self) -> int:
        return self._prefill_tokens + self._way_to_read

    @property
    def draining(self) -> bool:
        return self.record.state != _ACTIVE

    def update(self, record: WorkerRecord) -> None:
        """Another record of the same boot."""
        self.record = record
        self._adapters = frozenset(record.adapters)

    # --- what is placed ----------------------------------------------------------------------------------------

    def reserve(self, request: Request, cached_chunks: int, now: float) -> RunningView | None:
        """Count a publish that is under way. What it takes the place of: an earlier attempt whose end was not told."""
        before = self._drop(request.request_id)
        view = RunningView(
            request_id=request.request_id, attempt=request.attempt, tenant=request.tenant, project=request.project,
            priority=request.priority, model=request.model, worker=self.record.worker, boot=self.record.boot,
            sequence=0, input_tokens=request.input_tokens, output_tokens=request.resumed_tokens,
            expected_tokens=request.resumed_tokens + request.output_tokens, placed_at=now, suspect=request.suspect,
            resumed_tokens=request.resumed_tokens,
        )  # fmt: skip
        cached = min(request.input_tokens, cached_chunks * CHUNK_TOKENS)
        self._add(Placed(view, cached, output_tokens=request.resumed_tokens))
        self._reading.changed(self._to_read, now)
        return before

    def found(self, view: RunningView) -> None:
        """Placed by an earlier scheduler."""
        if view.request_id not in self._way and view.request_id not in self._counted:
            placed = Placed(view, sequence=view.sequence, output_tokens=view.output_tokens)
            placed.counted = 0 < view.sequence <= self.work_sequence
            self._add(placed)

    def settle(self, key: bytes, sequence: int | None) -> RunningView | None:
        """The publish is answered; what is over by that."""
        request_id = key[:REQUEST_ID_BYTES]
        placed = self._way.get(request_id)
        if placed is None or placed.view.key != key or placed.sequence:
            return None
        if sequence is None:
            return self._drop(request_id)
        placed.sequence = sequence
        if sequence <= self.work_sequence:
            if placed.ended:
                return self._drop(request_id)
            self._count(placed)
        placed.ended = False
        return None

    def moved(self, key: bytes) -> RunningView | None:
        """It was moved away: its heartbeats say when its room is free."""
        request_id = key[:REQUEST_ID_BYTES]
        placed = self._way.get(request_id) or self._counted.get(request_id)
        return self._drop(request_id) if placed is not None and placed.view.key == key else None

    def lost(self) -> list[RunningView]:
        """Nothing of it counts any more."""
        return [view for request_id in (*self._way, *self._counted) if (view := self._drop(request_id)) is not None]

    def running(self, below: Priority | None = None) -> Iterator[RunningView]:
        """All placements, or those of classes below ``below``."""
        for placed in (*self._counted.values(), *self._way.values()):
            if below is None or placed.view.priority > below:
                yield placed.now()

    def runs_below(self, above: Priority) -> bool:
        """Whether it has a placement of a class below ``above``."""
        return any(count and priority > above for priority, count in self._counts.items())

    # --- what it tells -----------------------------------------------------------------------------------------

    def heard(self, beat: Heartbeat, now: float) -> list[RunningView]:
        """A heartbeat of this boot; what has ended by it."""
        self.heard_at = now
        self.active = beat.active
        self.output_tokens_total = beat.output_tokens_total
        self._prefill_tokens = beat.prefill_tokens
        if beat.gpus:
            self.gpus = tuple(beat.gpus)
        self._told(beat.engine if beat.HasField("engine") else None)
        if beat.work_sequence > self.work_sequence:
            self.work_sequence = beat.work_sequence
            for placed in [each for each in self._way.values() if 0 < each.sequence <= beat.work_sequence]:
                self._count(placed)
        ended = [self._end(request_id) for request_id in _ids(beat.ended_ids)] if beat.ended_ids else []
        if beat.HasField("running"):
            ended += self._reconcile(beat)
        self._reading.changed(self._to_read, now, read=bool(beat.ttft_us))
        return [view for view in ended if view is not None]

    def _told(self, engine: EngineStatistics | None) -> None:
        self.engine = engine
        if engine is None:
            self._kv, self._step_seconds = (0, 0, 0), 0.0
            return
        known = engine.HasField("kv_blocks_total") and engine.HasField("kv_blocks_used") and engine.kv_block_tokens
        self._kv = (engine.kv_blocks_total, engine.kv_blocks_used, engine.kv_block_tokens) if known else (0, 0, 0)
        self._step_seconds = engine.step_seconds

    def _end(self, request_id: bytes) -> RunningView | None:
        if request_id in self._counted:
            return self._drop(request_id)
        placed = self._way.get(request_id)
        if placed is not None and not placed.sequence:
            # It was quicker than the answer of its publish, or an earlier attempt of it has ended.
            placed.ended = True
        return None

    def _reconcile(self, beat: Heartbeat) -> list[RunningView | None]:
        """By the list of all that runs: how far it is, and what ended unheard."""
        told = beat.running
        numbers = {request_id: number for number, request_id in enumerate(_ids(told.request_ids))}
        over = []
        for request_id, placed in self._counted.items():
            number = numbers.get(request_id)
            if number is None:
                over.append(request_id)
            elif told.attempts[number] == placed.view.attempt:
                self._progressed(placed, told.output_tokens[number])
        return [self._drop(request_id) for request_id in over]

    def _progressed(self, placed: Placed, output_tokens: int) -> None:
        placed.output_tokens = max(placed.output_tokens, output_tokens)
        if not placed.fresh:
            self._suspects.discard(placed.view.request_id)
        if placed.output_tokens > placed.view.expected_tokens:
            self._counted_tokens -= placed.promised
            placed.promised = placed.now().promised_tokens - placed.cached
            self._counted_tokens += placed.promised

    # --- sums --------------------------------------------------------------------------------------------------

    def _add(self, placed: Placed) -> None:
        view = placed.view
        placed.promised = view.promised_tokens - placed.cached
        placed.to_read = view.input_tokens - placed.cached
        if view.suspect and placed.fresh:
            self._suspects.add(view.request_id)
        self._counts[view.priority] += 1
        if placed.counted:
            self._counted[view.request_id] = placed
            self._counted_tokens += placed.promised
        else:
            self._way[view.request_id] = placed
            self._way_tokens += placed.promised
            self._way_to_read += placed.to_read

    def _count(self, placed: Placed) -> None:
        request_id = placed.view.request_id
        del self._way[request_id]
        self._way_tokens -= placed.promised
        self._way_to_read -= placed.to_read
        placed.counted = True
        self._counted[request_id] = placed
        self._counted_tokens += placed.promised

    def _drop(self, request_id: bytes) -> RunningView | None:
        self._suspects.discard(request_id)
        placed = self._counted.pop(request_id, None)
        if placed is not None:
            self._counted_tokens -= placed.promised
        elif (placed := self._way.pop(request_id, None)) is not None:
            self._way_tokens -= placed.promised
            self._way_to_read -= placed.to_read
            self._reading.tokens = self._to_read  # it was not read
        else:
            return None
        self._counts[placed.view.priority] -= 1
        return placed.now()

    def view(self, timeout: float) -> WorkerView:
        """As a decision sees it. ``timeout``: seconds of silence after which its lease is taken to have ended."""
        record, (blocks, used, block_tokens) = self.record, self._kv
        dead = self.heard_at is None or self.gone_at is not None
        return WorkerView(
            name=record.worker,
            boot=record.boot,
            model=record.model,
            capacity=record.capacity,
            active=self.active,
            on_the_way=len(self._way),
            draining=self.draining,
            alive_until=_NEVER if dead or self.heard_at is None else self.heard_at + timeout,
            revision=record.revision,
            node=record.node,
            zone=record.zone,
            cost_per_hour=record.cost_per_hour,
            adapters=self._adapters,
            kv_blocks=blocks,
            kv_blocks_used=used,
            kv_block_tokens=block_tokens,
            # Each on the way may begin a block that it does not fill. What runs grows to what is expected; an engine
            # that has reserved all of that says so by what is used.
            kv_tokens_promised=self._way_tokens
            + len(self._way) * max(0, block_tokens - 1)
            + max(0, self._counted_tokens - used * block_tokens),
            prefill_tokens=self._to_read,
            reads_since=self._reading.since,
            token_seconds=self._reading.token_seconds,
            step_seconds=self._step_seconds,
            suspects=len(self._suspects),
        )


def _ids(joined: bytes) -> list[bytes]:
    return [joined[at : at + REQUEST_ID_BYTES] for at in range(0, len(joined), REQUEST_ID_BYTES)]

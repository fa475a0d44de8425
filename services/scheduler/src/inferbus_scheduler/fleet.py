"""The one mutable thing: which workers there are, and how much room each has.

Told by leases (registry ``fleet``: who), heartbeats (how loaded) and the dispatcher (what it has sent and is not yet
in a heartbeat). It keeps the :class:`ClusterView` that decisions read up to date in place.

A worker counts only after its first heartbeat: before that its load is not known.
"""

import logging
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inferbus.bus.v1.control_pb2 import EngineStatistics, GpuStatus, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState

from inferbus_scheduler.core.view import ClusterView, WorkerView, add, drop

log = logging.getLogger(__name__)
# Looked up once: an enum of protobuf costs a microsecond a time.
_ACTIVE = WorkerState.WORKER_STATE_ACTIVE
# Room that appears for this model: what waits for it may go.
OnRoom = Callable[[str], None]


@dataclass(slots=True)
class Worker:
    """One registration (name and boot) and its account."""

    record: WorkerRecord
    # Monotonic seconds of the last heartbeat of this boot; None: never heard.
    heard_at: float | None = None
    active: int = 0
    work_sequence: int = 0
    output_tokens_total: int = 0
    # As it was told last; to be shown, nothing is decided by it.
    gpus: tuple[GpuStatus, ...] = ()
    engine: EngineStatistics | None = None
    # Requests whose publish to WORK has no answer yet.
    unanswered: set[bytes] = field(default_factory=set)
    # WORK sequences of placements above work_sequence, ascending.
    placed: list[int] = field(default_factory=list)
    # The lease ended while the broker was away: kept until then, in case it is renewed.
    forgotten_at: float | None = None
    # The view under which it stands among the candidates; None: it does not.
    candidate: WorkerView | None = None

    @property
    def on_the_way(self) -> int:
        return len(self.unanswered) + len(self.placed)


class Fleet:
    """Single-threaded; every method returns at once. Times are monotonic seconds."""

    def __init__(self, *, heartbeat_timeout: float, reconnect_grace: float, now: float) -> None:
        self._timeout = heartbeat_timeout
        self._grace = reconnect_grace
        # Before our own start nobody was missed: workers that are there need a moment to be heard.
        self._born = now
        self._grace_until = now
        self._away = False
        self._workers: dict[str, Worker] = {}
        self._candidates: dict[str, list[WorkerView]] = {}
        # When the last candidate of a model went away; only for models that had one.
        self._unserved_since: dict[str, float] = {}
        self.view = ClusterView(self._candidates)
        self.on_room: OnRoom = lambda model: None
        # Grows with every change that an operator may want to see.
        self.version = 0

    # --- what others say ---------------------------------------------------------------------------------------

    def registered(self, name: str, record: WorkerRecord, now: float) -> None:
        """A lease was taken or renewed. Another boot begins with an empty account: what its predecessor had is
        delivered to it again, and comes back in its heartbeats."""
        if record.worker != name:
            log.error("a lease names another worker", extra={"lease": name, "worker": record.worker})
            return
        worker = self._workers.get(name)
        if worker is not None and worker.record == record and worker.forgotten_at is None:
            return
        if worker is None or worker.record.boot != record.boot:
            if worker is not None:
                self._withdraw(worker, now)
                log.info("worker restarted", extra={"worker": name, "placements_reset": len(worker.placed)})
            else:
                log.info("worker joined", extra={"worker": name, "model": record.model})
            unanswered = worker.unanswered if worker is not None else set()
            worker = self._workers[name] = Worker(record, unanswered=unanswered)
        else:
            self._withdraw(worker, now)
            worker.record, worker.forgotten_at = record, None
        self._update(worker, now)

    def lease_ended(self, name: str, now: float) -> None:
        """Its placements are forgotten: they wait on WORK for its restart. After an outage of the broker, a lease may
        have run out with nobody able to renew it, so then there is a grace."""
        worker = self._workers.get(name)
        if worker is None:
            return
        if self._away or now < self._grace_until:
            worker.forgotten_at = max(self._grace_until, now + self._grace)
            return
        self._forget(name, now)

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """The load of one worker. That of another boot than the registered one says nothing about this one."""
        worker = self._workers.get(beat.worker)
        if worker is None or worker.record.boot != beat.boot:
            return
        worker.heard_at = now
        worker.active = beat.active
        worker.output_tokens_total = beat.output_tokens_total
        if beat.gpus:
            worker.gpus = tuple(beat.gpus)
        worker.engine = beat.engine if beat.HasField("engine") else None
        if beat.work_sequence > worker.work_sequence:
            worker.work_sequence = beat.work_sequence
            del worker.placed[: bisect_right(worker.placed, beat.work_sequence)]
        self._update(worker, now)

    def bus_away(self) -> None:
        """Silence means nothing from now on."""
        self._away = True

    def bus_back(self, now: float) -> None:
        """Everybody known counts as just heard, and has the grace to renew its lease."""
        self._away = False
        self._grace_until = now + self._grace
        for worker in self._workers.values():
            if worker.heard_at is not None:
                worker.heard_at = now
                self._update(worker, now)

    def sweep(self, now: float) -> None:
        """Once a second or so: take out who is silent, and forget whose grace is over."""
        if self._away:
            return
        for name, worker in list(self._workers.items()):
            if worker.forgotten_at is not None and worker.forgotten_at <= now:
                self._forget(name, now)
            elif worker.candidate is not None and worker.candidate.alive_until < now:
                log.warning("worker is silent", extra={"worker": name, "placements": worker.on_the_way})
                self._withdraw(worker, now)

    # --- what the dispatcher does ------------------------------------------------------------------------------

    def reserve(self, name: str, request_id: bytes, now: float) -> None:
        """A publish to WORK is under way: the place counts as taken until :meth:`settle`."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.unanswered.add(request_id)
            self._update(worker, now)

    def settle(self, name: str, request_id: bytes, sequence: int | None, now: float) -> None:
        """The publish is answered: stored at ``sequence``, or not by this publish (None)."""
        worker = self._workers.get(name)
        if worker is None or request_id not in worker.unanswered:
            return
        worker.unanswered.discard(request_id)
        if sequence is not None and sequence > worker.work_sequence:
            insort(worker.placed, sequence)
        else:
            self._update(worker, now)

    # --- what others ask ---------------------------------------------------------------------------------------

    def serves(self, model: str) -> bool:
        """Whether a worker of ``model`` is alive."""
        return bool(self._candidates.get(model))

    def unserved_since(self, model: str) -> float | None:
        """Since when no worker of ``model`` is alive, at the earliest since our own start; None: there is one."""
        return None if self.serves(model) else self._unserved_since.get(model, self._born)

    def knows_model(self, model: str) -> bool:
        return any(worker.record.model == model for worker in self._workers.values())

    def takes_work(self, name: str) -> bool:
        """Whether it has a lease and is not about to leave."""
        worker = self._workers.get(name)
        return worker is not None and worker.record.state == _ACTIVE

    def workers(self) -> Iterator[Worker]:
        """All with a lease, by name. To read."""
        return (self._workers[name] for name in sorted(self._workers))

    def views(self) -> tuple[WorkerView, ...]:
        """All with a lease as a decision would see them, candidates or not."""
        return tuple(self._view_of(worker) for worker in self._workers.values())

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _view_of(self, worker: Worker) -> WorkerView:
        record = worker.record
        return WorkerView(
            name=record.worker,
            boot=record.boot,
            model=record.model,
            capacity=record.capacity,
            active=worker.active,
            on_the_way=worker.on_the_way,
            draining=record.state != _ACTIVE,
            alive_until=float("-inf") if worker.heard_at is None else worker.heard_at + self._timeout,
        )

    def _update(self, worker: Worker, now: float) -> None:
        """Bring its place among the candidates up to date, and say so if it has room that it had not."""
        self.version += 1
        before, after = worker.candidate, self._view_of(worker)
        if before is not None:
            drop(self._candidates[before.model], before)
            worker.candidate = None
        if after.draining or after.alive_until < now:
            self._left(after.model, now)
            return
        candidates = self._candidates.get(after.model)
        if candidates is None:
            candidates = self._candidates[after.model] = []
            self._unserved_since.pop(after.model, None)
        add(candidates, after)
        worker.candidate = after
        if after.room > (before.room if before is not None else 0):
            self.on_room(after.model)

    def _withdraw(self, worker: Worker, now: float) -> None:
        before, worker.candidate = worker.candidate, None
        self.version += 1
        if before is not None:
            drop(self._candidates[before.model], before)
            self._left(before.model, now)

    def _left(self, model: str, now: float) -> None:
        """Nothing stays behind of a model that nobody serves but when that began."""
        if model in self._candidates and not self._candidates[model]:
            del self._candidates[model]
            self._unserved_since[model] = now

    def _forget(self, name: str, now: float) -> None:
        worker = self._workers.pop(name)
        self._withdraw(worker, now)
        log.warning(
            "worker left: what it had waits on WORK for its restart",
            extra={"worker": name, "active": worker.active, "on_the_way": worker.on_the_way},
        )

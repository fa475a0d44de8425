"""The one mutable thing: which workers there are, how much room each has, and what runs where.

Told by leases (registry ``fleet``: who), heartbeats (how loaded, what ended), cache events (which prefixes) and the
dispatcher (what it has sent and is not yet in a heartbeat). It keeps the :class:`ClusterView` that decisions read up to
date in place, and says once of each incarnation that has gone that its work is to be moved.

A worker counts only after its first heartbeat: before that its load is not known.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from inferbus.bus.v1.control_pb2 import CacheEvents, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_contracts.prefixes import hashes_of
from inferbus_runtime import clock

from inferbus_scheduler.core.affinity import PrefixIndex
from inferbus_scheduler.core.lower_work import LowerWork
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.score import Weights
from inferbus_scheduler.core.view import Candidates, ClusterView, WorkerView
from inferbus_scheduler.worker import Worker

log = logging.getLogger(__name__)
# Why the work of an incarnation is to be moved.
WORKER_LOST = "worker_lost"
DRAINED = "drained"
# What was on its way when a connection was found closed may still be heard for that long.
_ECHO_SECONDS = 1.0
# Of each zone so many workers are asked first for a prefix that many hold.
_BEST = 4


class Fleet:
    """Single-threaded; every method returns at once. Times are monotonic seconds.

    ``silent_after``: seconds without a heartbeat after which a worker is to be probed: 1.5 of their intervals.
    """

    def __init__(
        self,
        *,
        heartbeat_timeout: float,
        reconnect_grace: float,
        now: float,
        silent_after: float = 0.75,
        weights: Weights | None = None,
        index: PrefixIndex | None = None,
    ) -> None:
        self._timeout = heartbeat_timeout
        self._grace = reconnect_grace
        self._silent_after = silent_after
        # Before our own start nobody was missed: workers that are there need a moment to be heard.
        self._born = now
        self._grace_until = now
        self._away = False
        self._weights = weights if weights is not None else Weights()
        self._index = index if index is not None else PrefixIndex()
        self._workers: dict[str, Worker] = {}
        self._candidates: dict[str, Candidates] = {}
        # Of candidates only.
        self._lower = LowerWork()
        # When the last candidate of a model went away; only for models that had one.
        self._unserved_since: dict[str, float] = {}
        self.view = ClusterView(self._weights, self._candidates)
        # Room that appears for this (base) model: what waits for it may go.
        self.on_room: Callable[[str], None] = lambda model: None
        # (worker, boot, reason): all that is on WORK for this incarnation is to be moved.
        self.on_gone: Callable[[str, int, str], None] = lambda worker, boot, reason: None
        # A placement is over here, however it ended.
        self.on_ended: Callable[[RunningView], None] = lambda running: None
        # (base model, whether it has a worker from now on, now): its first one has come, or its last one has gone.
        self.on_serving: Callable[[str, bool, float], None] = lambda model, served, now: None
        # (base model, heartbeat that says what was served).
        self.on_served: Callable[[str, Heartbeat], None] = lambda model, beat: None
        # Grows with every change that an operator may want to see.
        self.version = 0

    # --- what others say ---------------------------------------------------------------------------------------

    def registered(self, name: str, record: WorkerRecord, now: float) -> None:
        """A lease was taken or renewed. Another boot is another incarnation: it begins with an empty account, and what
        the one before it had is to be moved."""
        if record.worker != name:
            log.error("a lease names another worker", extra={"lease": name, "worker": record.worker})
            return
        worker = self._workers.get(name)
        if worker is not None and worker.record == record and worker.forgotten_at is None:
            return
        if worker is not None and worker.record.boot != record.boot:
            self._end(name, now)
            worker = None
        if worker is None:
            log.info("worker joined", extra={"worker": name, "boot": record.boot, "model": record.model})
            worker = self._workers[name] = Worker(record, now)
        elif worker.record.model != record.model:
            self._withdraw(worker, now)
        worker.update(record)
        worker.forgotten_at = worker.hand_over_at = None
        if worker.gone_at is None:
            # It may have thought better of leaving, or has a new time for it.
            worker.given_up = False
        if worker.draining and record.HasField("hand_over_time"):
            worker.hand_over_at = now + (clock.unix_us(record.hand_over_time) - clock.now_us()) / 1e6
        self._update(worker, now)
        self._hand_over(worker, now)

    def lease_ended(self, name: str, now: float) -> None:
        """Its work is to be moved. After an outage of the broker, a lease may have run out with nobody able to renew
        it, so then there is a grace."""
        worker = self._workers.get(name)
        if worker is None:
            return
        if self._away or now < self._grace_until:
            worker.forgotten_at = max(self._grace_until, now + self._grace)
            return
        self._end(name, now)

    def connection_gone(self, name: str, boot: int, now: float) -> None:
        """Nobody hears what is said to this incarnation: it is dead, whatever its lease says. If it is heard again all
        the same, it may have new work; what it had is moved."""
        worker = self._workers.get(name)
        if worker is None or worker.record.boot != boot or worker.gone_at is not None or not self._judges(now):
            return
        worker.gone_at = now
        log.warning("worker has lost its connection", extra={"worker": name, "boot": boot, "active": worker.active})
        self._withdraw(worker, now)
        self._lose(worker)

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """The load of one worker. That of another boot than the registered one says nothing about this one."""
        worker = self._workers.get(beat.worker)
        if worker is None or worker.record.boot != beat.boot:
            return
        if worker.gone_at is not None:
            if now < worker.gone_at + _ECHO_SECONDS:
                return
            log.warning("worker is heard again", extra={"worker": beat.worker, "boot": beat.boot})
            worker.gone_at, worker.given_up = None, False
        ended = worker.heard(beat, now)
        for running in ended:
            self.on_ended(running)
        if beat.served:
            self.on_served(worker.record.model, beat)
        self._update(worker, now)

    def cache_events(self, events: CacheEvents, now: float) -> None:
        """What a worker's KV cache holds. After a gap nothing is known of it until it tells all."""
        worker = self._workers.get(events.worker)
        if worker is None or worker.record.boot != events.boot:
            return
        follows = worker.cache_known and events.sequence == worker.cache_sequence + 1
        worker.cache_sequence = events.sequence
        if follows and not events.all:
            self._index.removed(events.worker, hashes_of(events.removed))
            self._index.stored(events.worker, hashes_of(events.stored))
        elif events.all:
            # One that follows tells what is known.
            if not follows:
                self._index.replace(events.worker, hashes_of(events.stored))
            worker.cache_known = True
        elif worker.cache_known:
            worker.cache_known = False
            self._index.forget(events.worker)

    def bus_away(self) -> None:
        """Silence means nothing from now on."""
        self._away = True

    def bus_back(self, now: float) -> None:
        """Everybody known counts as just heard, and has the grace to renew its lease."""
        self._away = False
        self._grace_until = now + self._grace
        for worker in self._workers.values():
            worker.cache_known = False
            self._index.forget(worker.record.worker)
            if worker.heard_at is not None:
                worker.heard_at = now
                self._update(worker, now)

    def sweep(self, now: float) -> None:
        """Once a second or so: take out who is silent, hand over what drains too long, forget whose grace is over."""
        if self._away:
            return
        for name, worker in list(self._workers.items()):
            if worker.forgotten_at is not None and worker.forgotten_at <= now:
                self._end(name, now)
                continue
            self._hand_over(worker, now)
            if worker.candidate is not None and worker.candidate.alive_until < now:
                log.warning("worker is silent", extra={"worker": name, "placements": worker.on_the_way})
                self._withdraw(worker, now)

    # --- what the dispatcher and the takeover do ---------------------------------------------------------------

    def reserve(self, name: str, request: Request, now: float, cached_chunks: int = 0) -> None:
        """A publish to WORK is under way: the place counts as taken until :meth:`settle`. ``cached_chunks``: of its
        prefix, what the worker holds already."""
        worker = self._workers.get(name)
        if worker is not None:
            before = worker.reserve(request, cached_chunks, now)
            if before is not None:
                self.on_ended(before)
            self._update(worker, now)

    def settle(self, name: str, key: bytes, sequence: int | None, now: float) -> None:
        """The publish is answered: stored at ``sequence``, or not by this publish (None)."""
        worker = self._workers.get(name)
        if worker is None:
            return
        on_the_way = worker.on_the_way
        over = worker.settle(key, sequence)
        if over is not None:
            self.on_ended(over)
        if sequence is not None and worker.given_up:
            # It came behind the move of all that was there.
            self._give_up(worker)
        if worker.on_the_way != on_the_way:
            self._update(worker, now)

    def found(self, name: str, boot: int, running: RunningView) -> None:
        """An earlier scheduler placed this: the scan of WORK says so."""
        worker = self._workers.get(name)
        if worker is not None and worker.record.boot == boot:
            worker.found(running)
            self._update(worker, running.placed_at)

    def moved(self, name: str, key: bytes, now: float) -> None:
        """This placement goes on elsewhere. Its room is free when the worker's heartbeats say so."""
        worker = self._workers.get(name)
        over = worker.moved(key) if worker is not None else None
        if worker is not None and over is not None:
            self.on_ended(over)
            self._update(worker, now)

    # --- what others ask ---------------------------------------------------------------------------------------

    def serves(self, model: str) -> bool:
        """Whether a worker of ``model`` is alive; of an adapter: one that has loaded it."""
        candidates = self._candidates.get(base_of(model))
        if candidates is None:
            return False
        return ":" not in model or any(_has(worker, model) for worker in candidates.named.values())

    def unserved_since(self, model: str) -> float | None:
        """Since when no worker of ``model`` is alive, at the earliest since our own start; None: there is one."""
        return None if self.serves(model) else self._unserved_since.get(base_of(model), self._born)

    def knows_model(self, model: str) -> bool:
        return any(
            worker.record.model == base_of(model) and (":" not in model or model in worker.record.adapters)
            for worker in self._workers.values()
        )

    def takes_work(self, name: str) -> bool:
        """Whether it has a lease and is not about to leave."""
        worker = self._workers.get(name)
        return worker is not None and worker.gone_at is None and not worker.draining

    def knows(self, name: str, boot: int) -> bool:
        """Whether this incarnation has a lease, or may renew it, and is not given up."""
        worker = self._workers.get(name)
        return worker is not None and worker.record.boot == boot and worker.gone_at is None

    def boot_of(self, name: str) -> int:
        """Of the incarnation that has the lease; 0: there is none."""
        worker = self._workers.get(name)
        return worker.record.boot if worker is not None else 0

    def revision_of(self, name: str) -> str:
        """Of what the worker serves; empty: there is no such worker."""
        worker = self._workers.get(name)
        return worker.record.revision if worker is not None else ""

    def revisions(self, model: str) -> Mapping[str, int]:
        """Of the workers that may be chosen for ``model``: how many there are of each revision. To read."""
        candidates = self._candidates.get(base_of(model))
        return candidates.revisions if candidates is not None else {}

    def silent(self, now: float) -> list[tuple[str, int]]:
        """Incarnations that were not heard for so long that they are to be probed; none while that may be the broker's
        fault."""
        if not self._judges(now):
            return []
        horizon = now - self._silent_after
        return [
            (name, worker.record.boot)
            for name, worker in self._workers.items()
            if worker.gone_at is None
            and (worker.heard_at if worker.heard_at is not None else worker.registered_at) < horizon
        ]

    def workers(self) -> Iterator[Worker]:
        """All with a lease, by name. To read."""
        return (self._workers[name] for name in sorted(self._workers))

    def views(self) -> tuple[WorkerView, ...]:
        """All with a lease as a decision would see them, candidates or not."""
        return tuple(worker.view(self._timeout) for worker in self._workers.values())

    def alive(self, model: str) -> Sequence[WorkerView]:
        """Those that may be chosen for ``model`` when they have room, best first."""
        return self._candidates.get(base_of(model), ())

    def running(self, name: str) -> Sequence[RunningView]:
        """What was placed on the worker's incarnation of now and has not ended."""
        worker = self._workers.get(name)
        return tuple(worker.running()) if worker is not None else ()

    def runs_below(self, model: str, above: Priority) -> bool:
        """Whether a worker of ``model`` runs something of a class below ``above``; costs the same for any fleet."""
        return self._lower.any(base_of(model), above)

    def lower_running(self, model: str, above: Priority, most: int = 64) -> Mapping[str, Sequence[RunningView]]:
        """By worker of ``model`` what runs there of classes below ``above``; workers without any are left out. Of more
        than ``most`` workers, others come first each time."""
        chosen = self._lower.some(base_of(model), above, most)
        return {name: tuple(self._workers[name].running(below=above)) for name in chosen}

    def matches(self, request: Request) -> Mapping[str, int]:
        """Chunks of the request's prefix that workers hold, by name; of many holders, the best ones."""
        if not request.prefix:
            return {}
        candidates = self._candidates.get(base_of(request.model))
        best = candidates.first(_BEST) if candidates is not None else ()
        return self._index.match(request.prefix, (worker.name for worker in best))

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _judges(self, now: float) -> bool:
        """Whether silence means anything."""
        return not self._away and now >= self._grace_until

    def _update(self, worker: Worker, now: float) -> None:
        """Bring its place among the candidates up to date, and say so if it has room that it had not."""
        self.version += 1
        before, after = worker.candidate, worker.view(self._timeout)
        if after.draining or after.alive_until < now:
            self._withdraw(worker, now)
            return
        candidates = self._candidates.get(after.model)
        if candidates is None:
            candidates = self._candidates[after.model] = Candidates(self._weights)
            self._unserved_since.pop(after.model, None)
            self.on_serving(after.model, True, now)
        candidates.put(after)
        worker.candidate = after
        for above in Priority:
            self._lower.set(after.model, after.name, above, runs=worker.runs_below(above))
        if after.room and (before is None or _easier(before, after)):
            self.on_room(after.model)

    def _withdraw(self, worker: Worker, now: float) -> None:
        """Nothing stays behind of a model that nobody serves but when that began."""
        before, worker.candidate = worker.candidate, None
        self.version += 1
        if before is None:
            return
        candidates = self._candidates[before.model]
        candidates.remove(before.name)
        self._lower.remove(before.model, before.name)
        if not candidates:
            del self._candidates[before.model]
            self._unserved_since[before.model] = now
            self.on_serving(before.model, False, now)

    def _hand_over(self, worker: Worker, now: float) -> None:
        if worker.hand_over_at is not None and worker.hand_over_at <= now and not worker.given_up:
            self._give_up(worker)

    def _end(self, name: str, now: float) -> None:
        """The incarnation has no lease any more."""
        worker = self._workers.pop(name)
        self._withdraw(worker, now)
        self._index.forget(name)
        boot, active = worker.record.boot, worker.active
        log.info("worker left", extra={"worker": name, "boot": boot, "active": active})
        if worker.gone_at is None:
            self._lose(worker)

    def _lose(self, worker: Worker) -> None:
        """Nothing runs there any more, whatever it does."""
        for running in worker.lost():
            self.on_ended(running)
        self._give_up(worker)

    def _give_up(self, worker: Worker) -> None:
        worker.given_up = True
        # Who was asked to leave was not lost, whichever way it went.
        reason = DRAINED if worker.draining else WORKER_LOST
        self.on_gone(worker.record.worker, worker.record.boot, reason)


def _has(worker: WorkerView, model: str) -> bool:
    return model in worker.adapters


def _easier(before: WorkerView, after: WorkerView) -> bool:
    """Whether a request that did not fit may fit now."""
    return (
        after.room > before.room
        or after.prefill_tokens < before.prefill_tokens
        or after.kv_tokens_free > before.kv_tokens_free
        or after.step_seconds < before.step_seconds
        or after.suspects < before.suspects
        or after.active < before.active
        or after.adapters != before.adapters
    )

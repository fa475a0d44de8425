"""Work divided into shards, each of which is done by whoever of its role holds the shard's lease.

Each member of the role says that it is there (lease ``<role>-member-<name>``), and all come to the same answer who is
to hold which shard (lease ``<role>-<shard>``). Who holds another's hands it over in order; what nobody holds is taken
by whose it is to be. A lease that could not be renewed is over for its holder before it is over for others, also if
his clock stood still meanwhile: :meth:`Shards.holds` asks the time, and not a task that may not have run yet.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.registry import Registry
from inferbus_bus.shard_owners import owner_of

log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1
# Of the lease: what is left is for whatever was begun in its last moment.
_OURS = 0.9
_RETRY_SECONDS = 0.3
# As long as a request is kept on REQUESTS.
_SEEN_SECONDS = 3600.0


@dataclass(slots=True)
class Tenure:
    """One shard while it is held. ``until``: monotonic seconds, not ours from then on."""

    revision: int
    until: float
    leaving: bool = False
    task: asyncio.Task[None] | None = None


class Work(Protocol):
    """What is done for shards that are held."""

    async def gained(self, shard: int) -> None:
        """It may be acted for until it is left or lost. May raise InferBusError and StreamApiError: then it is left."""

    async def left(self, shard: int) -> None:
        """Ends all of it in order."""

    def lost(self, shard: int) -> None:
        """It is another's already: nothing may be said of it any more. Returns at once."""


class Shards:
    """Those that this process holds. Start, then run."""

    def __init__(
        self,
        bus: Bus,
        *,
        role: str,
        count: int,
        name: str,
        ttl: timedelta,
        on_held: Callable[[int], None] = lambda held: None,
    ) -> None:
        """``count`` shards, from 0; ``name``: this process, of all of ``role``; ``on_held``: told how many it holds."""
        self._bus = bus
        self._role = role
        self._count = count
        self._name = name
        self._ttl = ttl
        self._on_held = on_held
        self._member = member_key(role, "")
        self._work: Work
        self._record = WorkerRecord(worker=name, boot=clock.now_us())
        self._leases: Registry[WorkerRecord] = Registry(bus, "leases", WorkerRecord)
        self._held: dict[int, Tenure] = {}
        self._taking: dict[int, asyncio.Task[None]] = {}
        # A renewal and the end of a lease must not cross: both name the revision before.
        self._storing = asyncio.Lock()
        self._again_at: dict[int, float] = {}
        self._wake = asyncio.Event()
        self._back = asyncio.Event()
        self._stopping = False
        self._said: set[int] = set()
        # Members, and when (monotonic seconds) something was heard of them last.
        self._seen: dict[str, float] = {}
        self._targets: tuple[list[str], list[str]] = ([], [])

    # --- what is asked at each step of the work -------------------------------------------------------------------

    def owns(self, shard: int) -> bool:
        """Whether more of it may be begun here."""
        tenure = self._held.get(shard)
        return tenure is not None and not tenure.leaving and clock.monotonic() < tenure.until

    def holds(self, shard: int) -> bool:
        """Like :meth:`owns`, and also while it is being left: what was begun may be ended."""
        tenure = self._held.get(shard)
        return tenure is not None and clock.monotonic() < tenure.until

    def members(self) -> list[str]:
        """Those of the role that are alive, by name."""
        return sorted(record.worker for key, record in self._leases.items().items() if key.startswith(self._member))

    def seen(self) -> list[str]:
        """All that may have acted within the last hour, by name: those that are alive, this one included, and those of
        whom the end was seen, or is still to be seen."""
        horizon = clock.monotonic() - _SEEN_SECONDS
        self._seen = {name: at for name, at in self._seen.items() if at >= horizon}
        return sorted({self._name, *self._seen, *self.members()})

    def holders(self) -> dict[str, list[int]]:
        """By each living member's name: the shards that it holds."""
        shards: dict[str, list[int]] = {name: [] for name in self.members()}
        for shard in range(self._count):
            record = self._leases.get(self._key(shard))
            if record is not None:
                shards.setdefault(record.worker, []).append(shard)
        return shards

    # --- the life of it ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read who holds what. Raises like :meth:`Registry.start`."""
        self._leases.on_change(self._changed)
        self._bus.on_reconnect(self._reconnected)
        await self._leases.start()

    async def run(self, work: Work) -> None:
        """For ever: announces this process, renews what it holds, takes what is to be its own, and hands over the
        rest."""
        self._work = work
        renewing = asyncio.create_task(self._renew(), name="shard leases")
        try:
            while True:
                if renewing.done():
                    renewing.result()
                self._arrange(clock.monotonic())
                self._wake.clear()
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await cancel_all([renewing, *self._tasks()])

    async def stop(self) -> None:
        """Give all back, in order; whoever is there takes it at once."""
        self._stopping = True
        await cancel_all(list(self._taking.values()))
        async with self._storing:
            await self._give_back(self._member + self._name, None)
        for shard, tenure in list(self._held.items()):
            self._leave(shard, tenure)
        leaving = [tenure.task for tenure in self._held.values() if tenure.task is not None]
        if leaving:
            await asyncio.wait(leaving)

    async def close(self) -> None:
        await self._leases.stop()

    def _changed(self, key: str, record: WorkerRecord | None) -> None:
        if not key.startswith(f"{self._role}-"):
            return
        if key.startswith(self._member):
            # Also that its entry has ended, which the broker says for five minutes, and of those before our start.
            self._seen[key.removeprefix(self._member)] = clock.monotonic()
        elif record is not None:
            self._seen[record.worker] = clock.monotonic()
        self._wake.set()

    # --- who holds what ------------------------------------------------------------------------------------------

    def _arrange(self, now: float) -> None:
        """Begin all that is to be done now."""
        for shard, tenure in list(self._held.items()):
            if tenure.until <= now:
                self._lose(shard, tenure)
            elif tenure.task is not None and tenure.task.done() and not tenure.task.cancelled():
                tenure.task.result()  # a fault of ours takes the process down, and another one goes on
        self._on_held(len(self._held))
        if self._said != self._held.keys() and all(task.done() for task in self._tasks()):
            self._said = set(self._held)
            log.info("shards held", extra={"shards": sorted(self._said)})
        if self._stopping or not self._bus.connected:
            return
        members = self.members()
        if members != self._targets[0]:
            self._targets = members, [owner_of(shard, members) for shard in range(self._count)]
        for shard in range(self._count):
            ours, held = bool(members) and self._targets[1][shard] == self._name, self._held.get(shard)
            if held is not None:
                # Alone, or not seen by itself yet, nobody is there to take it.
                if members and not ours:
                    self._leave(shard, held)
            elif ours and shard not in self._taking and self._again_at.get(shard, 0.0) <= now and self._free(shard):
                self._taking[shard] = self._begin(self._take(shard), f"take shard {shard}")

    def _free(self, shard: int) -> bool:
        """Also what a process of this name held: it is not there any more, since this one is."""
        record = self._leases.get(self._key(shard))
        return record is None or record.worker == self._name

    async def _take(self, shard: int) -> None:
        key, asked = self._key(shard), clock.monotonic()
        self._again_at[shard] = asked + _RETRY_SECONDS
        try:
            if self._leases.get(key) is None:
                ack = await self._leases.create(key, self._record, self._ttl)
            else:
                ack = await self._leases.update(key, self._record, self._leases.revision(key), self._ttl)
        except InferBusError as error:
            log.debug("shard not taken", extra={"shard": shard, "error": str(error)})
            return
        finally:
            del self._taking[shard]
        tenure = self._held[shard] = Tenure(ack.sequence, self._until(asked))
        tenure.task = self._begin(self._open(shard, tenure), f"open shard {shard}")

    async def _open(self, shard: int, tenure: Tenure) -> None:
        try:
            await self._work.gained(shard)
        except (InferBusError, StreamApiError, OSError, TimeoutError) as error:
            log.warning("shard could not be opened", extra={"shard": shard, "error": str(error)})
            if self._held.get(shard) is tenure:
                tenure.task = None
                self._leave(shard, tenure)

    def _leave(self, shard: int, tenure: Tenure) -> None:
        if tenure.leaving:
            return
        tenure.leaving = True
        opening = tenure.task
        tenure.task = self._begin(self._hand_over(shard, tenure, opening), f"leave shard {shard}")

    async def _hand_over(self, shard: int, tenure: Tenure, opening: asyncio.Task[None] | None) -> None:
        if opening is not None:
            await cancel_all([opening])
        await self._work.left(shard)
        async with self._storing:
            if self._held.get(shard) is not tenure:
                return
            del self._held[shard]
            if clock.monotonic() < tenure.until:
                await self._give_back(self._key(shard), tenure.revision)

    async def _give_back(self, key: str, revision: int | None) -> None:
        try:
            async with asyncio.timeout(self._ttl.total_seconds()):
                await self._leases.delete(key, revision)
        except (InferBusError, TimeoutError) as error:
            log.info("lease not given back: it runs out", extra={"lease": key, "error": str(error)})

    def _lose(self, shard: int, tenure: Tenure) -> None:
        log.warning("shard lost: its lease could not be renewed", extra={"shard": shard})
        del self._held[shard]
        if tenure.task is not None:
            tenure.task.cancel()
        self._work.lost(shard)

    # --- renewals ------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        while True:
            self._back.clear()
            if self._bus.connected:
                async with self._storing:
                    if not self._stopping:
                        # First: whose shards run out later than he himself would be asked to leave them.
                        await self._announce()
                    await asyncio.gather(*(self._renew_one(shard, each) for shard, each in list(self._held.items())))
            try:
                async with asyncio.timeout(self._ttl.total_seconds() / 3):
                    await self._back.wait()
            except TimeoutError:
                continue

    async def _reconnected(self) -> None:
        self._back.set()

    async def _announce(self) -> None:
        try:
            async with asyncio.timeout(self._ttl.total_seconds() / 2):
                await self._leases.put(self._member + self._name, self._record, self._ttl)
        except (InferBusError, TimeoutError) as error:
            log.warning("not announced", extra={"error": str(error)})

    async def _renew_one(self, shard: int, tenure: Tenure) -> None:
        key, asked = self._key(shard), clock.monotonic()
        if self._leases.get(key) == self._record:
            # A renewal without an answer may have been stored.
            tenure.revision = max(tenure.revision, self._leases.revision(key))
        try:
            async with asyncio.timeout(self._ttl.total_seconds() / 2):
                ack = await self._leases.update(key, self._record, tenure.revision, self._ttl)
        except (InferBusError, TimeoutError) as error:
            log.warning("shard not renewed", extra={"shard": shard, "error": str(error)})
            now_there = self._leases.get(key)
            if now_there is not None and now_there != self._record:
                tenure.until = 0.0
                self._wake.set()
            return
        tenure.revision = ack.sequence
        # Once over, it is over: what came meanwhile was not taken, and what was held is about to be dropped.
        if clock.monotonic() < tenure.until:
            tenure.until = self._until(asked)
        else:
            tenure.until = 0.0
            self._wake.set()

    def _until(self, asked: float) -> float:
        return asked + _OURS * self._ttl.total_seconds()

    def _key(self, shard: int) -> str:
        return f"{self._role}-{shard}"

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=name)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*self._taking.values(), *(each.task for each in self._held.values() if each.task is not None)]


def member_key(role: str, name: str) -> str:
    """The lease by which ``name`` says that it is there."""
    return f"{role}-member-{name}"

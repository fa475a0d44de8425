"""The worker's place in the fleet: a record that lives as long as it is renewed, of one incarnation of it.

A worker that could not renew it for nearly its whole time to live must take itself for dead, because others soon do: it
fences itself, which means that it takes no more steps from its engine and publishes nothing until a renewal succeeds.
It renews only what is its own: if its entry has run out meanwhile, or is another's, its work is another's too. Then it
drops all of that and is born again, as a new incarnation that nothing of the old one comes to. Frames that it sent
before and that are stored late are void for every reader, by the fence of who took its work over.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.publish import PubAck
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.lifecycle import WIRE_STATES, State, advance
from inferbus_worker.fence import Fence

log = logging.getLogger(__name__)

# Part of the time to live after which the worker fences itself: before the record can have run out at the server.
_FENCE_PART = 0.9
_RETRY_SECONDS = 0.25


class Registration:
    """``state`` moves by :meth:`move`; ``record`` is what the fleet is told, with the ``boot`` of this incarnation."""

    def __init__(
        self,
        bus: Bus,
        record: WorkerRecord,
        models: Sequence[ModelRecord],
        ttl: timedelta,
        fence: Fence,
        reborn: Callable[[int], Awaitable[None]],
        *,
        canary: bool = False,
    ) -> None:
        """``canary``: the model may be known by another revision than this one, and stays so.

        ``reborn``: leaves all work behind and takes that of the incarnation with this boot; is asked again if it
        raises InferBusError or StreamApiError."""
        self.state = State.STARTING
        self.record = record
        # Those that are not announced, or are known by another revision.
        self._to_announce = list(models)
        self._ttl = ttl
        self._fence = fence
        self._reborn = reborn
        self._canary = canary
        self._revision: int | None = None  # of our entry; None: whatever is there is an earlier process's
        self._renewing = asyncio.Lock()
        self._fleet: Registry[WorkerRecord] = Registry(bus, "fleet", WorkerRecord)
        self._models: Registry[ModelRecord] = Registry(bus, "models", ModelRecord)
        self._fence_timer: asyncio.TimerHandle | None = None

    @property
    def boot(self) -> int:
        return self.record.boot

    async def start(self, address: str) -> None:
        """Announce the models, then the worker as ACTIVE under its gRPC ``address``. Raises InferBusError."""
        await self._fleet.start()
        await self._models.start()
        await self._announce()
        self.record.address = address
        await self.move(State.ACTIVE)

    async def move(self, to: State, hand_over_us: int | None = None) -> None:
        """Change state and tell the fleet; if the bus is away, the next renewal tells it. ``hand_over_us``: when what
        still runs then is to be given to others, in Unix microseconds; None: never."""
        self.state = advance(self.state, to)
        self.record.state = WIRE_STATES[self.state]
        self._hand_over(hand_over_us)
        await self._renew()

    async def drain(self, hand_over_us: int | None) -> None:
        """Be DRAINING, and tell it. Of several times the earliest holds."""
        if self.state in (State.DRAINING, State.DRAINED):
            if hand_over_us is None or (self._hands_over and self._hands_over <= hand_over_us):
                return
            self._hand_over(hand_over_us)
            await self._renew()
        else:
            await self.move(State.DRAINING, hand_over_us)

    async def rest(self, seconds: float | None) -> None:
        """Take no new work for a while, and give what runs after so many seconds to others; None: take some again. One
        that leaves meanwhile leaves."""
        if seconds is None:
            if self.state is State.RESTING:
                await self.move(State.ACTIVE)
        elif self.state is State.ACTIVE:
            await self.move(State.RESTING, clock.now_us() + round(seconds * 1e6))

    async def run(self) -> None:
        """Renew three times per time to live, and every quarter of a second while that fails. Raises InferBusError if
        another process has this name now."""
        renewed = True
        while True:
            await asyncio.sleep(self._ttl.total_seconds() / 3 if renewed else _RETRY_SECONDS)
            renewed = await self._renew()
            if self._to_announce:
                await self._announce_later()

    async def stop(self) -> None:
        """Leave the fleet. From then on there is no lease to lose."""
        if self._fence_timer is not None:
            self._fence_timer.cancel()
        try:
            if self._revision is not None:
                await self._fleet.delete(self.record.worker, self._revision)
        except InferBusError as error:
            log.warning("fleet entry not deleted, it will run out", extra={"error": str(error)})
        await self._fleet.stop()
        await self._models.stop()

    @property
    def _hands_over(self) -> int:
        """0: never."""
        return clock.unix_us(self.record.hand_over_time)

    def _hand_over(self, at_us: int | None) -> None:
        if at_us is None:
            self.record.ClearField("hand_over_time")
        else:
            self.record.hand_over_time.CopyFrom(clock.timestamp(at_us))

    async def _renew(self) -> bool:
        async with self._renewing:
            until = clock.monotonic() + self._ttl.total_seconds() * _FENCE_PART
            try:
                self._revision = (await self._store()).sequence
            except InferBusError as error:
                if error.reason == "changed_meanwhile" and self._is_lost():
                    await self._be_born_again()
                else:
                    log.warning("fleet lease not renewed", extra={"error": str(error)})
                return False
            self._fence.hold(until)
            if self._fence_timer is not None:
                self._fence_timer.cancel()
            # Nothing shuts by it: it says so in the log at once.
            self._fence_timer = asyncio.get_running_loop().call_later(until - clock.monotonic(), self._look_at_fence)
            return True

    async def _store(self) -> PubAck:
        name = self.record.worker
        if self._revision is None:
            return await self._fleet.put(name, self.record, self._ttl)
        return await self._fleet.update(name, self.record, self._revision, self._ttl)

    def _is_lost(self) -> bool:
        """Whether our entry is gone, or another's, as far as is known here. Raises InferBusError if a later process has
        this name."""
        name = self.record.worker
        there, revision = self._fleet.get(name), self._fleet.revision(name)
        if revision == self._revision:
            return False  # not heard of yet
        if there is None:
            return True
        if there.boot == self.boot:  # it was stored, and we were not told
            self._revision = revision
            return False
        if there.boot > self.boot:
            self._fence.shut()
            raise _name_taken(name)
        return True

    async def _be_born_again(self) -> None:
        self._fence.shut()
        name, before = self.record.worker, self.boot
        boot = max(clock.now_us(), before + 1)
        log.error("the lease is lost: born again", extra={"boot": boot, "before": before})
        try:
            await self._reborn(boot)
        except (InferBusError, StreamApiError) as error:
            log.warning("not born again yet", extra={"error": str(error)})
            return
        self.record.boot = boot
        self._revision = self._fleet.revision(name)

    def _look_at_fence(self) -> None:
        if self._fence.open:  # the timer came a moment too soon
            self._fence_timer = asyncio.get_running_loop().call_later(0.01, self._look_at_fence)

    async def _announce_later(self) -> None:
        """By now a model may be known by this revision, or by none."""
        try:
            await self._announce()
        except InferBusError as error:
            log.warning("a model is not announced yet", extra={"error": str(error)})

    async def _announce(self) -> None:
        """Once, and again when it is no longer what is known: the record stays when the last worker is gone."""
        for model in list(self._to_announce):
            known = self._models.get(model.name)
            if self._canary and known is not None and known.revision != model.revision:
                continue  # by which revision a model is known is decided by rollouts
            model.create_time.CopyFrom(known.create_time if known else clock.timestamp(clock.now_us()))
            if known != model:
                await self._models.put(model.name, model)
            self._to_announce.remove(model)


def _name_taken(name: str) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_CONFLICT,
        "name_taken",
        "Another worker has this name.",
        diagnostic=f"a process that was started later has registered as worker {name}: no two may share a name",
    )

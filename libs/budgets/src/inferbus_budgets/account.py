"""One ledger as this edge sees it: what it was granted, what of that is spent and reserved, and how it gets more."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import BudgetGrant, BudgetLedgerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_rating import ledger as ledgers
from inferbus_rating.ledger import Period
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_budgets.amounts import ZERO, wanted
from inferbus_budgets.holder import Holder

_TRIES = 20
_SEEN_SECONDS = 5.0
# A ledger stays for some days after its period: late ends are settled in it.
_AFTERLIFE = timedelta(days=3)
_IDLE_SECONDS = 2.0
# More than so many times what runs or was spent in the last second is not kept.
_KEPT = 4
_RETRY_AFTER = timedelta(seconds=1)
Change = Callable[[BudgetLedgerRecord, Decimal], BudgetLedgerRecord | None]


class Account:
    """``present``: the ledger as it is to be read now, and what its budget is in all. ``since_us``: it stands for
    requests accepted from then on (Unix microseconds)."""

    def __init__(
        self,
        name: str,
        period: Period,
        present: Callable[[], tuple[BudgetLedgerRecord, Decimal]],
        registry: Registry[BudgetLedgerRecord],
        holder: Holder,
        since_us: int,
    ) -> None:
        self.name = name
        self.period = period
        self._present = present
        self._registry = registry
        self._holder = holder
        self._mine = BudgetGrant(edge=holder.edge, boot=holder.boot, start_time=clock.timestamp(since_us))
        self.spent = ZERO
        self.reserved = ZERO
        self.void = False
        """Its grant is the meter's business now: what happens here does not count any more."""
        self._grant: BudgetGrant | None = None
        self._granted = ZERO
        self._left = ZERO
        # While less than the grant is asked for, and as long as it is not known what became of that: so much is ours.
        self._cap: Decimal | None = None
        self._waiting = ZERO
        self._need = Decimal(1)
        self._used_at = clock.monotonic()
        self._lately = ZERO
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self.look()

    @property
    def free(self) -> Decimal:
        granted = self._granted if self._cap is None else min(self._granted, self._cap)
        return granted - self.spent - self.reserved

    @property
    def room(self) -> Decimal:
        """What a call may need at most, if all that is left were granted to this edge."""
        return max(ZERO, self.free) + self._left

    @property
    def idle(self) -> bool:
        quiet = clock.monotonic() > self._used_at + _IDLE_SECONDS
        return quiet and self.reserved == ZERO and self._waiting == ZERO

    @property
    def over(self) -> bool:
        """Nothing of it is in use or granted."""
        return self.idle and self._grant is None

    def look(self) -> None:
        """The ledger or its budget has changed, or some time has passed."""
        record, limit = self._present()
        grant = ledgers.grant_of(record, self._mine.edge, self._mine.boot)
        if grant is None and self._grant is not None:
            self.void = True
        self._grant = grant
        self._granted = ZERO if grant is None else Decimal(grant.granted or "0")
        self._left = ledgers.left(record, limit)
        self._changed.set()

    def hold(self, amount: Decimal) -> None:
        self.reserved += amount
        self._used_at = clock.monotonic()

    def settle(self, held: Decimal, cost: Decimal) -> None:
        self.reserved -= held
        self.spent += cost
        self._lately += cost
        self._used_at = clock.monotonic()

    async def more(self, need: Decimal) -> None:
        """Ask for what a call needs, and for what else is worth asking for. Others may have it when this returns.

        Raises InferBusError UNAVAILABLE.
        """
        self._waiting += need
        self._need = need
        try:
            async with self._lock:
                if self.free < need and not self.void:
                    await self._change(self._granting)
        finally:
            self._waiting -= need

    async def tend(self) -> None:
        """Once a second: give back what is not needed, or own up to what was spent beyond the grant.

        Raises InferBusError UNAVAILABLE.
        """
        lately, self._lately = self._lately, ZERO
        self.look()
        if self._lock.locked() or self._grant is None or self.void:
            return
        keeps = self.spent + self.reserved
        unused = self.free > ZERO and (
            self._left < ZERO or self.free > _KEPT * max(self.reserved, lately, self._waiting)
        )
        if keeps > self._granted or unused or (self.idle and not self._grant.ended):
            async with self._lock:
                await self.give_back()

    async def give_back(self) -> None:
        """All but what is spent and reserved; the whole account, if it is idle."""
        await self._change(self._returning)

    async def close(self) -> None:
        """The process ends: :meth:`give_back`, however short ago it was used."""
        self._used_at = -_IDLE_SECONDS
        async with self._lock:
            await self.give_back()

    def _granting(self, record: BudgetLedgerRecord, limit: Decimal) -> BudgetLedgerRecord | None:
        used = self.spent + self.reserved
        more = wanted(self._waiting, self._need, self._lately * 2, ledgers.left(record, limit))
        made = ledgers.granting(record, self._mine, limit, spent=used, least=used, wanted=used + more)
        return None if made == record and self._cap is None else made

    def _returning(self, record: BudgetLedgerRecord, _: Decimal) -> BudgetLedgerRecord | None:
        self._cap = self.spent + self.reserved
        return ledgers.returning(record, self._mine.edge, self._mine.boot, keeps=self._cap, ended=self.idle)

    async def _change(self, change: Change) -> None:
        """Compare and set until it is done or there is nothing to do. It is done when this edge has seen it."""
        for _ in range(_TRIES):
            if self.void:
                return
            revision = self._registry.revision(self.name)
            made = change(*self._present())
            if made is None:
                self._cap = None
                self.look()  # what was left may have been less by now, by time alone: a credit expired
                return
            try:
                stored = await self._registry.update(self.name, made, revision, self._lifetime())
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
                await self._see(revision + 1)  # somebody was faster
                continue
            await self._see(stored.sequence)
            self._cap = None
            return
        raise unavailable("budget_busy", "The budget is in great demand; retry.", retry_after=_RETRY_AFTER)

    async def _see(self, sequence: int) -> None:
        try:
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._registry.revision(self.name) < sequence:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise unavailable(
                "bus_unavailable", "The service is restarting; retry.", retry_after=_RETRY_AFTER,
                diagnostic=f"a change of {self.name} was not seen",
            ) from None  # fmt: skip

    def _lifetime(self) -> timedelta | None:
        if self.period.end_us is None:
            return None
        return timedelta(microseconds=max(0, self.period.end_us - clock.now_us())) + _AFTERLIFE

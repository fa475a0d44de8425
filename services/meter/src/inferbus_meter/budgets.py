"""The registries of budgets, credits and ledgers, and how each stands by the charges."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord, BudgetLedgerRecord, BudgetRecord, CreditRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_rating import ledger as ledgers
from inferbus_rating.ledger import Charged, Ledger, Period
from inferbus_runtime import clock
from inferbus_runtime.errors import unavailable

from inferbus_meter import budget_queries
from inferbus_meter.clickhouse import Store

log = logging.getLogger(__name__)
# See the edge's: a ledger stays for some days after its period.
_AFTERLIFE = timedelta(days=3)
# The tables do not keep requests for ever: what a prepaid budget spent long ago is carried in its ledger.
_CARRY_AFTER, _CARRY_BEFORE = timedelta(days=50), timedelta(days=40)
_SEEN_SECONDS, _POLL_SECONDS = 5.0, 0.02
_RETRY_AFTER = timedelta(seconds=1)
# A correction that says so of its making is in the tables by then.
_CORRECTION_LATE = timedelta(days=1)


class Budgets:
    """``start`` and ``stop`` with the process."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self.budgets = Registry(bus, "budgets", BudgetRecord)
        self.credits = Registry(bus, "credits", CreditRecord)
        self.ledgers = Registry(bus, "budget_ledgers", BudgetLedgerRecord)
        self.alerts = Registry(bus, "budget_alerts", BudgetAlertRecord)
        self._store = store

    async def start(self) -> None:
        """Raises like :meth:`Registry.start`."""
        await self.budgets.start()
        await self.credits.start()
        await self.ledgers.start()
        await self.alerts.start()

    async def stop(self) -> None:
        await self.alerts.stop()
        await self.ledgers.stop()
        await self.credits.stop()
        await self.budgets.stop()

    def credits_of(self, of: Ledger) -> list[CreditRecord]:
        return [
            one
            for one in self.credits.items().values()
            if (one.tenant_id, one.project_id, one.key_id, one.currency)
            == (of.tenant_id, of.project_id, of.key_id, of.currency)
        ]

    def present(self, budget: BudgetRecord, now_us: int) -> tuple[str, Ledger, BudgetLedgerRecord, Decimal]:
        """Of the budget's period now: the ledger's name, what it says, the ledger, and the budget in all."""
        name = ledgers.ledger_name(budget, ledgers.period_at(budget.period, now_us))
        of = ledgers.ledger_of(name)
        credits = self.credits_of(of)
        record = ledgers.lapse(self.ledgers.get(name) or BudgetLedgerRecord(), credits, now_us)
        return name, of, record, ledgers.limit_of(budget, credits, record)

    async def charged(self, of: Ledger, record: BudgetLedgerRecord) -> Charged:
        """What its requests have cost until now. Raises one of STORE_ERRORS."""
        found = await budget_queries.charged(self._store, of, _counted_us(record), ledgers.grant_windows(record))
        corrected = await self._corrected(of, record)
        return Charged(found.total + Decimal(record.carried or "0") + corrected, found.of_grants, found.requests)

    async def _corrected(self, of: Ledger, record: BudgetLedgerRecord) -> Decimal:
        """Corrections of what is carried that came after it was."""
        if not record.HasField("carried_time"):
            return ledgers.ZERO
        carried = (record.start_time.ToMicroseconds(), record.carried_time.ToMicroseconds())
        return await budget_queries.corrected(self._store, of, carried, record.corrected_time.ToMicroseconds())

    async def carry(self, of: Ledger, record: BudgetLedgerRecord, now_us: int) -> None:
        """Into ``record``, if it is of a prepaid budget and time for it. Raises one of STORE_ERRORS."""
        since = _counted_us(record)
        until = now_us - _us(_CARRY_BEFORE)
        if of.period.end_us is not None or now_us - since < _us(_CARRY_AFTER):
            return
        if any(ledgers.start_us(grant) < until for grant in record.grants):
            return  # its requests are counted one by one, until it is over
        more = await budget_queries.charged_before(self._store, of, since, until)
        more += await self._corrected(of, record)
        # What was corrected lately is counted by itself until the next time: some of it may come only now.
        lately = now_us - _us(_CORRECTION_LATE)
        more -= await budget_queries.corrected(self._store, of, (record.start_time.ToMicroseconds(), until), lately)
        record.carried = ledgers.text(Decimal(record.carried or "0") + more)
        record.carried_time.CopyFrom(clock.timestamp(until))
        record.corrected_time.CopyFrom(clock.timestamp(lately))

    async def credit(self, credit_id: str) -> CreditRecord:
        """One that is known to be in the bucket, once this meter has it. Raises InferBusError UNAVAILABLE."""
        await _until(lambda: self.credits.get(credit_id) is not None)
        return self.credits.items()[credit_id]

    async def seen(self, name: str, sequence: int) -> None:
        """Until this meter has that change of a ledger. Raises InferBusError UNAVAILABLE."""
        await _until(lambda: self.ledgers.revision(name) >= sequence)

    async def write(self, name: str, period: Period, record: BudgetLedgerRecord, revision: int) -> int:
        """Its sequence in the bucket. Raises InferBusError CONFLICT if somebody was faster, UNAVAILABLE."""
        lifetime = None
        if period.end_us is not None:
            lifetime = timedelta(microseconds=max(0, period.end_us - clock.now_us())) + _AFTERLIFE
        return (await self.ledgers.update(name, record, revision, lifetime)).sequence


async def _until(seen: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(_SEEN_SECONDS):
            while not seen():
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise unavailable("bus_unavailable", "The registry lags behind; retry.", retry_after=_RETRY_AFTER) from None


def _counted_us(record: BudgetLedgerRecord) -> int:
    """Requests that were accepted before are carried, or no part of the budget."""
    return max(record.start_time.ToMicroseconds(), record.carried_time.ToMicroseconds())


def _us(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1)

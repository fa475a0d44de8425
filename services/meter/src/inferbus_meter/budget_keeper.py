"""Keeps the budgets true: ledgers by the charges, thresholds that were passed told once. One meter at a time does it.

Nothing waits for it: edges spend what they were granted, and take more, while no meter lives.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import (
    BudgetGrant,
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    WorkerRecord,
)
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.lease import Lease, hold
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_rating import ledger as ledgers
from inferbus_rating.ledger import Charged, Ledger, Period
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.budget_alerts import Alerts
from inferbus_meter.budgets import Budgets
from inferbus_meter.clickhouse import STORE_ERRORS
from inferbus_meter.core.budget import Draining, Marks, last_period, passed
from inferbus_meter.core.replay import LEASE as REPLAY
from inferbus_meter.ingest import Ingest

log = logging.getLogger(__name__)
LEASE = "meter-budgets"
_ROUND_SECONDS = 1.0
# A round takes at most this part of the time: on large tables they are rarer.
_PART = 20
# Nothing seems to have happened: look all the same, at corrections and at periods that begin.
_LOOK_SECONDS = 30.0
_AGAIN_SECONDS = 1.0


# A ledger's name, edge, boot, granted: one that was used again after its end has spent more.
_Ended = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    """``name`` holds the lease for ``lease_ttl``. ``dead_after``: an edge that has shown no sign of life for so long is
    dead, and no retry publishes any more what it could not."""

    name: str
    lease_ttl: timedelta
    dead_after: timedelta


class BudgetKeeper:
    def __init__(
        self,
        bus: Bus,
        budgets: Budgets,
        ingest: Ingest,
        publisher: Publisher,
        settings: KeeperSettings,
    ) -> None:
        self._bus = bus
        self._budgets = budgets
        self._ingest = ingest
        self._alerts = Alerts(budgets.alerts, publisher)
        self._settings = settings
        self._leases = Registry(bus, "leases", WorkerRecord)
        self._requests, self._work, self._tokens = (FrameLog(bus, one) for one in ("REQUESTS", "WORK", "TOKENS"))
        self._marks = Marks((0, 0), (0, 0), 0, 0)
        self._missing: dict[tuple[str, int], float] = {}
        self._draining: dict[tuple[str, int], Draining] = {}
        # Of each grant that was ended: up to where TOKENS must be charged.
        self._ended: dict[_Ended, int] = {}
        self.holds = False
        """Whether the lease is this meter's."""
        self._looked = (-1, -1.0)
        self._news = asyncio.Event()
        # The most requests that were seen, by ledger and since when they are counted in it.
        self._counted: dict[tuple[str, int, int], int] = {}

    async def run(self) -> None:
        """For ever: whenever the lease is ours, a round a second."""
        for registry in (self._budgets.budgets, self._budgets.credits, self._budgets.ledgers):
            registry.on_change(lambda name, record: self._news.set())
        await self._leases.start()
        try:
            while True:
                try:
                    await self._keep()
                except (InferBusError, StreamApiError, TimeoutError) as error:
                    log.warning("the lease on the budgets was not taken", extra={"error": str(error)})
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            await self._leases.stop()

    async def _keep(self) -> None:
        """From when the lease is this meter's until it is lost."""
        async with hold(self._bus, LEASE, self._settings.name, self._settings.lease_ttl) as lease:
            self.holds = True
            try:
                await self._while_held(lease)
            finally:
                self.holds = False
        log.warning("the lease on the budgets is lost: another meter may keep them by now")

    async def _while_held(self, lease: Lease) -> None:
        while not lease.lost.is_set():
            begun = clock.monotonic()
            try:
                await self.round()
            except (InferBusError, StreamApiError, *STORE_ERRORS) as error:
                log.warning("budgets were not kept", extra={"error": str(error)[:500]})
                self._looked = (-1, -1.0)
                await asyncio.sleep(_AGAIN_SECONDS)
            await asyncio.sleep(max(_ROUND_SECONDS, (clock.monotonic() - begun) * _PART))

    async def round(self) -> None:
        """One look at all budgets, and at all ledgers in which something is granted; none while a replay runs.

        Raises InferBusError or StreamApiError if the bus is away, one of STORE_ERRORS if the store is.
        """
        if not self._budgets.budgets.items() and not self._budgets.ledgers.items():
            return
        if self._leases.get(REPLAY) is not None:
            return
        await self._mark()
        now = clock.monotonic()
        position, looked = self._looked
        if self._marks.charged == position and not self._news.is_set() and now < looked + _LOOK_SECONDS:
            return
        self._news.clear()
        now_us = clock.now_us()
        kept: set[str] = set()
        failed: list[InferBusError] = []
        for budget in list(self._budgets.budgets.items().values()):
            name, of, record, limit = self._budgets.present(budget, now_us)
            kept.add(name)
            revision = self._budgets.ledgers.revision(name)
            charged = await self._budgets.charged(of, record)
            try:
                if budget.hard or of.period.end_us is None:
                    await self._settle(name, of, record, revision, charged, now_us)
                for alert in passed(budget, of.period, limit, charged.total):
                    await self._alerts.tell(alert, now_us)
                await self._tell_of_last(budget, of.period, now_us)
            except InferBusError as error:
                failed.append(error)  # of this budget: the others are kept all the same
        for name, record in list(self._budgets.ledgers.items().items()):
            if name not in kept and record.grants:
                of, revision = ledgers.ledger_of(name), self._budgets.ledgers.revision(name)
                charged = await self._budgets.charged(of, record)
                await self._settle(name, of, record, revision, charged, now_us)
        there = self._budgets.ledgers.items()
        self._counted = {of: count for of, count in self._counted.items() if of[0] in there}
        busy = bool(self._draining or self._missing or self._ended)
        self._looked = (-1 if busy else self._marks.charged, now)
        if failed:
            raise failed[0]

    # --- ledgers ----------------------------------------------------------------------------------------------------

    async def _settle(
        self, name: str, of: Ledger, record: BudgetLedgerRecord, revision: int, charged: Charged, now_us: int
    ) -> None:
        """``revision``: of the ledger before the charges were asked for. Who spends more takes more first, so what was
        charged since is not mistaken for what no grant covers."""
        if self._lost_some(name, record, charged):
            return
        before = self._budgets.ledgers.get(name)
        over = [self._over(name, grant) for grant in record.grants]
        made = ledgers.settling(record, charged, over)
        if made is None and of.kind != BudgetPeriod.BUDGET_PERIOD_PREPAID:
            return
        made = made or record
        carried_us = record.carried_time.ToMicroseconds()
        await self._budgets.carry(of, made, now_us)
        if made == (before or BudgetLedgerRecord()):
            return
        made.requests = charged.requests if made.carried_time.ToMicroseconds() == carried_us else 0
        corrected = Decimal(made.settled or "0") - ledgers.settled(record)
        try:
            await self._budgets.write(name, of.period, made, revision)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            self._news.set()  # an edge was faster: in the next round
            return
        log.info(
            "a ledger is settled",
            extra={"ledger": name, "grants_over": sum(over), "settled": made.settled, "change": str(corrected)},
        )

    def _lost_some(self, name: str, record: BudgetLedgerRecord, charged: Charged) -> bool:
        """Whether fewer requests are charged than have been: a charge may be corrected, but a request does not go."""
        counted = (name, record.start_time.ToMicroseconds(), record.carried_time.ToMicroseconds())
        most = max(record.requests, self._counted.get(counted, 0))
        if charged.requests >= most:
            self._counted[counted] = charged.requests
            return False
        log.error(
            "a ledger is left as it is: requests that it was settled by are not in the tables; replay them",
            extra={"ledger": name, "missing": most - charged.requests},
        )
        return True

    def _over(self, name: str, grant: BudgetGrant) -> bool:
        """Whether all that the grant stands for is charged."""
        if grant.ended:
            mark = self._ended.get((name, grant.edge, grant.boot, grant.granted))
            return mark is not None and self._marks.charged >= mark
        draining = self._draining.get((grant.edge, grant.boot))
        return draining is not None and draining.over(self._marks)

    async def _mark(self) -> None:
        """How far the streams are, and who of those that hold grants has died."""
        grants = [(name, grant) for name, record in self._budgets.ledgers.items().items() for grant in record.grants]
        requests, work = await self._requests.bounds(), await self._work.bounds()
        _, tokens = await self._tokens.bounds()
        await self._ingest.reached(tokens, 0.01)
        self._marks = Marks(requests, work, tokens, self._ingest.position)
        ended = [(name, one.edge, one.boot, one.granted) for name, one in grants if one.ended]
        self._ended = {one: self._ended.get(one, tokens) for one in ended}
        now = clock.monotonic()
        holders = {(grant.edge, grant.boot) for _, grant in grants if not grant.ended}
        dead = {one for one in holders if not self._lives(*one)}
        self._missing = {one: self._missing.get(one, now) for one in dead}
        drained = {}
        for one, since in self._missing.items():
            if now >= since + self._settings.dead_after.total_seconds():
                known = self._draining.get(one)
                drained[one] = Draining(requests[1]) if known is None else known.further(self._marks)
        self._draining = drained

    def _lives(self, edge: str, boot: int) -> bool:
        lease = self._leases.get(f"budget-{edge}")
        return lease is not None and lease.boot == boot

    # --- thresholds -------------------------------------------------------------------------------------------------

    async def _tell_of_last(self, budget: BudgetRecord, period: Period, now_us: int) -> None:
        """What ended last in a period is charged when it is over; or no meter was there then."""
        last = last_period(budget, period, now_us) if budget.thresholds else None
        if last is not None:
            of = ledgers.ledger_of(ledgers.ledger_name(budget, last))
            charged = await self._budgets.charged(of, BudgetLedgerRecord())
            for alert in passed(budget, last, Decimal(budget.amount or "0"), charged.total):
                await self._alerts.tell(alert, now_us)

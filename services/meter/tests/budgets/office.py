"""What the tests of budgets share: a real bus and store with the meter's parts for budgets, and who sets them."""

import asyncio
import base64
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import (
    BudgetAlertRecord,
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    CreditRecord,
    PriceRecord,
    WorkerRecord,
)
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.budgets_pb2 import AddCreditRequest, ListBudgetsRequest, SetBudgetRequest
from inferbus_bus.connection import Bus
from inferbus_bus.consumers import last_sequence
from inferbus_bus.log import FrameLog
from inferbus_bus.registry import Registry
from inferbus_meter.budget_keeper import BudgetKeeper
from inferbus_meter.budgets import Budgets
from inferbus_meter.ingest import Ingest
from inferbus_rating import PriceBook
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock, rpc

MONTH, DAY, PREPAID = (
    BudgetPeriod.BUDGET_PERIOD_MONTH,
    BudgetPeriod.BUDGET_PERIOD_DAY,
    BudgetPeriod.BUDGET_PERIOD_PREPAID,
)
BOOK = PriceBook.of(
    [PriceRecord(rate_version="1", currency="USD", input_per_million="0", output_per_million="1000000")]
)  # 1 a token
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOUR_US = 3_600_000_000


@dataclass
class Office:
    bus: Bus
    budgets: Budgets
    keeper: BudgetKeeper
    ingest: Ingest
    api: Any

    async def set(self, **fields: Any) -> Any:
        budget = BudgetRecord(**{"tenant_id": "acme", "period": MONTH, "currency": "USD", **fields})
        answer = await self.api.SetBudget(SetBudgetRequest(budget=budget, actor_key_id="key_op"))
        await self.caught_up()
        return answer.status

    async def status(self) -> Any:
        (one,) = (await self.api.ListBudgets(ListBudgetsRequest(tenant_id="acme"))).budgets
        return one

    async def caught_up(self) -> None:
        """This meter's registries have all that is in their buckets by now."""
        buckets = {
            "budgets": self.budgets.budgets, "credits": self.budgets.credits, "budget_ledgers": self.budgets.ledgers,
            "budget_alerts": self.budgets.alerts,
        }  # fmt: skip
        async with asyncio.timeout(30):
            for bucket, registry in buckets.items():
                last = await last_sequence(self.bus, f"KV_{bucket}")
                while registry._reader.last_sequence < last:
                    await asyncio.sleep(0.01)

    async def seen(self, name: str, registry: Registry[Any]) -> None:
        async with asyncio.timeout(30):
            while registry.get(name) is None:
                await asyncio.sleep(0.01)

    async def charged(self, sequence: int) -> None:
        assert await self.ingest.reached(sequence, 20)

    async def grant(self, granted: str, *, ended: bool, edge: str = "edge-0", boot: int = 7) -> str:
        """As an edge takes it; gives the ledger's name."""
        budget = next(iter(self.budgets.budgets.items().values()))
        name = ledgers.ledger_name(budget, ledgers.period_at(budget.period, clock.now_us()))
        record = BudgetLedgerRecord()
        record.CopyFrom(self.budgets.ledgers.get(name) or BudgetLedgerRecord())
        grant = record.grants.add(edge=edge, boot=boot, granted=granted, ended=ended)
        grant.start_time.FromMicroseconds(clock.now_us() - HOUR_US)
        done = await self.budgets.ledgers.put(name, record)
        async with asyncio.timeout(30):
            while self.budgets.ledgers.revision(name) < done.sequence:
                await asyncio.sleep(0.01)
        return name

    def ledger(self, name: str) -> BudgetLedgerRecord:
        return self.budgets.ledgers.get(name) or BudgetLedgerRecord()

    async def rounds(self, count: int = 4) -> None:
        for _ in range(count):
            self.keeper._looked = (-1, -1.0)
            await self.keeper.round()
            await self.caught_up()

    async def events(self, action: str) -> list[AuditEvent]:
        log = FrameLog(self.bus, "AUDIT")
        first, last = await log.bounds()
        found = []
        if last >= first:
            async for batch in log.read(first, last, subject="audit.>"):
                found += [AuditEvent.FromString(data) for _, _, data in batch]
        return [one for one in found if one.action == action]


async def spend(office: Office, frame_log, tokens: int) -> None:
    """One request of acme at edge-0, charged 1 a token."""
    await frame_log.request(tokens)
    _, last = await FrameLog(office.bus).bounds()
    await office.charged(last)


async def refusal(call: Any) -> tuple[ErrorClass.ValueType, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = rpc.error_of(caught.value)
    return error.error_class, error.reason, error.param


async def lease(office: Office, boot: int) -> None:
    leases = Registry(office.bus, "leases", WorkerRecord)
    await leases.start()
    await leases.put("budget-edge-0", WorkerRecord(worker="edge-0", boot=boot), timedelta(seconds=60))
    await leases.stop()
    async with asyncio.timeout(30):
        while not office.keeper._lives("edge-0", boot):
            await asyncio.sleep(0.01)


async def paid_in(office: Office, amount: str, credit_id: str = "order-1") -> None:
    credit = CreditRecord(credit_id=credit_id, tenant_id="acme", currency="USD", amount=amount)
    await office.api.AddCredit(AddCreditRequest(credit=credit))
    await office.seen(credit_id, office.budgets.credits)


async def alerts_of(office: Office) -> list[BudgetAlertRecord]:
    async with asyncio.timeout(30):
        while not office.budgets.alerts.items():
            await asyncio.sleep(0.01)
    return list(office.budgets.alerts.items().values())

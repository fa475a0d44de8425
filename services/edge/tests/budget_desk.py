"""An edge's budgets without the rest of it, on a real bus, and who sets prices and budgets as the meter does."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal

from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.bus.v1.registry_pb2 import (
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    DeploymentRecord,
    KeyRecord,
    ModelRecord,
    PriceRecord,
)
from inferbus.bus.v1.request_pb2 import GenerateRequest, PromptInput, Sampling
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Operation, Usage
from inferbus_budgets.budgets import Budgets
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash, request_id
from inferbus_contracts.keys import mint, prefix_of
from inferbus_dialect.plan import Plan
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

MONTH = BudgetPeriod.BUDGET_PERIOD_MONTH
MODEL = ModelRecord(name="accounts", context_length=0)


@dataclass
class Desk:
    """Sets prices and budgets as the meter does, and asks the edge's part under test."""

    bus: Bus
    keys: Registry[KeyRecord]
    prices: Registry[PriceRecord]
    budgets: Registry[BudgetRecord]
    ledgers: Registry[BudgetLedgerRecord]
    edge: Budgets
    deployments: Registry[DeploymentRecord]

    async def price(self, version: str, **fields: str) -> None:
        amounts = {"output_per_million": "1000000", "input_per_million": "0", "currency": "USD"}
        record = PriceRecord(rate_version=version, model=MODEL.name, **{**amounts, **fields})
        await self.prices.put(version, record)

    async def budget(self, tenant: str, amount: str) -> None:
        record = BudgetRecord(
            tenant_id=tenant, period=MONTH, amount=amount, currency="USD", hard=True,
            update_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        await self.budgets.put(ledgers.budget_name(record), record)

    async def customer(self, tenant: str, model: str, amount: str) -> str:
        """The secret of its key; a token of ``model`` costs 1."""
        secret = mint(os.urandom(32))
        key = KeyRecord(
            key_id=f"key_{tenant}", tenant_id=tenant, project_id="web", prefix=prefix_of(secret), scopes=["inference"]
        )
        await self.keys.put(key_hash(secret), key)
        price = PriceRecord(rate_version=f"{model}-1", model=model, currency="USD", output_per_million="1000000")
        await self.prices.put(price.rate_version, price)
        await self.budget(tenant, amount)
        return secret

    async def call(self, tenant: str, choices: int = 1) -> bytes:
        """A call each of whose choices may cost 1. Raises InferBusError."""
        now_us = clock.now_us()
        first = request_id(now_us // 1000, os.urandom(16), "edge")[:15] + b"\0"
        requests = tuple(
            GenerateRequest(
                prompt=PromptInput(text="x"), sampling=Sampling(max_tokens=1), input_counted_elsewhere=choice > 0
            )
            for choice in range(choices)
        )
        key = KeyRecord(key_id="k", tenant_id=tenant, project_id="p")
        plan = Plan("completion", MODEL.name, False, requests, {"api": "completions", "n": choices})
        await self.edge.reserve(first, key, plan, MODEL, now_us)
        return first

    def end(
        self, tenant: str, request: bytes, tokens: int, attempt: int = 1, model: str = MODEL.name, read: int = 0
    ) -> None:
        """``read``: tokens of the input."""
        close = Close(
            request_id=request, usage=Usage(input_tokens=read, output_tokens=tokens),
            finish_reason=FinishReason.FINISH_REASON_STOP, operation=Operation.OPERATION_CHAT, attempt=attempt,
        )  # fmt: skip
        self.edge.on_frame(Frame(contexts=[RequestContext(tenant_id=tenant, model=model)], closes=[close]))

    async def accepts(self, tenant: str) -> bool:
        try:
            await self.call(tenant)
        except InferBusError:
            return False
        return True

    def granted(self, tenant: str) -> Decimal:
        return ledgers.total_granted(self.ledger(tenant)[1])

    def ledger(self, tenant: str) -> tuple[str, BudgetLedgerRecord]:
        name = next(one for one in self.ledgers.items() if one.startswith(f"tenant:{tenant}#"))
        return name, self.ledgers.items()[name]


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def desk_at(server: NatsServer) -> AsyncIterator[Desk]:
    async with (
        connect(BusConfig(server.url, "accounts")) as office,
        connect(BusConfig(server.url, "accounts-edge")) as bus,
    ):
        made = Desk(
            office, Registry(office, "keys", KeyRecord), Registry(office, "prices", PriceRecord),
            Registry(office, "budgets", BudgetRecord),
            Registry(office, "budget_ledgers", BudgetLedgerRecord),
            Budgets(bus, edge="edge-accounts", model_of=lambda _: None),
            Registry(office, "deployments", DeploymentRecord),
        )  # fmt: skip
        for one in (made.keys, made.prices, made.budgets, made.ledgers, made.deployments):
            await one.start()
        await made.price("accounts-1")
        await made.edge.start()
        yield made
        await made.edge.stop()
        for one in (made.keys, made.prices, made.budgets, made.ledgers, made.deployments):
            await one.stop()

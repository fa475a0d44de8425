"""An edge's budgets without the rest of it, on a real bus, and who sets prices and budgets as the meter does."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import aiohttp
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.bus.v1.registry_pb2 import (
    BudgetGrant,
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
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash, request_id
from inferbus_contracts.keys import mint, prefix_of
from inferbus_edge.budgets import Budgets
from inferbus_edge.core.plan import Plan
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
        await self.put("prices", version, PriceRecord(rate_version=version, model=MODEL.name, **{**amounts, **fields}))

    async def budget(self, tenant: str, amount: str) -> None:
        record = BudgetRecord(
            tenant_id=tenant, period=MONTH, amount=amount, currency="USD", hard=True,
            update_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        await self.put("budgets", ledgers.budget_name(record), record)

    async def put(self, bucket: str, name: str, record: Any) -> None:
        """Returns when the edge's part has heard of it: it has a watch of its own."""
        stored = await getattr(self, bucket).put(name, record)
        theirs: Registry[Any] = getattr(self.edge._records, f"_{bucket}")
        await until(lambda: theirs.revision(name) >= stored.sequence)

    async def customer(self, tenant: str, model: str, amount: str) -> str:
        """The secret of its key; a token of ``model`` costs 1. An edge that is a process hears of it later: see
        :func:`knows`."""
        secret = mint(os.urandom(32))
        key = KeyRecord(
            key_id=f"key_{tenant}", tenant_id=tenant, project_id="web", prefix=prefix_of(secret), scopes=["inference"]
        )
        await self.keys.put(key_hash(secret), key)
        price = PriceRecord(rate_version=f"{model}-1", model=model, currency="USD", output_per_million="1000000")
        await self.put("prices", price.rate_version, price)
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

    async def heard(self) -> None:
        """What is stored of ledgers by now is known here."""
        await heard(self.ledgers)

    def granted(self, tenant: str) -> Decimal:
        return ledgers.total_granted(self.ledger(tenant)[1])

    def grants(self, tenant: str) -> list[BudgetGrant]:
        """None as long as its ledger is not known here."""
        found = [record for name, record in self.ledgers.items().items() if name.startswith(f"tenant:{tenant}#")]
        return [grant for record in found for grant in record.grants]

    def ended(self, tenant: str) -> bool:
        """Whether there were grants, and none is in use."""
        found = self.grants(tenant)
        return bool(found) and all(one.ended for one in found)

    def ledger(self, tenant: str) -> tuple[str, BudgetLedgerRecord]:
        name = next(one for one in self.ledgers.items() if one.startswith(f"tenant:{tenant}#"))
        return name, self.ledgers.items()[name]


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def heard(known: Registry[BudgetLedgerRecord]) -> None:
    """What is stored in the bucket by now is ``known``: a watch tells all in the order in which it was stored."""
    stored = await known.put("heard", BudgetLedgerRecord())
    await until(lambda: known.revision("heard") >= stored.sequence)


async def knows(http: aiohttp.ClientSession, worker: Any, model: str, most: int, scope: str = "organization") -> None:
    """Returns when the edge has heard of the key, the price (1 for each output token) and the budget of this ``scope``:
    for that it refuses what may cost more than ``most``. What it lets in before that is answered with nothing, and so
    costs nothing."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": most + 1}

    async def answer() -> None:
        while True:
            worker.close(await worker.queues[model].get(), 0)

    answering = asyncio.create_task(answer())
    try:
        async with asyncio.timeout(30):
            while True:
                async with http.post("/v1/chat/completions", json=body) as answered:
                    said = (await answered.json()).get("error", {}).get("message", "")
                    if f"the budget of this {scope} " in said:
                        return
                await asyncio.sleep(0.01)
    finally:
        answering.cancel()


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
        await made.edge.start()
        await made.price("accounts-1")
        yield made
        await made.edge.stop()
        for one in (made.keys, made.prices, made.budgets, made.ledgers, made.deployments):
            await one.stop()

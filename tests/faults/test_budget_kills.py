"""Hard budgets while whatever may die dies: what is charged is never more, and in the end a ledger is its charges."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_rating import ledger as ledgers

from tests.harness.asking import audited
from tests.harness.local import Stack, running
from tests.harness.paying import World

TENANT, CAPPED = "spender", "capped"
# For each round, and as much as is spent in one.
AMOUNTS = {"tenant": 2500, "key": 1000}
CLIENTS = 10
VARIABLES = {"INFERBUS_WORKER_SYNTHETIC__ITL": "10ms", "INFERBUS_METER_DEAD_EDGE_DELAY": "2s"}
VICTIMS = ("edge", "edge-1", "meter", "nats", "worker-0")


class Market:
    """Clients that spend as fast as they are let, at both edges; a token costs 1."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient, source: random.Random, rounds: int) -> None:
        self.stack = stack
        self.source = source
        self.amounts = {scope: amount * rounds for scope, amount in AMOUNTS.items()}
        self.got: Counter[Any] = Counter()
        self.open = True
        self._http = http
        self._secrets: list[str] = []
        self._urls: list[str] = []

    async def begin(self) -> None:
        price = {"rate_version": "kills", "tenant_id": TENANT, "currency": "USD", "output_per_million": "1000000",
                 "input_per_million": "0"}  # fmt: skip
        key = await self._admin("POST", "/keys", {"tenant_id": TENANT, "project_id": "p", "name": CAPPED})
        self._secrets = [key["secret"], await self.stack.new_key(tenant_id=TENANT, project_id="p")]
        self._urls = [f"{url}/chat/completions" for url in self.stack.edge_urls]
        await self._admin("POST", "/prices", price)
        named = {"key": {"key_id": key["key"]["key_id"]}, "tenant": {}}
        for scope, secret in zip(("key", "tenant"), self._secrets, strict=True):
            await self._set(named[scope], "0.000001")
            await self._refused_everywhere(secret)  # so all edges have heard of it
        for scope, amount in self.amounts.items():
            await self._set(named[scope], str(amount))

    async def _set(self, named: dict[str, str], amount: str) -> None:
        budget = {"tenant_id": TENANT, "period": "BUDGET_PERIOD_MONTH", "currency": "USD", "hard": True}
        await self._admin("PUT", "/budgets", {**budget, **named, "amount": amount})

    async def _refused_everywhere(self, secret: str) -> None:
        body = {"model": "synthetic", "messages": [{"role": "user", "content": "go"}], "max_tokens": 1}
        async with asyncio.timeout(60):
            for url in self._urls:
                while await self._ask(url, body, {"Authorization": f"Bearer {secret}"}) != 429:
                    await asyncio.sleep(0.1)

    async def client(self, number: int) -> None:
        """``number``: also which key it has."""
        secret = self._secrets[number % 2]
        while self.open:
            choose = self.source.choice
            body = {
                "model": "synthetic", "messages": [{"role": "user", "content": "go"}], "n": choose((1, 1, 2)),
                "max_tokens": choose((1, 5, 25)), "stream": self.source.random() < 0.3,
            }  # fmt: skip
            headers = {"Authorization": f"Bearer {secret}"}
            if keyed := self.source.random() < 0.3:
                headers["Idempotency-Key"] = f"{number}-{self.source.random()}"
            for _ in range(2 if keyed else 1):
                outcome = await self._ask(self.source.choice(self._urls), body, headers)
                self.got[outcome] += 1
                if outcome == 200:
                    break
            await asyncio.sleep(self.source.uniform(0.1, 0.5))

    async def _ask(self, url: str, body: dict[str, Any], headers: dict[str, str]) -> int | str:
        try:
            answer = await self._http.post(url, json=body, headers=headers)
        except httpx.TransportError as error:
            return type(error).__name__
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "insufficient_quota", answer.text
        return answer.status_code

    async def _admin(self, method: str, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.stack.admin_key}"}
        url = f"{self.stack.root_url}/inferbus/v1{path}"
        answer = await self._http.request(method, url, json=body, headers=headers)
        assert answer.status_code < 300, answer.text
        return answer.json()


async def dies(stack: Stack, name: str) -> None:
    await stack.restarted(name, stack.kill(name))


@asynccontextmanager
async def books(stack: Stack) -> AsyncIterator[Registry[BudgetLedgerRecord]]:
    config = BusConfig(stack.content["nats_url"], "kills", seed=stack.content["nats_seed"])
    async with connect(config) as bus:
        known = Registry(bus, "budget_ledgers", BudgetLedgerRecord)
        await known.start()
        yield known
        await known.stop()


@pytest.mark.parametrize(
    ("seed", "rounds"), [pytest.param(5, 1, id="short"), pytest.param(7, 12, id="soak", marks=pytest.mark.soak)]
)
@pytest.mark.timeout(900)
async def test_whoever_dies_no_hard_budget_is_passed(tmp_path: Path, seed: int, rounds: int) -> None:
    source = random.Random(seed)
    options = ("synthetic", "--edges", "2")
    async with (
        running(tmp_path / "home", *options, variables=VARIABLES) as stack,
        httpx.AsyncClient(timeout=30) as http,
    ):
        market = Market(stack, http, source, rounds)
        await market.begin()
        clients = [asyncio.create_task(market.client(number)) for number in range(CLIENTS)]
        for _ in range(rounds):
            for name in source.sample(VICTIMS, len(VICTIMS)):
                await asyncio.sleep(source.uniform(0.2, 1.2))
                await dies(stack, name)
        async with asyncio.timeout(120):  # all is spent, however slow the machine is
            while not market.got[429]:
                await asyncio.sleep(0.1)
        market.open = False
        await asyncio.gather(*clients)
        # Also what an edge holds of calls of which it does not know what became: it is settled like any dead edge's.
        await asyncio.gather(dies(stack, "edge"), dies(stack, "edge-1"))
        assert market.got[200] > 0, market.got
        assert market.got[429] > 0, market.got
        await settled(stack, World(stack, http), market)


async def settled(stack: Stack, world: World, market: Market) -> None:
    async with books(stack) as known:
        try:
            async with asyncio.timeout(120):
                while any(one.grants for one in known.items().values()):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{known.items()} {market.got}") from None
        await audited(stack)
        found = {ledgers.ledger_of(name): ledgers.settled(one) for name, one in known.items().items()}
    assert len(found) == len(market.amounts)
    for of, amount in found.items():
        limit = market.amounts["key" if of.key_id else "tenant"]
        scope = f"tenant_id = '{of.tenant_id}' AND ('{of.key_id}' = '' OR key_id = '{of.key_id}')"
        ((charged),) = await world.sql(f"SELECT sum(charge) AS charge FROM charges WHERE {scope}")
        assert Decimal(charged["charge"]) <= limit, json.dumps(market.got)
        assert amount == Decimal(charged["charge"]), (of, json.dumps(market.got))

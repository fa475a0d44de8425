"""Hard budgets at real edges on a real bus: what is spent is never more, whoever asks where, and whoever dies."""

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import (
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    CreditRecord,
    KeyRecord,
    PriceRecord,
)
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint, prefix_of
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

_names = itertools.count(1)
PREPAID = BudgetPeriod.BUDGET_PERIOD_PREPAID
MONTH = BudgetPeriod.BUDGET_PERIOD_MONTH


@dataclass
class Office:
    """Who sets prices and budgets, as the meter does."""

    bus: Bus
    keys: Registry[KeyRecord]
    prices: Registry[PriceRecord]
    budgets: Registry[BudgetRecord]
    credits: Registry[CreditRecord]
    ledgers: Registry[BudgetLedgerRecord]

    async def tenant(self) -> tuple[str, str]:
        """(its id, the secret of a key of it)"""
        tenant, secret = f"budget-{next(_names)}", mint(os.urandom(32))
        record = KeyRecord(
            key_id=f"key_{tenant}", tenant_id=tenant, project_id="web", prefix=prefix_of(secret), scopes=["inference"],
            create_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        await self.keys.put(key_hash(secret), record)
        return tenant, secret

    async def price(self, model: str, currency: str = "USD") -> None:
        """1 for each output token, nothing else."""
        record = PriceRecord(
            model=model, rate_version=f"{model}-1", currency=currency, output_per_million="1000000",
            input_per_million="0",
        )  # fmt: skip
        await self.prices.put(record.rate_version, record)

    async def budget(self, tenant: str, amount: str = "", *, project: str = "", key: str = "", **more: Any) -> None:
        budget = BudgetRecord(
            tenant_id=tenant, project_id=project, key_id=key, period=MONTH if amount else PREPAID, amount=amount,
            currency="USD", hard=True, update_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        for name, value in more.items():
            setattr(budget, name, value)
        await self.budgets.put(ledgers.budget_name(budget), budget)

    async def credit(self, tenant: str, amount: str, credit_id: str, expires_us: int | None = None) -> None:
        credit = CreditRecord(credit_id=credit_id, tenant_id=tenant, currency="USD", amount=amount)
        if expires_us is not None:
            credit.expire_time.CopyFrom(clock.timestamp(expires_us))
        await self.credits.put(credit_id, credit)

    def granted(self, tenant: str) -> Decimal:
        """Of the tenant's ledger, by all edges."""
        found = [one for name, one in self.ledgers.items().items() if name.startswith(f"tenant:{tenant}#")]
        return sum((ledgers.total_granted(one) for one in found), Decimal(0))


@pytest_asyncio.fixture(scope="session")
async def office(nats_server: NatsServer) -> AsyncIterator[Office]:
    async with connect(BusConfig(nats_server.url, "office")) as bus:
        registries: list[Any] = [
            Registry(bus, bucket, record)
            for bucket, record in (
                ("keys", KeyRecord), ("prices", PriceRecord), ("budgets", BudgetRecord), ("credits", CreditRecord),
                ("budget_ledgers", BudgetLedgerRecord),
            )
        ]  # fmt: skip
        for one in registries:
            await one.start()
        yield Office(bus, *registries)
        for one in registries:
            await one.stop()


@asynccontextmanager
async def client(edge: Any, secret: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        edge.url,
        headers={"Authorization": f"Bearer {secret}"},
        timeout=aiohttp.ClientTimeout(total=60),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        yield session


@asynccontextmanager
async def answering(worker: Any, model: str) -> AsyncIterator[list[Any]]:
    """Each request of ``model`` is answered with one token. Gives those that came."""
    came: list[Any] = []

    async def run() -> None:
        while True:
            request = await worker.queues[model].get()
            came.append(request)
            worker.close(request, worker.say(request, ["a"]))

    task = asyncio.create_task(run())
    try:
        yield came
    finally:
        task.cancel()


async def known(http: aiohttp.ClientSession, model: str) -> None:
    async with asyncio.timeout(5):
        while (await http.get(f"/v1/models/{model}")).status != 200:
            await asyncio.sleep(0.02)


async def status(http: aiohttp.ClientSession, body: dict[str, Any], **headers: str) -> int:
    async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def until_refused(http: aiohttp.ClientSession, body: dict[str, Any], most: int) -> int:
    """How many calls, one after the other, are answered before one is refused."""
    for count in range(most + 1):
        if (got := await status(http, body)) != 200:
            assert got == 429
            return count
    return most + 1


async def test_a_thousand_parallel_calls_at_two_edges_spend_no_more_than_the_budget(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType, nats_server: NatsServer, tmp_path: Path
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "50")
    async with (
        rig.run_edge(nats_server, tmp_path) as other,
        answering(worker, model) as came,
        client(edge, secret) as one,
        client(other, secret) as two,
    ):
        await known(one, model)
        await known(two, model)
        body = rig.chat(model, max_tokens=1)
        got = await asyncio.gather(*(status((one, two)[n % 2], body) for n in range(1000)))
        assert Counter(got) == {200: 50, 429: 950}
        assert len(came) == 50
        assert office.granted(tenant) == 50
        async with one.post("/v1/chat/completions", json=body) as refused:
            error = (await refused.json())["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert "Retry-After" not in refused.headers
        assert refused.headers["x-should-retry"] == "false"


async def test_a_killed_edge_takes_no_more_with_it_than_it_was_granted(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType, nats_server: NatsServer, tmp_path: Path
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "50")
    body = rig.chat(model, max_tokens=1)
    async with answering(worker, model) as came, client(edge, secret) as survivor:
        await known(survivor, model)
        async with rig.run_edge(nats_server, tmp_path) as dying, client(dying, secret) as http:
            await known(http, model)
            first = await asyncio.gather(*(status(http, body) for _ in range(10)))
            assert first.count(200) == 10
            dying.process.send_signal(signal.SIGKILL)
            await dying.process.wait()
        got = await asyncio.gather(*(status(survivor, body) for _ in range(100)))
        assert 10 + got.count(200) == len(came) <= 50
        assert got.count(200) > 0
        assert office.granted(tenant) == 50


async def test_what_a_call_did_not_use_of_its_bound_is_there_for_the_next(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "20")
    async with answering(worker, model), client(edge, secret) as http:
        # Each costs 1 and needs 10: the last one is taken when 10 are left.
        assert await until_refused(http, rig.chat(model, max_tokens=10), 20) == 11
        # A lower bound is still covered.
        assert await until_refused(http, rig.chat(model, max_tokens=1), 20) == 9


async def test_every_budget_that_a_call_counts_in_must_cover_it(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "50")
    await office.budget(tenant, "3", key=f"key_{tenant}")
    await office.budget(tenant, "5", project="web")
    async with answering(worker, model), client(edge, secret) as http:
        body = rig.chat(model, max_tokens=1)
        assert await until_refused(http, body, 9) == 3
        await office.budget(tenant, "100", key=f"key_{tenant}")
        await asyncio.sleep(0.2)
        assert await until_refused(http, body, 9) == 2
        await office.budget(tenant, "4", project="web")  # below what is spent
        await asyncio.sleep(0.2)
        assert await status(http, body) == 429


async def test_a_retry_under_an_idempotency_key_reserves_nothing(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "1")
    async with answering(worker, model) as came, client(edge, secret) as http:
        body = rig.chat(model, max_tokens=1)
        assert [await status(http, body, **{"Idempotency-Key": "once"}) for _ in range(3)] == [200, 200, 200]
        assert await status(http, body, **{"Idempotency-Key": "another"}) == 429
        assert len(came) == 1


async def test_choices_are_reserved_and_settled_together(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "7")
    async with answering(worker, model), client(edge, secret) as http:
        assert await until_refused(http, rig.chat(model, max_tokens=1, n=3), 9) == 2
        assert await until_refused(http, rig.chat(model, max_tokens=1), 9) == 1


async def test_prepaid_credits_are_spent_added_to_and_expire(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant)
    async with answering(worker, model), client(edge, secret) as http:
        body = rig.chat(model, max_tokens=1)
        assert await status(http, body) == 429
        await office.credit(tenant, "2", f"{tenant}-a")
        await asyncio.sleep(0.2)
        assert await until_refused(http, body, 9) == 2
        await office.credit(tenant, "5", f"{tenant}-b", clock.now_us() + 1_500_000)
        await asyncio.sleep(0.2)
        assert [await status(http, body) for _ in range(2)] == [200, 200]
        await asyncio.sleep(1.5)
        assert await until_refused(http, body, 9) <= 3  # what the edge had asked for before
        await office.credit(tenant, "1", f"{tenant}-c", clock.now_us() + 3_600_000_000)
        await asyncio.sleep(0.2)
        assert await until_refused(http, body, 9) == 1


async def test_what_costs_nothing_is_never_refused_and_another_currency_always(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.budget(tenant, "0")
    async with answering(worker, model), client(edge, secret) as http:
        body = rig.chat(model, max_tokens=1)
        assert await status(http, body) == 200
        await office.price(model, "EUR")
        await asyncio.sleep(0.2)
        async with http.post("/v1/chat/completions", json=body) as refused:
            error = (await refused.json())["error"]
        assert error["code"] == "insufficient_quota"
        assert "USD" in error["message"]


async def test_an_idle_edge_ends_its_grant_and_takes_it_up_again(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "50")

    def ended() -> list[bool]:
        ledgers = [one for name, one in office.ledgers.items().items() if name.startswith(f"tenant:{tenant}#")]
        return [grant.ended for one in ledgers for grant in one.grants]

    async with client(edge, secret) as http:
        for spent in (1, 2):
            granted = False
            for _ in range(6):
                asked = asyncio.create_task(status(http, rig.chat(model, max_tokens=5)))
                request = await worker.queues[model].get()
                # Looked at while the call runs: of what is over soon a watch may be told the last state only. A call
                # that came before the edge had heard of the budget has no grant, and costs it nothing.
                with suppress(TimeoutError):
                    await rig.until(lambda: False in ended(), 5)
                    granted = True
                worker.close(request, worker.say(request, ["a"]))
                assert await asked == 200
                if granted:
                    break
            assert granted
            await rig.until(lambda: all(ended()), 30)
            assert office.granted(tenant) == spent


async def test_an_edge_gives_back_what_it_does_not_use(
    office: Office, edge: Any, worker: Any, model: str, rig: ModuleType, nats_server: NatsServer, tmp_path: Path
) -> None:
    tenant, secret = await office.tenant()
    await office.price(model)
    await office.budget(tenant, "50")
    async with answering(worker, model), rig.run_edge(nats_server, tmp_path) as other:
        async with client(other, secret) as http:
            await known(http, model)
            assert await status(http, rig.chat(model, max_tokens=5)) == 200
            assert office.granted(tenant) >= 5
        await other.stop()
    assert office.granted(tenant) == 1
    async with answering(worker, model), client(edge, secret) as http:
        assert await until_refused(http, rig.chat(model, max_tokens=1), 60) == 49

"""Of a call that was certainly not accepted nothing stays reserved: whole or in part, under an idempotency key or not,
and whatever its client does meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import (
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    IdempotencyRecord,
    KeyRecord,
    ModelRecord,
    PriceRecord,
)
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store
from inferbus_edge.idempotency import Claim, Claims
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

from tests.harness.standing import standing_still

MODEL = "refusals"
KEY = KeyRecord(key_id="k", tenant_id="acme", project_id="web")


@dataclass
class Place:
    """A broker of its own, of which REQUESTS takes only so much, and an edge; the tenant has a hard budget of 4."""

    bus: Bus
    server: NatsServer
    edge: Any
    http: aiohttp.ClientSession
    ledgers: Registry[BudgetLedgerRecord]

    async def takes(self, messages: int) -> None:
        """REQUESTS has room for so many from now on."""
        await self._asked("STREAM.PURGE.REQUESTS")
        await self.bus.nc.request("req.filler.x", b"", timeout=5)
        config = (await self._asked("STREAM.INFO.REQUESTS"))["config"]
        await self._asked("STREAM.UPDATE.REQUESTS", {**config, "max_msgs": messages + 1})

    async def _asked(self, subject: str, body: Any = None) -> Any:
        reply = await self.bus.nc.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"", timeout=5)
        answer = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def ask(self, *, n: int = 1, **headers: str) -> tuple[int, str]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "n": n}
        async with self.http.post("/v1/chat/completions", json=body, headers=headers) as answer:
            return answer.status, (await answer.json())["error"]["code"]

    def held(self) -> Decimal | None:
        """What edges have of the budget for calls that run; None as long as they may have more than that."""
        grants = [one for record in self.ledgers.items().values() for one in record.grants]
        return sum((Decimal(one.granted) for one in grants), Decimal(0)) if all(one.ended for one in grants) else None


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, rig: Any) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("refusals")
    async with (
        rig.broker(folder) as server,
        connect(BusConfig(server.url, "refusals")) as bus,
        rig.run_edge(server, folder) as edge,
        rig.session(edge) as http,
    ):
        models, prices = Registry(bus, "models", ModelRecord), Registry(bus, "prices", PriceRecord)
        budgets, known = Registry(bus, "budgets", BudgetRecord), Registry(bus, "budget_ledgers", BudgetLedgerRecord)
        for one in (models, prices, budgets, known):
            await one.start()
        await models.put(MODEL, ModelRecord(name=MODEL, revision="r"))
        price = PriceRecord(rate_version="v", model=MODEL, currency="USD", output_per_million="1000000")
        await prices.put(price.rate_version, price)
        budget = BudgetRecord(
            tenant_id="acme", period=BudgetPeriod.BUDGET_PERIOD_MONTH, amount="4", currency="USD", hard=True,
            update_time=clock.timestamp(clock.now_us()),
        )  # fmt: skip
        await budgets.put(ledgers.budget_name(budget), budget)
        async with asyncio.timeout(10):
            while (await http.get(f"/v1/models/{MODEL}")).status != 200:
                await asyncio.sleep(0.02)
        yield Place(bus, server, edge, http, known)
        for one in (models, prices, budgets, known):
            await one.stop()


KEYED = pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["plain", "keyed"])


@KEYED
async def test_a_call_that_the_bus_refuses_gives_back_what_it_reserved(place: Place, headers: dict[str, str]) -> None:
    await place.takes(0)
    for _ in range(6):
        assert await place.ask(**headers) == (429, "stream_full")
    await until(lambda: place.held() == 0)


@KEYED
async def test_of_a_call_that_is_refused_in_part_the_rest_alone_stays_reserved(
    place: Place, headers: dict[str, str], rig: Any
) -> None:
    for _ in range(2):
        await place.takes(1)
        assert await place.ask(n=3, **headers) == (429, "stream_full")
        async with rig.run_worker(place.server) as worker:
            accepted = await worker.take(MODEL)
            worker.close(accepted, 0, reason=FinishReason.FINISH_REASON_CANCELLED)
            await until(lambda: place.held() == 0)
            assert worker.queues[MODEL].empty()


async def test_a_client_that_leaves_while_its_key_is_claimed_leaves_nothing_reserved(place: Place) -> None:
    await place.takes(9)
    with standing_still(place.server.pid):
        asked = [asyncio.create_task(place.ask(**{"Idempotency-Key": f"gone-{n}"})) for n in range(3)]
        await asyncio.sleep(0.7)
        for one in asked:
            one.cancel()
    await until(lambda: place.held() == 0)


@pytest_asyncio.fixture
async def idempotency(nats_server: NatsServer) -> AsyncIterator[Store[IdempotencyRecord]]:
    async with connect(BusConfig(nats_server.url, "claims")) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        yield Store(bus, "idempotency", IdempotencyRecord, publisher)


async def test_a_claim_is_taken_back_or_published_again_and_never_both(
    idempotency: Store[IdempotencyRecord],
) -> None:
    """Each at the same time as the other, from another edge."""
    one, other = (Claims(idempotency, name, timedelta(minutes=5)) for name in ("edge-a", "edge-b"))

    def new(name: str, request_id: bytes, after: Claim | None = None) -> Claim:
        return one.new(KEY, name, b"f", request_id, 1, after)

    async def found(name: str) -> Claim:
        claim = await other.find(KEY, name, b"f")
        assert claim is not None
        return claim

    for n in range(20):
        name = f"raced-{n}"
        first = new(name, b"1")
        assert await first.make()
        retries = [await found(name) for _ in range(2)]
        withdrawn, *confirmed = await asyncio.gather(first.withdraw(), *(retry.confirm() for retry in retries))
        assert confirmed == [not withdrawn] * 2
        assert (await other.find(KEY, name, b"f") is None) == withdrawn
        if withdrawn:
            assert await new(name, b"2").make(), "the key is free"
            assert not await retries[0].confirm()
    late = new("late", b"1")
    late.revision = 0  # it was sent before
    assert await late.withdraw()
    assert not await late.make(), "what was on its way comes too late"
    assert await new("late", b"2").make()
    after = new("late", b"3", await found("late"))
    assert await after.withdraw()
    assert not await after.make()
    assert (await found("late")).record.request_id == b"2"

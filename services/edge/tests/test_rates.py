"""What a key pays, told to who has it: by its tenant, its project and the models that may answer, and no more."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import DeploymentRecord, KeyRecord, PriceRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint, prefix_of
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

RATES = "/inferbus/v1/rates"


@dataclass
class Seller:
    """Who sets prices and sells keys."""

    keys: Registry[KeyRecord]
    prices: Registry[PriceRecord]
    deployments: Registry[DeploymentRecord]

    async def price(self, version: str, model: str, output: str, **fields: Any) -> None:
        record = PriceRecord(
            rate_version=version, model=model, currency="USD", input_per_million="0.50", output_per_million=output,
            **fields,
        )  # fmt: skip
        await self.prices.put(version, record)

    async def key(self, tenant: str, project: str, **fields: Any) -> str:
        secret = mint(os.urandom(32))
        record = KeyRecord(
            key_id=f"key_{os.urandom(4).hex()}", tenant_id=tenant, project_id=project, prefix=prefix_of(secret),
            **{"scopes": ["inference"], **fields},
        )  # fmt: skip
        await self.keys.put(key_hash(secret), record)
        return secret


@pytest_asyncio.fixture
async def seller(nats_server: NatsServer) -> AsyncIterator[Seller]:
    async with connect(BusConfig(nats_server.url, "seller")) as bus:
        made = Seller(
            Registry(bus, "keys", KeyRecord), Registry(bus, "prices", PriceRecord),
            Registry(bus, "deployments", DeploymentRecord),
        )  # fmt: skip
        for one in (made.keys, made.prices, made.deployments):
            await one.start()
        yield made
        for one in (made.keys, made.prices, made.deployments):
            await one.stop()


async def rates(rig: Any, edge: Any, secret: str, **asked: str) -> Any:
    """The answer's body, asked until the key is known here."""
    async with rig.session(edge, secret) as http, asyncio.timeout(30):
        while (answer := await http.get(RATES, params=asked)).status == 401:
            await asyncio.sleep(0.01)
        return await answer.json()


async def told(rig: Any, edge: Any, secret: str, **asked: str) -> list[tuple[str, str]]:
    """(model, its rate's version) of each who may answer."""
    found = (await rates(rig, edge, secret, **asked))["rates"]
    return [(one["model"], one.get("rate", {}).get("rate_version", "")) for one in found]


async def comes(rig: Any, edge: Any, secret: str, wanted: list[tuple[str, str]], **asked: str) -> None:
    """Until the edge knows all of the prices."""
    async with asyncio.timeout(30):
        while await told(rig, edge, secret, **asked) != wanted:
            await asyncio.sleep(0.01)


async def test_a_key_is_told_its_own_rate_and_no_others(rig: Any, edge: Any, seller: Seller, model: str) -> None:
    await seller.price(f"{model}-all", model, "1.5", cached_input_per_million="0.25", per_call="0.001", minimum="0.01")
    await seller.price(f"{model}-umbrella", model, "1.2", tenant_id="umbrella", embedding_per_million="0.01")
    await seller.price(f"{model}-research", model, "0.7", tenant_id="umbrella", project_id="research")
    await seller.price(f"{model}-other", model, "0.1", tenant_id="wayne")
    await seller.price(f"{model}-old", model, "9", tenant_id="umbrella", revision="rev-0")
    later = clock.timestamp(clock.now_us() + 3_600_000_000)
    await seller.price(f"{model}-later", model, "5", effective_time=later)
    anybody, web, research, stranger = [
        await seller.key(*whose)
        for whose in (("acme", "web"), ("umbrella", "web"), ("umbrella", "research"), ("wayne", "x"))
    ]
    for secret, version in ((anybody, "all"), (web, "umbrella"), (research, "research"), (stranger, "other")):
        await comes(rig, edge, secret, [(model, f"{model}-{version}")], model=model)
    assert await rates(rig, edge, anybody, model=model) == {
        "rates": [
            {
                "model": model,
                "revision": "rev-1",
                "rate": {
                    "rate_version": f"{model}-all", "currency": "USD", "input_per_million": "0.5",
                    "cached_input_per_million": "0.25", "output_per_million": "1.5", "reasoning_per_million": "1.5",
                    "per_call": "0.001", "minimum": "0.01", "factor": "1",
                },
            }
        ]
    }  # fmt: skip
    assert await told(rig, edge, web, model=model, revision="rev-0") == [(model, f"{model}-old")]
    vectors = await rates(rig, edge, web, model=model, operation="embeddings", priority_class="batch")
    assert vectors["rates"][0]["rate"]["input_per_million"] == "0.01"
    assert "wayne" not in str([await rates(rig, edge, one, model=model) for one in (anybody, web, research)])


async def test_who_may_answer_in_its_place_is_told_with_its_rate(
    rig: Any, edge: Any, seller: Seller, worker: Any, http: Any, model: str
) -> None:
    spare = f"{model}-spare"
    await worker.serve(spare, http)
    await seller.price(f"{spare}-1", spare, "3")
    await seller.deployments.put(model, DeploymentRecord(model=model, fallbacks=[spare]))
    bound = await seller.key("acme", "web", models=[model])
    await comes(rig, edge, bound, [(model, ""), (spare, f"{spare}-1")], model=model)
    # What the key may not ask for itself it may be answered by, and not ask the rate of.
    assert (await rates(rig, edge, bound, model=spare))["error"]["code"] == "model_not_found"


async def test_what_is_asked_wrongly_is_said(rig: Any, edge: Any, seller: Seller, http: Any, model: str) -> None:
    for asked, status, code in (
        ({}, 400, "missing_required_parameter"), ({"model": model, "tenant": "wayne"}, 400, "unknown_parameter"),
        ({"model": model, "operation": "singing"}, 400, "invalid_value"),
        ({"model": model, "priority_class": "unspecified"}, 400, "invalid_value"),
        ({"model": "none-such"}, 404, "model_not_found"),
    ):  # fmt: skip
        answer = await http.get(RATES, params=asked)
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
    administrator = await seller.key("acme", "web", scopes=["tenant_admin"])
    assert (await rates(rig, edge, administrator, model=model))["error"]["code"] == "insufficient_scope"


async def test_a_price_that_cannot_be_read_is_not_guessed(
    rig: Any, edge: Any, seller: Seller, http: Any, model: str
) -> None:
    await seller.price(f"{model}-1", model, "a lot")
    async with asyncio.timeout(30):
        while (answer := await http.get(RATES, params={"model": model})).status == 200:
            await asyncio.sleep(0.01)
    assert (answer.status, (await answer.json())["error"]["code"]) == (503, "price_unreadable")

"""What an edge holds of a budget is never lost or spent twice: by calls that come while others are looked after, and by
calls that end before they were published."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from inferbus.bus.v1.frame_pb2 import Fence, Frame
from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord, DeploymentRecord, PriceRecord
from inferbus_contracts.ids import choice_id
from inferbus_rating import ledger as ledgers
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

from services.edge.tests.budget_desk import MODEL, Desk, desk_at, until
from tests.harness.standing import standing_still

MANY = 60


async def test_a_ledger_that_cannot_be_changed_stops_no_other(rig: Any, tmp_path: Path) -> None:
    async with rig.broker(tmp_path) as server, desk_at(server) as desk:
        for tenant in ("stuck", "other"):
            await desk.budget(tenant, "10")
        await asyncio.sleep(0.3)
        for tenant in ("stuck", "other"):
            desk.end(tenant, await desk.call(tenant), 1)
        name, record = desk.ledger("stuck")
        for n in range(200):
            record.grants.add(edge=f"edge-{n}" * 20, boot=n, granted="0", ended=True)
        await desk.ledgers.update(name, record, desk.ledgers.revision(name))
        asked = await desk.bus.nc.request("$JS.API.STREAM.INFO.KV_budget_ledgers", b"", timeout=5)
        config = {**json.loads(asked.data)["config"], "max_msg_size": 5000}
        await desk.bus.nc.request("$JS.API.STREAM.UPDATE.KV_budget_ledgers", json.dumps(config).encode(), timeout=5)
        running = asyncio.create_task(desk.edge.run())
        await until(lambda: all(one.ended for one in desk.ledger("other")[1].grants))
        assert not desk.ledger("stuck")[1].grants[0].ended
        running.cancel()


async def test_a_call_that_comes_while_other_budgets_are_looked_after_keeps_what_it_holds(desk: Desk) -> None:
    others = [f"accounts-other-{n}" for n in range(MANY)]
    for tenant in others:
        await desk.budget(tenant, "100000")
    await desk.budget("accounts-x", "10")
    await asyncio.sleep(0.3)
    running = asyncio.create_task(desk.edge.run())
    stopping = asyncio.Event()

    async def used(tenant: str) -> None:
        """So that the edge gives back something of it in each round, with a change of its ledger."""
        while not stopping.is_set():
            desk.end(tenant, await desk.call(tenant), 1)
            await asyncio.sleep(0.9)

    using = [asyncio.create_task(used(tenant)) for tenant in others]
    try:
        await asyncio.sleep(0.5)  # the others' accounts are there first, and so looked after first
        desk.end("accounts-x", await desk.call("accounts-x"), 1)
        await until(lambda: all(one.ended for one in desk.ledger("accounts-x")[1].grants))
        name, _ = desk.ledger("accounts-x")
        # The meter puts the charge in place of the grant: what the edge has of it is void, and thrown away next time.
        await desk.ledgers.update(name, BudgetLedgerRecord(settled="1"), desk.ledgers.revision(name))
        watched, _ = desk.ledger(others[0])
        granted = []

        def given_back() -> bool:
            granted.append(ledgers.total_granted(desk.ledgers.items()[watched]))
            return granted[-1] < max(granted)

        await until(given_back)  # now: it is at the first of them
        held = 0
        for _ in range(200):
            try:
                await desk.call("accounts-x")
                held += 1
            except InferBusError:
                break
            await asyncio.sleep(0.02)
        assert held == 9
    finally:
        stopping.set()
        await asyncio.gather(*using)
        running.cancel()


async def test_where_a_price_cannot_be_read_a_hard_budget_refuses(desk: Desk) -> None:
    await desk.budget("accounts-p", "10")
    await desk.prices.put("accounts-2", PriceRecord(rate_version="accounts-2", model="another", currency="USD"))
    await asyncio.sleep(0.2)
    await desk.call("accounts-p")
    await desk.price("accounts-1", output_per_million="much")  # past the API
    await asyncio.sleep(0.2)
    with pytest.raises(InferBusError) as refused:
        await desk.call("accounts-p")
    assert refused.value.reason == "price_unreadable"
    await desk.call("accounts-without-a-budget")


async def test_a_client_that_leaves_while_its_answer_is_to_be_stored_leaves_nothing_reserved(
    desk: Desk, edge: Any, worker: Any, model: str, rig: Any, nats_server: NatsServer
) -> None:
    tenant = "accounts-leaver"
    secret = await desk.customer(tenant, model, "50")
    async with rig.session(edge, secret) as http:
        await asyncio.sleep(0.3)
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=rig.chat(model, max_tokens=4)))
        await worker.answer(model, ["a"])
        assert (await asked).status == 200
        with standing_still(nats_server.pid), pytest.raises((TimeoutError, aiohttp.ClientError)):
            await http.post(
                "/v1/responses", json={"model": model, "input": "hello", "max_output_tokens": 4},
                timeout=aiohttp.ClientTimeout(total=0.5),
            )  # fmt: skip
    await until(lambda: all(one.ended and Decimal(one.granted) == 1 for one in desk.ledger(tenant)[1].grants))


async def test_what_a_dearer_fallback_would_cost_is_reserved(desk: Desk) -> None:
    """Who answers is decided later: a hard budget must cover whoever it is."""
    await desk.budget("accounts-fallen", "10")
    dear = PriceRecord(rate_version="accounts-dear-1", model="accounts-dear", currency="USD")
    dear.output_per_million = "6000000"
    await desk.prices.put(dear.rate_version, dear)
    await desk.deployments.put(MODEL.name, DeploymentRecord(model=MODEL.name, fallbacks=["accounts-dear"]))
    try:
        async with asyncio.timeout(30):
            while True:  # until the edge has heard of both
                first = await desk.call("accounts-fallen")
                try:
                    second = await desk.call("accounts-fallen")
                except InferBusError:
                    break
                for one in (first, second):
                    desk.end("accounts-fallen", one, 0)
                await asyncio.sleep(0.05)
        desk.end("accounts-fallen", first, 1)
        assert await desk.accepts("accounts-fallen"), "the asked model answered: the rest is free again"
    finally:
        await desk.deployments.delete(MODEL.name)


async def test_choices_that_are_answered_by_different_fallbacks_cost_no_more_than_was_reserved(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """One has dear prompts, the other dear answers: the worst call has its first choice from the one, the others from
    the other."""
    tenant, reads, writes = "accounts-mixed", "accounts-reads", "accounts-writes"
    await desk.budget(tenant, "49")
    for model, read, made in ((reads, "1000000", "0"), (writes, "0", "4000000")):
        price = PriceRecord(rate_version=f"{model}-1", model=model, currency="USD")
        price.input_per_million, price.output_per_million = read, made
        await desk.prices.put(price.rate_version, price)
    await desk.deployments.put(MODEL.name, DeploymentRecord(model=MODEL.name, fallbacks=[reads, writes]))
    try:
        async with asyncio.timeout(30):
            while True:  # until the edge has heard of all of them
                first = await desk.call(tenant, choices=3)
                try:
                    second = await desk.call(tenant, choices=3)
                except InferBusError:
                    break
                for one in (first, second):
                    for choice in range(3):
                        desk.end(tenant, choice_id(one, choice), 0)
                await asyncio.sleep(0.05)
        desk.end(tenant, choice_id(first, 0), 0, model=reads, read=17)
        for choice in (1, 2):
            desk.end(tenant, choice_id(first, choice), 1, model=writes)
        with pytest.raises(InferBusError):
            await desk.call(tenant, choices=3)
    finally:
        await desk.deployments.delete(MODEL.name)
    assert "a call cost more than was reserved" not in caplog.text


async def test_the_end_of_a_worker_that_was_taken_over_from_settles_nothing(desk: Desk) -> None:
    await desk.budget("accounts-moved", "2")
    await asyncio.sleep(0.3)
    kept, first = await desk.call("accounts-moved"), await desk.call("accounts-moved")
    desk.edge.on_frame(Frame(fences=[Fence(request_id=first, attempt=2)]))
    desk.end("accounts-moved", first, 0)
    assert not await desk.accepts("accounts-moved"), "it goes on elsewhere, and may cost as much"
    desk.end("accounts-moved", first, 0, attempt=2)
    assert await desk.accepts("accounts-moved")
    desk.end("accounts-moved", kept, 1)

"""Budgets of an edge that is cut off from the broker, and of calls of which nobody hears any more."""

import asyncio
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_budgets import budgets
from inferbus_budgets import holder as budget_holder
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

from services.edge.tests.budget_desk import Desk, desk_at, until
from tests.harness.standing import stand_still, standing_still


async def test_an_edge_that_was_cut_off_takes_new_grants_and_leaves_its_old_ones(
    desk: Desk, worker: Any, model: str, rig: Any, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Others may have seen its lease end: 13 s stand between that and its next call."""
    secret = await desk.customer("accounts-cut", model, "100")
    async with rig.run_edge(nats_server, tmp_path) as cut, rig.session(cut, secret) as http:
        await asyncio.sleep(0.3)

        async def one() -> int:
            asked = asyncio.create_task(http.post("/v1/chat/completions", json=rig.chat(model, max_tokens=1)))
            await worker.answer(model, ["a"])
            return int((await asked).status)

        assert await one() == 200
        (old,) = desk.ledger("accounts-cut")[1].grants
        assert Decimal(old.granted) > 1, "some is left to spend"
        cut.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(13.5)
        cut.process.send_signal(signal.SIGCONT)
        assert await one() == 200
        known, new = desk.ledger("accounts-cut")[1].grants
        assert known == old, "the meter's business"
        assert (new.edge, new.boot > old.boot) == (old.edge, True)


@pytest.mark.parametrize("known", [60.0, 1.3], ids=["back in time", "too late"])
async def test_an_edge_that_is_cut_off_accepts_nothing_until_it_is_back(
    rig: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: float
) -> None:
    """Its 9 s are 0.9 here, its 13 s are ``known``: after these it leaves what it was granted to the meter."""
    for name, seconds in (("_RENEW_SECONDS", 0.3), ("_SPENDS_SECONDS", 0.9), ("_KNOWN_SECONDS", known)):
        monkeypatch.setattr(budget_holder, name, seconds)
    for name, seconds in (("_TICK_SECONDS", 0.1), ("_PATIENCE_SECONDS", 0.5)):
        monkeypatch.setattr(budgets, name, seconds)
    async with rig.broker(tmp_path) as server, desk_at(server) as desk:
        await desk.budget("cut", "100")
        await asyncio.sleep(0.3)
        running = asyncio.create_task(desk.edge.run())
        for _ in range(10):
            await desk.call("cut")
        old = desk.ledger("cut")[1].grants[-1]
        assert Decimal(old.granted) > 10, "some is left to spend"
        with standing_still(server.pid):
            await asyncio.sleep(1.6)
            with pytest.raises(InferBusError) as refused:
                await desk.call("cut")
            assert refused.value.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE
        async with asyncio.timeout(20):
            while not await desk.accepts("cut"):
                await asyncio.sleep(0.05)
        grants = desk.ledger("cut")[1].grants
        if known < 1.6:
            assert old in grants, "the meter's business"
            assert grants[-1].boot > old.boot
        else:
            assert [one.boot for one in grants] == [old.boot]
        running.cancel()


async def test_what_may_be_on_the_log_stays_reserved_and_what_was_not_sent_does_not(rig: Any, tmp_path: Path) -> None:
    model = "lost"
    async with (
        rig.broker(tmp_path) as server,
        desk_at(server) as desk,
        rig.run_edge(server, tmp_path) as edge,
        rig.run_worker(server) as worker,
    ):
        secret = await desk.customer("lost", model, "100")
        async with rig.session(edge, secret) as http:
            await worker.serve(model, http)

            async def ask(tokens: int) -> tuple[int, str]:
                async with http.post("/v1/chat/completions", json=rig.chat(model, max_tokens=tokens)) as answer:
                    return answer.status, (await answer.json()).get("error", {}).get("code", "")

            begun = asyncio.Event()

            async def watched() -> bytes:
                body = rig.chat(model, max_tokens=4, stream=True)
                async with http.post("/v1/chat/completions", json=body) as answer:
                    lines = []
                    async for line in answer.content:
                        lines.append(line)
                        if b'"content":"a"' in line:
                            begun.set()
                    return lines[-2]

            runs = asyncio.create_task(watched())  # while it runs, the edge keeps some of its grant
            request = await worker.take(model)
            # Whose answer has begun, its acceptance has come: the broker may hand on a request before it says so.
            tokens = worker.say(request, ["a"])
            await asyncio.wait_for(begun.wait(), 10)
            stand_still(server.pid)
            lost = asyncio.create_task(ask(1))
            await asyncio.sleep(0.3)
            await server.kill()  # so that it never came onto the log: nobody can know that
            assert await lost == (503, "bus_unavailable")
            assert await ask(1) == (503, "bus_unavailable")  # certainly not sent
            await server.start()
            worker.close(request, tokens)
            assert await runs == b"data: [DONE]\n"
            await until(lambda: desk.granted("lost") == 2, 30.0)
            (grant,) = desk.ledger("lost")[1].grants
            assert not grant.ended


async def test_what_never_ends_is_forgotten_when_no_stream_can_have_it_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 26 h are 2 s here. An edge that stops before leaves its lease, and with it what is open, to the meter."""
    monkeypatch.setattr(budgets, "_FORGET_SECONDS", 2.0)
    await desk.budget("accounts-never", "10")
    await asyncio.sleep(0.3)
    begun = clock.monotonic()
    await desk.call("accounts-never")
    running = asyncio.create_task(desk.edge.run())
    await until(lambda: all(one.ended for one in desk.ledger("accounts-never")[1].grants))
    assert clock.monotonic() - begun >= 2.0
    assert desk.granted("accounts-never") == 0
    running.cancel()
    await desk.call("accounts-never")
    await desk.edge.stop()
    await until(lambda: desk.granted("accounts-never") == 1)
    leases = Registry(desk.bus, "leases", WorkerRecord)
    await leases.start()
    assert leases.get(budget_holder.lease_of("edge-accounts")) is not None
    await leases.stop()
    await desk.edge.start()

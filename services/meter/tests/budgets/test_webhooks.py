"""Webhooks of budgets: signed, tried again over restarts, and held up by nobody."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord, BudgetRecord
from inferbus_meter.core.budget import checked_budget
from inferbus_meter.webhooks import Webhooks
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_webhooks.signing import secret_of

from services.meter.tests.budgets.office import MONTH, SECRET, Office, spend


def test_a_webhook_needs_a_secret() -> None:
    budget = BudgetRecord(tenant_id="a", period=MONTH, currency="USD", amount="1", webhook_url="https://a.example/x")
    assert checked_budget(budget, webhooks=True).webhook_url == budget.webhook_url
    with pytest.raises(InferBusError, match="WEBHOOK_SECRET"):
        checked_budget(budget, webhooks=False)


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Answers with these statuses in turn (0: breaks off), then with 200."""
    came: list[tuple[dict[str, str], bytes]] = []

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        came.append((dict(request.headers), body))
        status = statuses[len(came) - 1] if len(came) <= len(statuses) else 200
        if status == 0:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    app = web.Application()
    app.router.add_post("/hook", handle)
    app.router.add_route("*", "/elsewhere", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", came
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sending(office: Office, waits: list[float]) -> AsyncIterator[None]:
    hooks = Webhooks(office.budgets.alerts, secret_of(SECRET), lambda: True, [timedelta(seconds=one) for one in waits])
    task = asyncio.create_task(hooks.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_done(office: Office) -> BudgetAlertRecord:
    async with asyncio.timeout(30):
        while True:
            for one in office.budgets.alerts.items().values():
                if one.HasField("deliver_time") or one.HasField("give_up_time"):
                    return one
            await asyncio.sleep(0.02)


async def test_receivers_that_hang_hold_up_no_other(office) -> None:
    came = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await came.wait()
        writer.close()

    hanging = [await asyncio.start_server(hang, "127.0.0.1", 0) for _ in range(12)]
    async with receiver() as (url, arrived):
        urls = [f"http://127.0.0.1:{one.sockets[0].getsockname()[1]}/hook" for one in hanging]
        for number, one in enumerate([*urls * 3, url]):
            alert = BudgetAlertRecord(
                alert_id=f"alert_{number:02}", threshold="1", amount="1", spent="1",
                budget=BudgetRecord(tenant_id="acme", period=MONTH, currency="USD", amount="1", webhook_url=one),
                next_attempt_time=clock.timestamp(clock.now_us()), period_start=clock.timestamp(clock.now_us()),
            )  # fmt: skip
            await office.budgets.alerts.put(alert.alert_id, alert)
        async with sending(office, [60.0]), asyncio.timeout(10):
            while not arrived:
                await asyncio.sleep(0.02)
    came.set()
    for one in hanging:
        one.close()


async def test_a_webhook_that_fails_twice_arrives_once_in_effect_over_a_restart(office, frame_log) -> None:
    async with receiver(500, 0) as (url, came):
        await office.set(amount="10", thresholds=["0.5"], webhook_url=url)
        await spend(office, frame_log, 6)
        async with sending(office, [0.0, 0.0, 0.0]):
            await office.rounds()
            async with asyncio.timeout(30):
                while not came:
                    await asyncio.sleep(0.01)
        async with sending(office, [0.0, 0.0, 0.0]):  # another meter, or this one started anew
            alert = await until_done(office)
            await asyncio.sleep(1.0)
    assert alert.HasField("deliver_time")
    assert len(came) == 3
    assert len({headers["webhook-id"] for headers, _ in came}) == len({body for _, body in came}) == 1
    for headers, body in came:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"


async def test_no_redirect_is_followed_and_what_always_fails_is_given_up(office, frame_log) -> None:
    async with receiver(302, 302, 302, 302) as (url, came):
        await office.set(amount="10", thresholds=["0.5"], webhook_url=url)
        await spend(office, frame_log, 6)
        await office.rounds()
        async with sending(office, [0.0, 0.0]):
            alert = await until_done(office)
    assert (alert.attempts, alert.HasField("deliver_time")) == (3, False)
    assert len(came) == 3

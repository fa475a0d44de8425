"""The office that each test of budgets has of its own."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import pytest
from inferbus.meter.v1.budgets_pb2_grpc import BudgetServiceStub, add_BudgetServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_meter.budget_keeper import BudgetKeeper, KeeperSettings
from inferbus_meter.budgets import Budgets
from inferbus_meter.budgets_servicer import SERVICE_NAME, BudgetServicer
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_runtime import rpc

from services.meter.tests.budgets.office import BOOK, Office


@pytest.fixture
async def office(own_bus, store) -> AsyncIterator[Office]:
    publisher = Publisher(own_bus)
    await publisher.start()
    ingest = Ingest(
        FrameLog(own_bus), store, lambda: BOOK, FlushLimits(100_000, timedelta(milliseconds=50), timedelta(seconds=2)),
        "test",
    )  # fmt: skip
    running = asyncio.create_task(ingest.run())
    budgets = Budgets(own_bus, store)
    await budgets.start()
    settings = KeeperSettings("test", timedelta(seconds=10), timedelta(0))
    keeper = BudgetKeeper(own_bus, budgets, ingest, publisher, settings)
    await keeper._leases.start()
    add = partial(add_BudgetServiceServicer_to_server, BudgetServicer(budgets, publisher, webhooks=True))
    async with (
        rpc.serve("127.0.0.1:0", add, [SERVICE_NAME], None) as server,
        rpc.channel(server.address, None) as channel,
    ):
        yield Office(own_bus, budgets, keeper, ingest, BudgetServiceStub(channel))
    ingest.stop()
    await running
    await keeper._leases.stop()
    await budgets.stop()

"""A store for the tests of a module, and books for each test."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from inferbus_bus.log import FrameLog
from inferbus_meter.invoice_archive import InvoiceArchive
from inferbus_meter.invoices import Invoices
from inferbus_rating import PriceBook

from services.meter.tests.invoices.books import SELLER, Books, CaughtUp, price


@pytest_asyncio.fixture(scope="module")
async def one_store(clickhouse: Any, make: Any) -> AsyncIterator[Any]:
    """For all tests here: each has a tenant of its own."""
    async with make.fresh_database(clickhouse) as store:
        yield store


@pytest.fixture
async def books(one_store: Any, own_bus: Any, make: Any) -> AsyncIterator[Books]:
    records, ingest = [price()], CaughtUp()
    archive = InvoiceArchive(own_bus)
    await archive.start()
    await archive.set_profile("", SELLER)
    invoices = Invoices(archive, one_store, FrameLog(own_bus), ingest, lambda: PriceBook.of(records), timedelta(0))
    yield Books(invoices, one_store, make, records, ingest, f"t-{uuid4().hex[:8]}")
    await archive.stop()

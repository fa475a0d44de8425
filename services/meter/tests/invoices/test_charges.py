"""What an invoice bills: late charges, corrections, discounts and credits once, and nothing back for what was lost."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from inferbus.bus.v1.registry_pb2 import CreditRecord, PriceTier
from inferbus.meter.v1.usage_pb2 import BucketWidth, Dimension, UsageFilter
from inferbus_bus.registry import Registry
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.months import begin_us, end_us
from inferbus_meter.core.usage import Question
from inferbus_meter.usage import costs_by_line_item
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from services.meter.tests.invoices.books import BEFORE, LAST, Books, price, uuid_of


@pytest.mark.parametrize("first", [None, Epoch(0, 0)])
async def test_what_comes_on_a_stream_made_anew_came_after_the_invoice(books: Books, first: Epoch | None) -> None:
    """There sequences are lower. ``first``: None as it was before rows named their stream."""
    for _ in range(3):
        await books.charge(LAST, 5, stream=first)
    record = await books.final(LAST)
    assert await books.verified(record.number) == []
    books.sequence = 0
    await books.charge(LAST, 7, hour=13, stream=Epoch(1, clock.now_us()))
    assert await books.verified(record.number) == ["late_charges"]
    (draft,) = await books.invoices.drafts(books.tenant, LAST)
    assert sum(line["quantity"] for line in draft.content["lines"] if line["kind"] == "output") == 7


async def test_charges_that_come_late_are_on_the_next_invoice_and_on_no_other(books: Books) -> None:
    for _ in range(3):
        await books.charge(BEFORE)
    first = await books.final(BEFORE)
    await books.charge(BEFORE, 100)
    assert (await books.final(BEFORE)).number == first.number
    assert await books.verified(first.number) == ["late_charges"]
    await books.charge(LAST, 7)
    second = await books.final(LAST)
    content, _ = await books.invoices.archive.content(second)
    late = [line for line in content["lines"] if line["month"] == BEFORE]
    assert [(line["kind"], line["quantity"]) for line in late] == [("input", 6), ("cached_input", 4), ("output", 100)]
    assert Decimal(first.subtotal) + Decimal(second.subtotal) == await books.charged()
    assert await books.verified(first.number) == []
    assert await books.verified(second.number) == []


async def test_a_re_rating_after_the_invoice_is_a_line_of_the_next_one(books: Books) -> None:
    # 10 in and 5 out at 1 and 3 a million cost 0.000025; output at 2.2 makes it 0.000021.
    books.records.append(price("v2", output_per_million="2.2", effective_time=clock.timestamp(clock.now_us())))
    request = await books.charge(BEFORE, 5)
    first = await books.final(BEFORE)
    await books.corrected(request, "-0.000004", "v2")
    await books.charge(LAST, 5)
    second = await books.final(LAST)
    content, _ = await books.invoices.archive.content(second)
    (line,) = [line for line in content["lines"] if line["kind"] == "adjustment"]
    assert (line["month"], line["quantity"], line["amount"], line["rate_version"]) == (BEFORE, 1, "-0.000004", "v2")
    assert Decimal(first.subtotal) + Decimal(second.subtotal) == await books.charged()
    assert await books.verified(first.number) == await books.verified(second.number) == []


async def test_a_price_change_at_noon_gives_lines_of_both_prices_and_tiers_a_discount(books: Books) -> None:
    noon = datetime(int(LAST[:4]), int(LAST[5:]), 10, 12, tzinfo=UTC)
    changed = price("v2", output_per_million="6", tiers=[PriceTier(above_tokens=50, factor="0.5")])
    changed.effective_time.FromDatetime(noon)
    books.records.append(changed)
    await books.charge(LAST, 40, hour=9, input=0)
    await books.charge(LAST, 60, hour=15, input=0)
    record = await books.final(LAST)
    content, _ = await books.invoices.archive.content(record)
    told = [(line["rate_version"], line["kind"], line["quantity"], line["amount"]) for line in content["lines"]]
    assert told == [
        ("v1", "output", 40, "0.00012"), ("v2", "output", 60, "0.00036"),
        # 50 of 100 tokens are above the threshold, at half the price.
        ("v2", "discount", 0, "-0.00009"),
    ]  # fmt: skip
    assert await books.verified(record.number) == []
    # The month's costs, split, are the invoice's sum.
    month = (begin_us(LAST), end_us(LAST), BucketWidth.BUCKET_WIDTH_MONTH)
    asked = Question(*month, (Dimension.DIMENSION_PROJECT,), UsageFilter(tenant_id=books.tenant))
    items = (await costs_by_line_item(books.store, asked, books.invoices.book())).rows
    assert [one.amount for one in items if one.line_item == "synthetic, volume_discount"] == ["-0.00009"]
    assert sum(Decimal(one.amount) for one in items) == Decimal(record.subtotal)


async def test_credits_pay_once_and_a_voided_invoice_gives_them_back(books: Books, own_bus: Any) -> None:
    registry: Registry[CreditRecord] = Registry(own_bus, "credits", CreditRecord)
    await registry.start()
    paid_in = CreditRecord(credit_id=f"c-{books.tenant}", tenant_id=books.tenant, currency="EUR", amount="5")
    paid_in.create_time.FromMicroseconds(1)
    await registry.create(paid_in.credit_id, paid_in)
    while not books.invoices.archive.credits(books.tenant):
        await asyncio.sleep(0.02)
    await books.charge(BEFORE, 1_000_000)
    await books.charge(LAST, 1_000_000)
    first, second = await books.final(BEFORE), await books.final(LAST)
    assert [(one.total, one.credits, one.due) for one in (first, second)] == [
        ("3.57", "3.57", "0"), ("3.57", "1.43", "2.14"),
    ]  # fmt: skip
    await books.invoices.void(first.number, "test")
    again = await books.final(BEFORE)
    assert (again.credits, again.due) == ("3.57", "0")
    assert await books.verified(again.number) == await books.verified(second.number) == []
    await registry.delete(paid_in.credit_id)
    while books.invoices.archive.credits(books.tenant):
        await asyncio.sleep(0.02)
    assert await books.verified(again.number) == ["credits"]
    await registry.stop()


async def test_charges_that_vanished_are_no_reason_to_pay_back(books: Books) -> None:
    await books.charge(BEFORE)
    await books.charge(BEFORE)
    await books.final(BEFORE)
    await books.store.command(
        f"ALTER TABLE requests DELETE WHERE request_id = '{uuid_of(books.requests[0])}' SETTINGS mutations_sync = 2"
    )
    with pytest.raises(InferBusError, match="charges_missing"):
        await books.invoices.drafts(books.tenant, LAST)
    # Nor is it hidden by as many new ones.
    await books.charge(LAST)
    with pytest.raises(InferBusError, match="charges_missing") as refused:
        await books.final(LAST)
    assert BEFORE in refused.value.message


@pytest.mark.parametrize("tokens", [5, 1000, 1])
async def test_a_lost_charge_is_not_hidden_by_a_new_one_on_the_same_line(books: Books, tokens: int) -> None:
    """Also not by one of the same tokens and cost."""
    for _ in range(2):
        await books.charge(BEFORE)
    await books.final(BEFORE)
    store = books.store
    lost = f"WHERE request_id = '{uuid_of(books.requests[0])}'"
    await store.command(f"CREATE TABLE backup ENGINE = Memory AS SELECT * FROM requests {lost}")
    try:
        await store.command(f"ALTER TABLE requests DELETE {lost} SETTINGS mutations_sync = 2")
        await books.charge(BEFORE, tokens)
        await books.charge(LAST)
        with pytest.raises(InferBusError, match="charges_missing") as refused:
            await books.final(LAST)
        assert BEFORE in refused.value.message
        assert LAST not in refused.value.message
        # Put back, both are there: what came since is invoiced, and nothing is paid back.
        await store.command("INSERT INTO requests SELECT * FROM backup")
        record = await books.final(LAST)
    finally:
        await store.command("DROP TABLE backup")
    content, _ = await books.invoices.archive.content(record)
    late = [line for line in content["lines"] if (line["month"], line["kind"]) == (BEFORE, "output")]
    assert [line["quantity"] for line in late] == [tokens]


async def test_a_charge_that_was_missing_when_its_month_was_invoiced_is_on_the_next_one(books: Books) -> None:
    """It is older than the last one that was there then, and yet is nothing that replaced another."""
    books.sequence = 9
    await books.charge(BEFORE)
    await books.final(BEFORE)
    books.sequence = 3
    await books.charge(BEFORE, 7, hour=13)
    books.sequence = 20
    await books.charge(LAST)
    record = await books.final(LAST)
    content, _ = await books.invoices.archive.content(record)
    late = [line for line in content["lines"] if (line["month"], line["kind"]) == (BEFORE, "output")]
    assert [line["quantity"] for line in late] == [7]


async def test_a_price_that_was_deleted_takes_no_discount_back(books: Books) -> None:
    books.records[:] = [price(tiers=[PriceTier(above_tokens=0, factor="0.5")])]
    await books.charge(BEFORE, 1_000_000)
    await books.final(BEFORE)
    books.records[:] = [price("v2")]
    await books.charge(LAST, 10)
    with pytest.raises(InferBusError, match="price_missing") as refused:
        await books.invoices.drafts(books.tenant, LAST)
    assert "v1" in refused.value.message

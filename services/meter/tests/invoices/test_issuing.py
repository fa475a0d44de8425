"""Invoices on a real broker and a real store: issued once, in order, when all of it is there, and voided."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, Tax
from inferbus.meter.v1.invoices_pb2 import InvoiceState
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.lease import hold
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_meter.core.invoice_register import Register
from inferbus_meter.core.months import months_before
from inferbus_meter.core.replay import LEASE
from inferbus_meter.invoice_archive import InvoiceArchive
from inferbus_meter.invoice_copy import copy_missing
from inferbus_meter.invoices import Invoices
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from services.meter.tests.invoices.books import BEFORE, LAST, NOW, Books, CaughtUp


def reason_of(refused: pytest.ExceptionInfo[InferBusError]) -> str:
    return refused.value.reason


async def test_a_month_becomes_an_invoice_that_says_what_was_charged(books: Books) -> None:
    for tokens in (5, 7, 11):
        await books.charge(LAST, tokens)
    await books.charge(LAST, 1000, tenant="other")
    (draft,) = await books.invoices.drafts(books.tenant, LAST)
    record = await books.final(LAST, expected=draft.hash)
    assert (record.number, record.sequence, record.tenant_id) == (
        f"IB-INV-{clock.now():%Y}-000001", 1, books.tenant,
    )  # fmt: skip
    assert Decimal(record.subtotal) == await books.charged() == Decimal("0.0000882")
    content, data = await books.invoices.archive.content(record)
    assert sha256(data).hexdigest() == record.hash
    assert [(line["kind"], line["quantity"], line["amount"]) for line in content["lines"]] == [
        ("input", 18, "0.000018"), ("cached_input", 12, "0.0000012"), ("output", 23, "0.000069"),
    ]  # fmt: skip
    assert (record.net, record.tax, record.total) == ("0", "0", "0")
    assert (record.due_time.seconds - record.issue_time.seconds) == 14 * 86_400
    assert await books.verified(record.number) == []


async def test_a_month_is_final_only_when_it_is_over_and_all_of_it_is_in_the_tables(books: Books, own_bus: Any) -> None:
    await books.charge(NOW)
    with pytest.raises(InferBusError) as refused:
        await books.final(NOW)
    assert reason_of(refused) == "month_not_over"
    await books.charge(LAST)
    await books.make.Log(own_bus).request(2)
    with pytest.raises(InferBusError) as refused:
        await books.final(LAST)
    assert reason_of(refused) == "ingest_behind"
    books.ingest.position = 100
    assert (await books.final(LAST)).sequence == 1


async def test_nothing_is_issued_while_a_replay_puts_charges_back(books: Books, own_bus: Any) -> None:
    await books.charge(LAST)
    archive = books.invoices.archive
    async with hold(own_bus, LEASE, "a meter", timedelta(seconds=30)):
        async with asyncio.timeout(30):
            while not archive.replaying:
                await asyncio.sleep(0.01)
        with pytest.raises(InferBusError) as refused:
            await books.final(LAST)
        assert reason_of(refused) == "replay_running"
    async with asyncio.timeout(30):
        while archive.replaying:
            await asyncio.sleep(0.01)
    assert (await books.final(LAST)).sequence == 1


async def test_two_meters_issue_each_invoice_once_and_numbers_have_no_gap(
    books: Books, own_nats: Any, own_bus: Any
) -> None:
    tenants = [f"{books.tenant}-{number}" for number in range(6)]
    for tenant in tenants:
        await books.charge(LAST, tenant=tenant)
    async with connect(BusConfig(own_nats.url, "meter-other")) as bus:
        archive = InvoiceArchive(bus)
        other = Invoices(archive, books.store, FrameLog(bus), CaughtUp(), books.invoices.book, timedelta(0))
        await archive.start()
        both = (books.invoices, other)
        made = await asyncio.gather(
            *(meter.finalize(tenant, LAST, "EUR", "", 0.0) for tenant in tenants for meter in both)
        )
        voided = await asyncio.gather(*(meter.void(made[0].number, "mistake") for meter in both))
        assert [one.number for one in other.archive.register().entries] == [
            one.number for one in books.invoices.archive.register().entries
        ]
        await archive.stop()
    register = books.invoices.archive.register()
    assert [one.sequence for one in register.entries] == list(range(1, len(tenants) + 2))
    by_tenant: dict[str, set[str]] = {}
    for record in made:
        by_tenant.setdefault(record.tenant_id, set()).add(record.number)
    assert all(len(numbers) == 1 for numbers in by_tenant.values())
    year = f"{clock.now():%Y}"
    assert set().union(*by_tenant.values()) == {f"IB-INV-{year}-{n:06}" for n in range(1, len(tenants) + 1)}
    assert {note.number for note in voided} == {f"IB-CN-{year}-000001"}
    assert register.faults() == {}


async def test_what_is_issued_cannot_be_overwritten_or_deleted(books: Books, own_bus: Any) -> None:
    await books.charge(LAST)
    record = await books.final(LAST)
    publisher = Publisher(own_bus)
    await publisher.start()
    for bucket, key in (("invoices", f"{1:012}"), ("invoice_contents", record.hash)):
        for headers in ({}, {"KV-Operation": "DEL"}, {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}):
            with pytest.raises(InferBusError):
                await publisher.publish_raw(f"$KV.{bucket}.{key}", b"", headers)
    assert await books.verified(record.number) == []


async def test_killed_before_the_entry_the_next_try_issues_the_same_invoice(books: Books) -> None:
    await books.charge(LAST)
    (draft,) = await books.invoices.drafts(books.tenant, LAST)
    await books.invoices.archive.keep(draft)  # step 1, then nothing
    assert books.invoices.archive.register().entries == []
    assert (await books.final(LAST)).hash == draft.hash


async def test_months_are_issued_in_order(books: Books) -> None:
    await books.charge(BEFORE)
    await books.charge(LAST)
    with pytest.raises(InferBusError, match="earlier_month_open") as refused:
        await books.final(LAST)
    assert BEFORE in refused.value.message
    await books.final(BEFORE)
    assert (await books.final(LAST)).sequence == 2


async def test_a_voided_month_can_be_issued_anew(books: Books) -> None:
    await books.charge(LAST)
    first = await books.final(LAST)
    await books.invoices.archive.set_profile(
        books.tenant, BillingProfileRecord(name="Acme Ltd.", tax=Tax(note="Reverse charge"))
    )
    note = await books.invoices.void(first.number, "wrong address")
    assert (note.voids, Decimal(note.total)) == (first.number, -Decimal(first.total))
    register = books.invoices.archive.register()
    assert register.state(register.find(first.number)) == InvoiceState.INVOICE_STATE_VOIDED
    second = await books.final(LAST)
    content, _ = await books.invoices.archive.content(second)
    assert (second.sequence, content["buyer"]["name"], second.tax) == (3, "Acme Ltd.", "0")
    assert second.subtotal == first.subtotal
    for record in (first, note, second):
        assert await books.verified(record.number) == []
    with pytest.raises(InferBusError, match="not_an_invoice"):
        await books.invoices.void(note.number, "again")


async def test_a_month_that_was_never_invoiced_is_not_passed_over(books: Books) -> None:
    old = months_before(LAST, 8)
    await books.charge(old)
    await books.charge(LAST)
    with pytest.raises(InferBusError, match="earlier_month_open") as refused:
        await books.final(LAST)
    assert old in refused.value.message
    await books.final(old)
    await books.final(LAST)


async def test_a_voided_month_comes_before_later_ones(books: Books) -> None:
    months = [months_before(LAST, 2), BEFORE, LAST]
    for month in months[:2]:
        await books.charge(month)
        record = await books.final(month)
    voided = books.invoices.archive.register().final_of(books.tenant, "EUR", months[0])
    assert voided is not None
    await books.invoices.void(voided.number, "wrong address")
    await books.charge(LAST)
    with pytest.raises(InferBusError, match="earlier_month_open"):
        await books.final(LAST)
    again = await books.final(months[0])
    assert (again.month, again.subtotal) == (months[0], voided.subtotal)
    assert (await books.final(LAST)).subtotal == record.subtotal


async def test_what_is_only_checked_is_not_issued_or_voided(books: Books) -> None:
    await books.charge(LAST)
    invoices = books.invoices
    await invoices.check_finalize(books.tenant, LAST, "", "", 0.0)
    with pytest.raises(InferBusError, match="month_not_over"):
        await invoices.check_finalize(books.tenant, NOW, "", "", 0.0)
    with pytest.raises(InferBusError, match="nothing_to_invoice"):
        await invoices.check_finalize("nobody", LAST, "", "", 0.0)
    assert invoices.archive.register().entries == []
    record = await books.final(LAST)
    await invoices.check_void(record.number)
    with pytest.raises(InferBusError, match="invoice_not_found"):
        await invoices.check_void("IB-INV-1999-000001")
    assert [one.number for one in invoices.archive.register().entries] == [record.number]


async def test_a_register_of_an_older_backup_issues_nothing(books: Books) -> None:
    await books.charge(BEFORE)
    await books.final(BEFORE)
    await books.charge(LAST)
    await books.final(LAST)
    try:
        await copy_missing(books.invoices.archive, books.store)
        whole = books.invoices.archive.register()
        await books.invoices._check_whole(whole)
        for entries in (whole.entries[:1], []):
            with pytest.raises(InferBusError, match="register_incomplete"):
                await books.invoices._check_whole(Register(entries))
    finally:
        await books.forget_copies()

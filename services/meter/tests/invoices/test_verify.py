"""What a verification of an invoice finds in the rows, the prices and the document, and what is no fault."""

import zlib
from typing import Any

from inferbus.bus.v1.invoice_pb2 import InvoiceContentRecord
from inferbus_meter.core.erasing import ErasureScope
from inferbus_meter.core.invoice_content import canonical
from inferbus_meter.eraser import Eraser
from inferbus_meter.invoice_verify import Verification
from inferbus_meter.kept_answers import KeptAnswers
from inferbus_runtime import clock

from services.meter.tests.invoices.books import BEFORE, LAST, Books, price, uuid_of


async def test_verify_names_a_row_that_was_changed_removed_or_doubled(books: Books) -> None:
    for tokens in range(5, 11):
        await books.charge(LAST, tokens)
    record = await books.final(LAST)
    changed, removed, doubled = (uuid_of(one) for one in books.requests[:3])
    store = books.store
    where = f"WHERE request_id = '{changed}'"
    await store.command(f"ALTER TABLE requests UPDATE cost = cost + 1 {where} SETTINGS mutations_sync = 2")
    found = await books.verified(record.number)
    assert sorted(found) == ["charge", "charges"]
    await store.command(f"ALTER TABLE requests UPDATE cost = cost - 1 {where} SETTINGS mutations_sync = 2")
    assert await books.verified(record.number) == []
    await store.command(f"ALTER TABLE requests UPDATE output_tokens = 50 {where} SETTINGS mutations_sync = 2")
    assert sorted(await books.verified(record.number)) == ["charge", "charges", "output_tokens"]
    await store.command(f"ALTER TABLE requests UPDATE output_tokens = 5 {where} SETTINGS mutations_sync = 2")
    await store.command(
        "INSERT INTO requests SELECT * REPLACE (accepted_time + INTERVAL 3 HOUR AS accepted_time) FROM requests "
        f"WHERE request_id = '{doubled}'"
    )
    assert sorted(set(await books.verified(record.number))) == ["charges", "duplicate_charge", "late_charges"]
    await store.command(f"ALTER TABLE requests DELETE WHERE request_id = '{removed}' SETTINGS mutations_sync = 2")
    answer = await Verification(books.invoices, store, books.invoices.book()).run(record.number)
    assert removed in {one.request_id for one in answer.differences if one.reason == "missing_charge"}


async def test_verify_names_a_correction_that_no_price_gives(books: Books) -> None:
    request = await books.charge(LAST, 1_000_000)
    await books.corrected(request, "-2.5", "v1")
    record = await books.final(LAST)
    assert await books.verified(record.number) == ["adjustments"]


async def test_verify_names_a_correction_to_a_price_that_is_gone(books: Books) -> None:
    request = await books.charge(LAST, 5)
    books.records.append(price("v2", output_per_million="2.2", effective_time=clock.timestamp(clock.now_us())))
    await books.corrected(request, "-0.000004", "v2")
    record = await books.final(LAST)
    assert await books.verified(record.number) == []
    books.records.pop()
    assert await books.verified(record.number) == ["rate"]


async def test_verify_names_a_changed_document_and_a_changed_rate(books: Books, monkeypatch: Any) -> None:
    await books.charge(LAST, 1000)
    record = await books.final(LAST)
    books.records[0] = price(output_per_million="4")
    assert await books.verified(record.number) == ["rate"]
    books.records[0] = price()
    content, _ = await books.invoices.archive.content(record)
    content["lines"][0]["amount"] = "0.5"
    forged = InvoiceContentRecord(content=zlib.compress(canonical(content)))

    async def get(_: str) -> Any:  # the bucket itself takes no change
        return forged, 1

    monkeypatch.setattr(books.invoices.archive._contents, "get", get)
    assert set(await books.verified(record.number)) == {"hash", "sum"}


async def test_what_has_aged_out_is_not_proven_and_no_fault(books: Books) -> None:
    await books.charge(BEFORE)
    first = await books.final(BEFORE)
    await books.store.command("ALTER TABLE token_events DELETE WHERE 1 SETTINGS mutations_sync = 2")
    assert await books.verified(first.number) == ["not_proven"]
    await books.charge(LAST)
    second = await books.final(LAST)
    assert await books.verified(first.number) == ["not_proven"]
    assert await books.verified(second.number) == []


async def test_an_erasure_leaves_an_invoice_provable_to_the_cent(books: Books, own_bus: Any) -> None:
    for tokens in (5, 7, 11):
        await books.charge(LAST, tokens)
    record, charged = await books.final(LAST), await books.charged()
    scope = ErasureScope(books.tenant, b"", clock.now_us())
    gone = await Eraser(books.store, KeptAnswers(own_bus)).erase(scope)
    assert gone["requests"] == 3
    assert (await books.verified(record.number), await books.charged()) == ([], charged)

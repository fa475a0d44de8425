"""Invoices as files and in SQL, and the profiles that stand on them."""

import json
from decimal import Decimal
from hashlib import sha256

import pytest
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, Tax
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.invoices_pb2 import RenderInvoiceRequest, SetBillingProfileRequest
from inferbus_meter.core.invoice_content import canonical
from inferbus_meter.invoice_copy import copy_missing
from inferbus_meter.invoice_paper import Fonts
from inferbus_meter.invoices_servicer import InvoiceServicer
from inferbus_runtime.errors import InferBusError

from services.meter.tests.invoices.books import LAST, SELLER, Books


async def test_an_invoice_is_there_in_sql_again_after_the_tables_were_lost(books: Books) -> None:
    await books.charge(LAST, 1_000_000)
    record = await books.final(LAST)
    await books.invoices.void(record.number, "test")
    for _ in range(2):
        assert await copy_missing(books.invoices.archive, books.store) == 2
        assert await copy_missing(books.invoices.archive, books.store) == 0
        shown = await books.store.rows(
            "SELECT number, kind, total, amount = subtotal FROM (SELECT * FROM invoices FINAL) AS invoice "
            "JOIN (SELECT number, sum(amount) AS amount FROM invoice_lines FINAL GROUP BY number) AS lines "
            "USING number ORDER BY sequence"
        )
        assert [(row[1], row[2], row[3]) for row in shown] == [
            ("invoice", Decimal("3.57"), 1), ("credit_note", Decimal("-3.57"), 1),
        ]  # fmt: skip
        for table in ("invoices", "invoice_lines"):
            await books.store.command(f"TRUNCATE TABLE {table}")


async def test_an_invoice_is_given_as_json_csv_and_pdf_always_the_same_bytes(books: Books) -> None:
    servicer = InvoiceServicer(books.invoices, books.store, Fonts())
    await books.charge(LAST, 1_000_000)
    record = await books.final(LAST)
    for number, begin in ((1, b'{"chain"'), (2, b"position,kind"), (3, b"%PDF-1.")):
        asked = RenderInvoiceRequest(number=record.number, format=number)
        file = (await servicer.RenderInvoice(asked, None)).file
        assert file.startswith(begin)
        assert (await servicer.RenderInvoice(asked, None)).file == file
        if number == 1:
            shown = json.loads(file)
            assert sha256(canonical(shown["content"])).hexdigest() == shown["hash"] == record.hash
    with pytest.raises(InferBusError) as refused:
        await servicer.RenderInvoice(RenderInvoiceRequest(number=record.number, tenant_id="other"), None)
    assert refused.value.error_class == ErrorClass.ERROR_CLASS_NOT_FOUND


_TOO_LARGE = (
    (BillingProfileRecord(), "name"),
    (BillingProfileRecord(name="x", tax=Tax(rate="19", name="VAT")), "tax"),
    (BillingProfileRecord(name="x", tax=Tax(rate="NaN", name="VAT")), "tax"),
    (BillingProfileRecord(name="x", country="Germany"), "country"),
    (BillingProfileRecord(name="x", logo=b"no picture"), "logo"),
    (BillingProfileRecord(name="x", number_prefix="a/b"), "number_prefix"),
    (BillingProfileRecord(name="x", address=["y"] * 9), "address"),
    (BillingProfileRecord(name="x" * 201), "name"),
    (BillingProfileRecord(name="x", payment_days=366), "payment_days"),
)


async def test_a_profile_that_would_not_fit_is_refused(books: Books) -> None:
    servicer = InvoiceServicer(books.invoices, books.store, Fonts())
    for profile, param in _TOO_LARGE:
        with pytest.raises(InferBusError) as refused:
            await servicer.SetBillingProfile(SetBillingProfileRequest(profile=profile), None)
        assert refused.value.param == param
    assert books.invoices.archive.profile("") == SELLER

"""The PDF of an invoice: as many pages as it takes, the same bytes again, and no name that it stumbles over."""

import io
import re
from decimal import Decimal
from pathlib import Path

import pytest
import reportlab
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceRecord, Tax
from inferbus.bus.v1.registry_pb2 import CreditRecord
from inferbus_meter.core.invoice import Account, Group, Sums
from inferbus_meter.core.invoice_content import Content, canonical, content_of, credit_note_of, hash_of
from inferbus_meter.core.invoice_credits import apply_credits
from inferbus_meter.core.invoice_register import Issue, Register
from inferbus_meter.invoice_paper import Fonts, is_png
from inferbus_meter.invoice_pdf import pdf_of
from PIL import Image

TRUE_TYPE = Path(reportlab.__file__).parent / "fonts" / "Vera.ttf"


def logo(width: int = 60, height: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "#0b5fff").save(out, "PNG")
    return out.getvalue()


def content(models: int, *, name: str = "Acme Ltd.", model: str = "model") -> Content:
    price = Decimal("0.5")
    charges = {
        Group("2026-11", "web", f"{model}-{at}", "chat", "v1", at % 2 == 1, *[price] * 6, Decimal(1)): Sums(
            7, 7, 1_000_000, 0, 2_000_000, 0, Decimal(5), at
        )
        for at in range(models)
    }
    seller = BillingProfileRecord(
        name="Infer GmbH", address=["Hauptstraße 1"], country="DE", tax=Tax(name="VAT", rate="0.19"), note="IBAN\nBIC",
        logo=logo(),
    )  # fmt: skip
    credit = CreditRecord(credit_id="c", currency="EUR", amount="1")
    return content_of(
        Account(charges, {}, {}), tenant_id="acme", month="2026-11", currency="EUR", seller=seller,
        buyer=BillingProfileRecord(name=name, note=name), position=1,
        pay=lambda total: apply_credits([credit], {}, "2026-11", "EUR", total),
    )  # fmt: skip


def entry(of: Content) -> InvoiceRecord:
    return Register([]).appended(of, hash_of(canonical(of)), Issue(1_795_000_000_000_000, ""))


def pages(pdf: bytes) -> int:
    return max(int(count) for count in re.findall(rb"/Count (\d+)", pdf))


def test_it_has_the_pages_that_it_takes_and_is_the_same_bytes_again() -> None:
    few, many = content(3), content(60)
    assert (pages(pdf_of(entry(few), few, Fonts())), pages(pdf_of(entry(many), many, Fonts()))) == (1, 6)
    assert pdf_of(entry(many), many, Fonts()) == pdf_of(entry(many), many, Fonts())


@pytest.mark.parametrize(
    "name", ["<b>&amp;</i>", "株式会社アクメ", "A" * 200, "\x00\x07", "${jndi:x}", "<img src='file:///etc/passwd'/>"]
)
def test_names_are_shown_and_never_obeyed(name: str) -> None:
    for of in (content(1, name=name, model=name[:80]), content(0, name=name)):
        for fonts in (Fonts(), Fonts.load(TRUE_TYPE, None)):
            assert pdf_of(entry(of), of, fonts).startswith(b"%PDF-1.")


def test_a_credit_note_is_one() -> None:
    note = credit_note_of(content(2), "INV-2026-000001", "mistake")
    invoice = entry(content(2))
    voided = Register([invoice])
    record = voided.appended(
        {**note, "voids": invoice.number}, "ab", Issue(1_795_000_000_000_000, "")
    )  # fmt: skip
    assert record.number == "CN-2026-000001"
    assert pdf_of(record, note, Fonts()).startswith(b"%PDF-1.")


def test_a_font_that_is_none_is_refused(tmp_path: Path) -> None:
    none = tmp_path / "none.ttf"
    for data in (b"", b"no font at all", TRUE_TYPE.read_bytes()[:500]):
        none.write_bytes(data)
        with pytest.raises(ValueError, match=r"none\.ttf"):
            Fonts.load(none, None)
    with pytest.raises(ValueError, match="absent"):
        Fonts.load(tmp_path / "absent.ttf", None)


def test_a_logo_is_a_small_png() -> None:
    assert is_png(logo())
    assert not is_png(logo()[:40])
    assert not is_png(b"GIF89a")
    assert not is_png(logo(4001, 1000))

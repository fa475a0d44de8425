"""The content of an invoice: all of it but its number and dates, as canonical JSON, so that a hash can name it.

Canonical: UTF-8, keys sorted, no spaces, amounts as decimal texts without trailing zeros. Equal content is equal bytes.
"""

import csv
import hashlib
import io
import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceRecord, Tax
from inferbus_rating.amounts import EXACT

from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.invoice import (
    Account,
    Delta,
    Group,
    Line,
    Rerating,
    Saving,
    Sums,
    Totals,
    added,
    lines_of,
    totals_of,
)
from inferbus_meter.core.invoice_credits import Applied

FORM = "inferbus-invoice-1"
PAYMENT_DAYS = 30
_CSV_COLUMNS = (
    "position", "kind", "month", "project_id", "model", "operation", "rate_version", "estimated", "quantity",
    "unit_price", "factor", "amount", "currency",
)  # fmt: skip
_TOTALS = ("subtotal", "rounding", "net", "tax", "total")
Content = dict[str, Any]


def content_of(
    account: Account,
    *,
    tenant_id: str,
    month: str,
    currency: str,
    seller: BillingProfileRecord,
    buyer: BillingProfileRecord,
    position: int,
    pay: Callable[[Decimal], Sequence[Applied]] = lambda _: (),
) -> Content:
    """An invoice over ``account``: what is left to invoice. ``position``: the place on the stream up to which charges
    were in the tables, by which a verification tells what came later. ``pay``: the credits that pay for a total."""
    lines = lines_of(account)
    tax = buyer.tax if buyer.HasField("tax") else seller.tax
    totals = totals_of(lines, currency, Decimal(tax.rate or "0"))
    paid = pay(totals.total)
    credits = added(one.amount for one in paid)
    days = next((one.payment_days for one in (buyer, seller) if one.HasField("payment_days")), PAYMENT_DAYS)
    return {
        "form": FORM,
        "kind": "invoice",
        "tenant_id": tenant_id,
        "month": month,
        "currency": currency,
        "seller": _party(seller),
        "buyer": _party(buyer) | ({} if buyer.name else {"name": tenant_id}),
        "payment_days": days,
        "tax_applied": {"name": tax.name, "rate": tax.rate or "0", "note": tax.note},
        "lines": [_line(position, line) for position, line in enumerate(lines, 1)],
        "totals": _totals(totals),
        "credits_applied": [{"credit_id": one.credit_id, "amount": decimal_text(one.amount)} for one in paid],
        "payment": {"credits": decimal_text(credits), "due": decimal_text(EXACT.subtract(totals.total, credits))},
        "basis": {
            "position": position,
            "charges": [[_plain(value) for value in (*group, *sums)] for group, sums in account.charges.items()],
            "adjustments": [[_plain(value) for value in (*of, *delta)] for of, delta in account.adjustments.items()],
            "discounts": [[_plain(value) for value in (*of, amount)] for of, amount in account.discounts.items()],
        },
    }


def credit_note_of(content: Content, number: str, reason: str) -> Content:
    """What takes the invoice ``number`` back: all its lines and totals with the other sign."""
    lines = [
        {**line, "quantity": -line["quantity"], "amount": _negated(line["amount"])} for line in content["lines"]
    ]  # fmt: skip
    kept = {name: value for name, value in content.items() if name != "basis"}
    totals = {name: _negated(content["totals"][name]) for name in _TOTALS}
    credits = [{**one, "amount": _negated(one["amount"])} for one in content["credits_applied"]]
    payment = {name: _negated(amount) for name, amount in content["payment"].items()}
    return {
        **kept, "kind": "credit_note", "voids": number, "reason": reason, "lines": lines, "totals": totals,
        "credits_applied": credits, "payment": payment,
    }  # fmt: skip


def canonical(content: Content) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hash_of(data: bytes) -> str:
    """SHA-256 in hex: of canonical bytes, the invoice's hash."""
    return hashlib.sha256(data).hexdigest()


def document_of(record: InvoiceRecord, content: Content) -> bytes:
    """An invoice as JSON: what the register says, and its content, byte by byte as it was hashed."""
    head: Content = MessageToDict(record, preserving_proto_field_name=True)
    names = ("number", "voids", "issue_time", "due_time", "hash", "chain")
    said: Content = {str(name): head[name] for name in names if name in head}
    return canonical(said)[:-1] + b',"content":' + canonical(content) + b"}"


def credits_in(content: Content) -> list[Applied]:
    return [Applied(one["credit_id"], Decimal(one["amount"])) for one in content["credits_applied"]]


def account_of(content: Content) -> Account:
    """What the invoice bills, as it was given to :func:`content_of`."""
    basis = content.get("basis", {"charges": (), "adjustments": (), "discounts": ()})
    charges: dict[Group, Sums] = {}
    for row in basis["charges"]:
        texts, prices, counts = row[:6], [Decimal(price) for price in row[6:13]], [int(count) for count in row[13:19]]
        charges[Group._make((*texts, *prices))] = Sums._make((*counts, Decimal(row[19]), int(row[20])))
    return Account(
        charges,
        {Rerating(*row[:6]): Delta(row[6], Decimal(row[7])) for row in basis["adjustments"]},
        {Saving(*row[:5]): Decimal(row[5]) for row in basis["discounts"]},
    )


def lines_in(content: Content) -> list[Line]:
    """Its lines with amounts as decimals."""
    lines = []
    for row in content["lines"]:
        values: dict[str, Any] = {name: value for name, value in row.items() if name != "position"}
        for name in ("unit_price", "factor", "amount"):
            values[name] = Decimal(values[name])
        lines.append(Line(**values))
    return lines


def totals_in(content: Content) -> Totals:
    return Totals(*(Decimal(content["totals"][name]) for name in _TOTALS))


def csv_of(content: Content) -> bytes:
    """Its lines, and a last row that rounds their sum to the net amount. RFC 4180, UTF-8."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV_COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    currency = content["currency"]
    for line in content["lines"]:
        shown = {**line, "estimated": "true" if line["estimated"] else "false", "currency": currency}
        writer.writerow({name: _not_a_formula(value) for name, value in shown.items()})
    writer.writerow({"kind": "rounding", "amount": content["totals"]["rounding"], "currency": currency})
    return out.getvalue().encode()


def _not_a_formula(value: Any) -> Any:
    """A spreadsheet would run a name that begins like this (OWASP: CSV injection). Amounts are numbers and stay."""
    dangerous = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if dangerous and not _is_number(value) else value


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdigit()


def _party(profile: BillingProfileRecord) -> dict[str, Any]:
    """Who sells or buys, as it stands on the invoice."""
    shown = MessageToDict(profile, preserving_proto_field_name=True)
    for name in ("tax", "payment_days", "number_prefix", "logo"):
        shown.pop(name, None)
    return shown | ({"logo": b64encode(profile.logo).decode()} if profile.logo else {})


def _line(position: int, line: Line) -> dict[str, Any]:
    return {"position": position, **{name: _plain(value) for name, value in asdict(line).items()}}


def _totals(totals: Totals) -> dict[str, str]:
    return {name: decimal_text(getattr(totals, name)) for name in _TOTALS}


def _plain(value: Any) -> Any:
    """A checksum has 64 bits, more than a JSON number keeps everywhere."""
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 53:
        return str(value)
    return value


def _negated(amount: str) -> str:
    return decimal_text(-Decimal(amount))


def tax_fault(tax: Tax) -> str:
    """What is wrong with a tax setting; empty: nothing."""
    try:
        rate = Decimal(tax.rate or "0")
    except ArithmeticError:
        return "tax.rate is a decimal such as 0.19"
    if not rate.is_finite() or not 0 <= rate < 1 or len(tax.rate) > 12:
        return "tax.rate is at least 0 and below 1: 0.19 is 19 %"
    if rate and not tax.name:
        return "tax.name is missing, such as VAT"
    return ""

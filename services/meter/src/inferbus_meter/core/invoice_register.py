"""The register of invoices: a list that only grows. Whoever writes entry n has seen all before it, or is refused.

An invoice is a draft until it has an entry, final from then on, and voided once a credit note names it. Nothing is ever
changed: what can be appended next is all there is to decide, and it is decided here.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.invoice_pb2 import InvoiceKind, InvoiceRecord
from inferbus.meter.v1.invoices_pb2 import InvoiceState

from inferbus_meter.core.invoice_content import Content

_DAY_US = 86_400 * 1_000_000
_LETTERS = {InvoiceKind.INVOICE_KIND_INVOICE: "INV", InvoiceKind.INVOICE_KIND_CREDIT_NOTE: "CN"}
_KINDS = {"invoice": InvoiceKind.INVOICE_KIND_INVOICE, "credit_note": InvoiceKind.INVOICE_KIND_CREDIT_NOTE}


class RegisterError(Exception):
    """The register cannot be true: an entry is missing, or what is to be appended may not be."""


@dataclass(frozen=True, slots=True)
class Issue:
    """When an entry is made, Unix microseconds, and what stands before its number."""

    now_us: int
    prefix: str


class Register:
    """The entries as they are now."""

    def __init__(self, records: Iterable[InvoiceRecord]) -> None:
        """Raises RegisterError if one is missing: appending would then issue a number twice."""
        self.entries = sorted(records, key=lambda record: record.sequence)
        if [record.sequence for record in self.entries] != list(range(1, len(self.entries) + 1)):
            raise RegisterError("the register of invoices has a gap: restore the bucket 'invoices' from a backup")
        self._by_number = {record.number: record for record in self.entries}
        self._voided_by = {record.voids: record for record in self.entries if record.voids}
        self._voided = [record for record in self.entries if record.number in self._voided_by]

    def find(self, number: str) -> InvoiceRecord | None:
        return self._by_number.get(number)

    def credit_note_of(self, number: str) -> InvoiceRecord | None:
        return self._voided_by.get(number)

    def state(self, record: InvoiceRecord) -> InvoiceState.ValueType:
        voided = record.number in self._voided_by
        return InvoiceState.INVOICE_STATE_VOIDED if voided else InvoiceState.INVOICE_STATE_FINAL

    def in_force(self, tenant_id: str, currency: str, until_month: str = "9999-12") -> list[InvoiceRecord]:
        """Invoices of the tenant that are not voided, of months up to ``until_month``, in order of issue."""
        return [
            record
            for record in self.entries
            if record.kind == InvoiceKind.INVOICE_KIND_INVOICE
            and (record.tenant_id, record.currency) == (tenant_id, currency)
            and record.number not in self._voided_by
            and record.month <= until_month
        ]

    def final_of(self, tenant_id: str, currency: str, month: str) -> InvoiceRecord | None:
        """The invoice in force of that month: there is at most one."""
        return next((record for record in self.in_force(tenant_id, currency) if record.month == month), None)

    def voided_months(self, tenant_id: str, currency: str) -> set[str]:
        """Months that had an invoice and have none now."""
        return {
            record.month
            for record in self._voided
            if (record.tenant_id, record.currency) == (tenant_id, currency)
            and self.final_of(tenant_id, currency, record.month) is None
        }

    def appended(self, content: Content, content_hash: str, issue: Issue) -> InvoiceRecord:
        """The entry that comes next. Raises RegisterError if the register does not allow it."""
        kind = _KINDS[content["kind"]]
        self._check(kind, content)
        last = self.entries[-1] if self.entries else None
        # Numbers are issued in order of time, whatever the clock of this machine says.
        issued_us = max(issue.now_us, 0 if last is None else _unix_us(last))
        year = datetime.fromtimestamp(issued_us // 1_000_000, UTC).year
        of_year = sum(1 for record in self.entries if record.kind == kind and _year(record) == year)
        record = InvoiceRecord(
            sequence=len(self.entries) + 1,
            kind=kind,
            number=f"{issue.prefix}{_LETTERS[kind]}-{year}-{of_year + 1:06}",
            voids=content.get("voids", ""),
            tenant_id=content["tenant_id"],
            month=content["month"],
            currency=content["currency"],
            hash=content_hash,
            **{name: content["totals"][name] for name in ("subtotal", "net", "tax", "total")},
            **content["payment"],
        )
        record.issue_time.FromMicroseconds(issued_us)
        days = content["payment_days"] if kind == InvoiceKind.INVOICE_KIND_INVOICE else 0
        record.due_time.FromMicroseconds(issued_us + days * _DAY_US)
        record.chain = chain_of("" if last is None else last.chain, record)
        return record

    def _check(self, kind: InvoiceKind.ValueType, content: Content) -> None:
        if kind == InvoiceKind.INVOICE_KIND_INVOICE:
            there = self.final_of(content["tenant_id"], content["currency"], content["month"])
            if there is not None:
                raise RegisterError(f"{there.number} is the invoice of that month")
            return
        voided = self.find(content["voids"])
        if voided is None or voided.kind != InvoiceKind.INVOICE_KIND_INVOICE:
            raise RegisterError(f"{content['voids']} is no invoice")
        if voided.number in self._voided_by:
            raise RegisterError(f"{voided.number} is voided already")

    def faults(self) -> dict[int, str]:
        """Entries whose ``chain`` is not that of what they say, by sequence."""
        found, before = {}, ""
        for record in self.entries:
            if record.chain != chain_of(before, record):
                found[record.sequence] = f"entry {record.sequence} ({record.number}) was changed, or one before it"
            before = record.chain
        return found


def chain_of(before: str, record: InvoiceRecord) -> str:
    """SHA-256 over the chain of the entry before and all else that ``record`` says."""
    said = MessageToDict(record, preserving_proto_field_name=True)
    said.pop("chain", None)
    return hashlib.sha256(f"{before}\n{json.dumps(said, sort_keys=True)}".encode()).hexdigest()


def _unix_us(record: InvoiceRecord) -> int:
    return record.issue_time.seconds * 1_000_000 + record.issue_time.nanos // 1000


def _year(record: InvoiceRecord) -> int:
    return datetime.fromtimestamp(record.issue_time.seconds, UTC).year

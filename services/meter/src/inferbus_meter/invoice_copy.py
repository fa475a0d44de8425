"""The register of invoices copied into ClickHouse, to be asked in SQL: tables invoices and invoice_lines."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import date
from decimal import Decimal

import numpy as np
from inferbus.bus.v1.invoice_pb2 import InvoiceKind, InvoiceRecord
from inferbus_rating.amounts import SCALE
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.invoice import Line
from inferbus_meter.core.invoice_content import lines_in
from inferbus_meter.core.months import first_day
from inferbus_meter.core.native import NativeBlock
from inferbus_meter.core.rows import TIME, Rows
from inferbus_meter.invoice_archive import InvoiceArchive

log = logging.getLogger(__name__)
_EPOCH = date(1970, 1, 1)
_AGAIN_SECONDS = 60.0


async def follow(archive: InvoiceArchive, store: Store) -> None:
    """Copy what is not in the tables: now, after each change of the register, and once a minute if that failed."""
    changed = asyncio.Event()
    changed.set()
    archive.records.on_change(lambda *_: changed.set())
    while True:
        await changed.wait()
        changed.clear()
        try:
            await copy_missing(archive, store)
        except (InferBusError, *STORE_ERRORS) as error:
            log.warning("invoices are not copied into the store; trying again", extra={"error": repr(error)[:500]})
            await asyncio.sleep(_AGAIN_SECONDS)
            changed.set()


async def copy_missing(archive: InvoiceArchive, store: Store) -> int:
    """How many were copied. Raises InferBusError, or one of STORE_ERRORS."""
    there = {int(sequence) for (sequence,) in await store.rows("SELECT sequence FROM invoices")}
    missing = [record for record in archive.register().entries if record.sequence not in there]
    for record in missing:
        content, _ = await archive.content(record)
        # Lines first: an invoice in the table has its lines.
        for rows in (line_rows(record, lines_in(content)), invoice_rows(record)):
            if rows.count:
                # Another token each time: tables that were dropped are filled again, and equal rows become one.
                await store.insert(rows.table, rows.data, f"{rows.table}-{record.sequence}-{clock.now_us()}")
    return len(missing)


def invoice_rows(record: InvoiceRecord) -> Rows:
    block = NativeBlock(1)
    block.fixed("sequence", "UInt64", np.array([record.sequence], np.uint64))
    is_invoice = record.kind == InvoiceKind.INVOICE_KIND_INVOICE
    block.strings("kind", ["invoice" if is_invoice else "credit_note"])
    for name in ("number", "voids", "tenant_id", "currency", "hash"):
        block.strings(name, [getattr(record, name)])
    block.fixed("month", "Date", _days([record.month]))
    for name in ("subtotal", "net", "tax", "total", "credits", "due"):
        block.decimals(name, [Decimal(getattr(record, name))], SCALE)
    for name in ("issue_time", "due_time"):
        block.fixed(name, TIME, np.array([clock.unix_us(getattr(record, name))], np.int64))
    return Rows("invoices", 1, block.encode())


def line_rows(record: InvoiceRecord, lines: Sequence[Line]) -> Rows:
    block = NativeBlock(len(lines))
    block.fixed("sequence", "UInt64", np.full(len(lines), record.sequence, np.uint64))
    for name in ("number", "tenant_id", "currency"):
        block.strings(name, [getattr(record, name)] * len(lines))
    block.fixed("position", "UInt32", np.arange(1, len(lines) + 1, dtype=np.uint32))
    for name in ("kind", "project_id", "model", "operation", "rate_version"):
        block.strings(name, [getattr(line, name) for line in lines])
    block.fixed("month", "Date", _days([line.month for line in lines]))
    block.fixed("estimated", "Bool", np.array([line.estimated for line in lines], np.uint8))
    block.fixed("quantity", "Int64", np.array([line.quantity for line in lines], np.int64))
    for name in ("unit_price", "factor", "amount"):
        block.decimals(name, [getattr(line, name) for line in lines], SCALE)
    return Rows("invoice_lines", len(lines), block.encode())


def _days(months: Sequence[str]) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    return np.array([(first_day(month) - _EPOCH).days for month in months], np.uint16)

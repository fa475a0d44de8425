"""What is kept of invoices on the bus: the register, the contents, billing profiles, and the credits that pay.

Appending an invoice, exactly once whoever does it how often and whoever dies in between:

    1  its content is kept under its hash (bucket invoice_contents). Killed after it: nobody points to it; harmless
    2  its entry is created in the register (bucket invoices) under the next sequence. This is the commit: the broker
       takes one record under a key and refuses every other. Who is refused had not seen all entries: he reads them and
       begins anew, and so finds the invoice that the other one issued

So numbers have no gap, and what is issued cannot be changed: neither bucket takes a second record under a key, or lets
one be deleted. They are on the bus and not in ClickHouse, which can be emptied and filled again from the log of 72
hours: an invoice must be there in ten years.
"""

import asyncio
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceContentRecord, InvoiceRecord
from inferbus.bus.v1.registry_pb2 import CreditRecord, WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store as Entries
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_meter.core.invoice_content import Content, credits_in
from inferbus_meter.core.invoice_register import Issue, Register, RegisterError
from inferbus_meter.core.replay import LEASE as REPLAY

SELLER = "seller"
RETRY_AFTER = timedelta(seconds=1)
# What a gRPC message holds, with room for what is around it.
_MAX_CONTENT_BYTES = 3 << 20
_SEEN_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Draft:
    """What would be issued now, and its hash."""

    content: Content
    data: bytes
    hash: str


class InvoiceArchive:
    """Start it before use. Calls raise InferBusError UNAVAILABLE when the bus is away."""

    def __init__(self, bus: Bus) -> None:
        self.records = Registry(bus, "invoices", InvoiceRecord)
        self.profiles = Registry(bus, "billing_profiles", BillingProfileRecord)
        self._credits = Registry(bus, "credits", CreditRecord)
        self._leases = Registry(bus, "leases", WorkerRecord)
        self._publisher = Publisher(bus)
        self._contents = Entries(bus, "invoice_contents", InvoiceContentRecord, self._publisher)

    async def start(self) -> None:
        await self._publisher.start()
        await self.records.start()
        await self.profiles.start()
        await self._credits.start()
        await self._leases.start()

    async def stop(self) -> None:
        await self._leases.stop()
        await self._credits.stop()
        await self.profiles.stop()
        await self.records.stop()

    @property
    def replaying(self) -> bool:
        """Whether a replay runs: charges may be on their way back into the tables."""
        return self._leases.get(REPLAY) is not None

    def register(self) -> Register:
        """Raises InferBusError INTERNAL if an entry is missing."""
        try:
            return Register(self.records.items().values())
        except RegisterError as error:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_INTERNAL,
                "register_incomplete",
                "The register of invoices is not complete.",
                diagnostic=f"{error}",
            ) from error

    def find(self, number: str, tenant_id: str = "") -> InvoiceRecord:
        """Raises InferBusError NOT_FOUND, also for one of another tenant than ``tenant_id`` (empty: any)."""
        record = self.register().find(number)
        if record is None or tenant_id not in ("", record.tenant_id):
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "invoice_not_found", "There is no such invoice.")
        return record

    async def content(self, record: InvoiceRecord) -> tuple[Content, bytes]:
        """What an invoice says, and its canonical bytes as they are stored."""
        found = await self._contents.get(record.hash)
        if found is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_INTERNAL, "invoice_content_missing", "The content of this invoice is missing.",
                diagnostic=f"invoice_contents has no {record.hash}: restore the bucket from a backup",
            )  # fmt: skip
        data = zlib.decompress(found[0].content)
        return json.loads(data), data

    def profile(self, tenant_id: str) -> BillingProfileRecord:
        """Empty ``tenant_id``: the seller's. An empty one if none is set."""
        return self.profiles.get(_profile_name(tenant_id)) or BillingProfileRecord()

    async def set_profile(self, tenant_id: str, profile: BillingProfileRecord) -> None:
        name = _profile_name(tenant_id)
        stored = await self.profiles.put(name, profile)
        await _until(lambda: self.profiles.revision(name) >= stored.sequence)

    def credits(self, tenant_id: str) -> list[CreditRecord]:
        """All that was ever paid in for the tenant."""
        return [record for record in self._credits.items().values() if record.tenant_id == tenant_id]

    async def credits_used(self, register: Register, tenant_id: str, currency: str) -> dict[str, Decimal]:
        """What invoices in force have of each credit."""
        used: dict[str, Decimal] = {}
        for record in register.in_force(tenant_id, currency):
            if record.credits != "0":
                for one in credits_in((await self.content(record))[0]):
                    used[one.credit_id] = used.get(one.credit_id, Decimal(0)) + one.amount
        return used

    async def append(self, register: Register, draft: Draft) -> InvoiceRecord | None:
        """Steps 1 and 2 with a new number. None if another entry came meanwhile: it is in the registry then."""
        await self.keep(draft)
        issue = Issue(clock.now_us(), self.profile("").number_prefix)
        try:
            record = register.appended(draft.content, draft.hash, issue)
        except RegisterError as error:
            raise conflict("not_issuable", f"{error}.") from error
        key = f"{record.sequence:012}"
        try:
            await self.records.create(key, record)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            await _until(lambda: self.records.get(key) is not None)
            return None
        await _until(lambda: self.records.get(key) is not None)
        return record

    async def keep(self, draft: Draft) -> None:
        """Step 1."""
        if len(draft.data) > _MAX_CONTENT_BYTES:
            raise conflict("invoice_too_long", "The invoice has more lines than one document can hold (some 6,000).")
        packed = zlib.compress(draft.data, 9)
        try:
            await self._contents.create(draft.hash, InvoiceContentRecord(content=packed))
        except InferBusError as error:
            # There already: equal hash, equal content.
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise


def conflict(reason: str, message: str) -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, reason, message)


def _profile_name(tenant_id: str) -> str:
    return f"tenant/{tenant_id}" if tenant_id else SELLER


async def _until(seen: Callable[[], bool]) -> None:
    """Wait until this meter's own view has what was just stored; the next answer of it must not contradict this one."""
    try:
        async with asyncio.timeout(_SEEN_SECONDS):
            while not seen():
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise unavailable("bus_unavailable", "The registry lags behind; retry.", retry_after=RETRY_AFTER) from None

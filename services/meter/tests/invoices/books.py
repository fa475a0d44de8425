"""What the tests of invoices share: a real store with charges, and one meter's invoices on a real bus."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, Tax
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.invoice_verify import Verification
from inferbus_meter.invoices import Invoices
from inferbus_rating import PriceBook
from inferbus_runtime import clock

_LAST = clock.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
LAST = f"{_LAST:%Y-%m}"
BEFORE_DAY = _LAST.replace(day=1) - timedelta(days=1)
BEFORE = f"{BEFORE_DAY:%Y-%m}"
NOW = f"{clock.now():%Y-%m}"
SELLER = BillingProfileRecord(
    name="Infer GmbH", address=["Hauptstr. 1", "10115 Berlin"], country="DE", tax_id="DE123", payment_days=14,
    tax=Tax(name="VAT", rate="0.19"), number_prefix="IB-", note="IBAN DE00 0000",
)  # fmt: skip


class CaughtUp:
    """Of the ingest only this is asked; the rows come from the test itself."""

    position = 0

    async def reached(self, sequence: int, timeout: float) -> bool:
        return sequence <= self.position


@dataclass
class Books:
    """A store with charges, and one meter's invoices."""

    invoices: Invoices
    store: Any
    make: Any
    records: list[PriceRecord]
    ingest: CaughtUp
    tenant: str
    sequence: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def charge(
        self,
        month: str,
        tokens: int = 5,
        *,
        tenant: str = "",
        hour: int = 12,
        stream: Epoch | None = None,
        input: int = 10,
    ) -> bytes:
        """A request of ``tokens`` that ended in the month, as the ingest writes it."""
        time = datetime(int(month[:4]), int(month[5:]), 10, hour, tzinfo=UTC) + timedelta(seconds=self.sequence)
        time_us = round(time.timestamp()) * 1_000_000
        request = self.make.request_id(time_us)[:15] + b"\0"
        tenant = tenant or self.tenant
        frame = Frame(edge="edge-0", worker="worker-0", time_us=time_us)
        self.make.tokens(frame, request, 0, list(range(tokens)), of=self.make.context(tenant))
        self.make.close(frame, request, tokens, of=self.make.context(tenant), input_tokens=input)
        self.sequence += 1
        gather = FrameGather()
        assert gather.add(self.sequence, time_us, frame.SerializeToString())
        batch = gather.finish()
        for rows in (token_rows(batch, stream), request_rows(batch, PriceBook.of(self.records), epoch=stream)):
            await self.store.insert(rows.table, rows.data, f"{rows.table}-{self.tenant}-{request.hex()}")
        self.requests.append(request)
        return request

    async def final(self, month: str, expected: str = "") -> Any:
        return await self.invoices.finalize(self.tenant, month, "", expected, 0.0)

    async def forget_copies(self) -> None:
        """The store is all tests', the register each one's own."""
        for table in ("invoices", "invoice_lines"):
            await self.store.command(f"TRUNCATE TABLE {table}")

    async def charged(self) -> Decimal:
        """By the view that everybody sums money from."""
        rows = await self.store.rows("SELECT sum(charge) FROM charges WHERE tenant_id = {t:String}", {"t": self.tenant})
        return rows[0][0]

    async def corrected(self, request: bytes, delta: str, version: str) -> None:
        """As re-rating writes it."""
        await self.store.command(
            "INSERT INTO adjustments (request_id, number, tenant_id, project_id, model, end_time, delta, currency, "
            "from_rate_version, to_rate_version, rerate_id, created_time) "
            f"SELECT request_id, 1, tenant_id, project_id, model, end_time, {delta}, 'EUR', 'v1', '{version}', 'r1', "
            f"now64() FROM bills WHERE request_id = '{uuid_of(request)}'"
        )

    async def verified(self, number: str) -> list[str]:
        answer = await Verification(self.invoices, self.store, self.invoices.book()).run(number)
        return [one.reason for one in answer.differences]


def price(version: str = "v1", **more: Any) -> PriceRecord:
    amounts = {"input_per_million": "1", "cached_input_per_million": "0.1", "output_per_million": "3"}
    return PriceRecord(rate_version=version, currency="EUR", **{**amounts, **more})


def uuid_of(request: bytes) -> str:
    digits = request.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

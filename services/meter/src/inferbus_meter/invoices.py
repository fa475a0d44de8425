"""Invoices: drafts out of the tables, and when one may be issued or taken back. Where they then are, for good: see
:mod:`.invoice_archive`.

A month of a tenant in one currency has one invoice, whoever issues it how often: who comes second finds the first.
"""

from collections.abc import Callable
from datetime import timedelta

from inferbus.bus.v1.invoice_pb2 import InvoiceKind, InvoiceRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.log import FrameLog
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_meter import invoice_queries as queries
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.invoice import Account, discounts_of
from inferbus_meter.core.invoice_content import Content, account_of, canonical, content_of, credit_note_of, hash_of
from inferbus_meter.core.invoice_credits import apply_credits
from inferbus_meter.core.invoice_kept import CORRECTED_MONTHS, billed_on, lost_months, parts_of
from inferbus_meter.core.invoice_register import Register
from inferbus_meter.core.months import FIRST_MONTH, end_us, months_before, parse_month
from inferbus_meter.ingest import Ingest
from inferbus_meter.invoice_archive import RETRY_AFTER, Draft, InvoiceArchive, conflict

_ATTEMPTS = 20


class Invoices:
    """Calls raise InferBusError UNAVAILABLE when the bus is away, and what the store raises."""

    def __init__(
        self,
        archive: InvoiceArchive,
        store: Store,
        frames: FrameLog,
        ingest: Ingest,
        book: Callable[[], PriceBook],
        retention: timedelta,
    ) -> None:
        """``retention``: how long the tables keep charges; 0: for ever."""
        self.archive = archive
        self._store = store
        self._frames = frames
        self._ingest = ingest
        self.book = book
        self._retention = retention

    def window(self, tenant_id: str, month: str) -> tuple[str, str]:
        """First and last month that an invoice of ``month`` can have lines of: those of which all charges are there.

        Raises InferBusError INVALID_ARGUMENT, or CONFLICT for a month whose charges have aged out.
        """
        if not tenant_id:
            raise invalid("tenant_id is missing.", param="tenant_id", reason="missing_required_parameter")
        checked_month(month)
        first = max(months_before(month, CORRECTED_MONTHS - 1), self.kept_from())
        if first > month:
            raise conflict("charges_aged_out", f"Charges of {month} are not kept any more.")
        return first, month

    def kept_from(self) -> str:
        """The first month of which no charge has aged out."""
        if not self._retention:
            return FIRST_MONTH
        oldest = clock.now() - self._retention
        return max(FIRST_MONTH, months_before(f"{oldest:%Y-%m}", -1))

    # --- drafts ---

    async def drafts(self, tenant_id: str, month: str) -> list[Draft]:
        """One for each currency in which anything is left to invoice. Raises InferBusError INVALID_ARGUMENT."""
        first, last = self.window(tenant_id, month)
        register = self.archive.register()
        found = []
        for currency in await queries.currencies(self._store, tenant_id, first, last):
            draft = await self._draft(register, tenant_id, month, currency)
            if draft.content["lines"]:
                found.append(draft)
        return found

    async def _draft(self, register: Register, tenant_id: str, month: str, currency: str) -> Draft:
        left, position = await self._left(register, tenant_id, month, currency)
        used = await self.archive.credits_used(register, tenant_id, currency)
        credits = self.archive.credits(tenant_id)
        content = content_of(
            left, tenant_id=tenant_id, month=month, currency=currency, seller=self.archive.profile(""),
            buyer=self.archive.profile(tenant_id), position=position,
            pay=lambda total: apply_credits(credits, used, month, currency, total),
        )  # fmt: skip
        data = canonical(content)
        return Draft(content, data, hash_of(data))

    async def _left(self, register: Register, tenant_id: str, month: str, currency: str) -> tuple[Account, int]:
        """What is charged up to ``month`` and was not invoiced, and the stream sequence of the last charge."""
        window = self.window(tenant_id, month)
        charged, position = await self.charged(tenant_id, currency, window)
        issued = [record for record in register.in_force(tenant_id, currency) if record.month >= window[0]]
        contents = [(await self.archive.content(record))[0] for record in issued]
        await self._check_kept(tenant_id, currency, window, contents)
        self._check_priced(charged)
        return charged.less(account_of(content).within(*window) for content in contents), position

    async def _check_kept(self, tenant_id: str, currency: str, window: tuple[str, str], issued: list[Content]) -> None:
        """What came since must not hide that something is lost which was invoiced."""
        billed, lost = billed_on(issued).within(*window), set[str]()
        for part in parts_of(issued):
            present, _ = await queries.charged(self._store, tenant_id, currency, window, part.position)
            lost |= lost_months(billed, present, part)
        if lost:
            raise conflict(
                "charges_missing",
                f"Charges that were invoiced of {', '.join(sorted(lost))} are gone, or are others now: run 'inferbus "
                "invoice verify' for these months and replay what is missing, or void the invoice if it was wrong.",
            )

    def _check_priced(self, charged: Account) -> None:
        """Without a price its volume discounts are not known: nothing is billed or paid back for that."""
        versions = {of.rate_version for of in charged.charges} | {of.rate_version for of in charged.adjustments}
        unknown = sorted(version for version in versions if version and not self.book().named(version))
        if unknown:
            raise conflict(
                "price_missing",
                f"Charges name rate versions that are not in the price book: {', '.join(unknown)}. Make them again as "
                "they were ('inferbus prices set'), then draft the invoice.",
            )

    async def charged(self, tenant_id: str, currency: str, window: tuple[str, str]) -> tuple[Account, int]:
        """What is charged by now, discounts included."""
        account, position = await queries.charged(self._store, tenant_id, currency, window)
        return await self.with_discounts(account, tenant_id, currency, window), position

    async def with_discounts(self, account: Account, tenant_id: str, currency: str, window: tuple[str, str]) -> Account:
        versions = {of.rate_version for of in account.charges} | {of.rate_version for of in account.adjustments}
        tiers = {version: of for version, of in self.book().tiers.items() if version in versions}
        if not tiers:
            return account
        spent = await queries.spent(self._store, tenant_id, currency, window)
        return Account(account.charges, account.adjustments, discounts_of(spent, tiers))

    # --- what is issued ---

    async def finalize(
        self, tenant_id: str, month: str, currency: str, expected_hash: str, timeout: float
    ) -> InvoiceRecord:
        """The invoice of the month: a new one, or the one that there is.

        ``timeout``: seconds to wait for the ingest. Raises InferBusError INVALID_ARGUMENT, CONFLICT if it may not be
        issued now, DEADLINE_EXCEEDED if the ingest does not get there.
        """
        for _ in range(_ATTEMPTS):
            register, there = await self._to_issue(tenant_id, month, currency, expected_hash, timeout)
            if isinstance(there, InvoiceRecord):
                return there
            record = await self.archive.append(register, there)
            if record is not None:
                return record
        raise _too_busy()

    async def check_finalize(
        self, tenant_id: str, month: str, currency: str, expected_hash: str, timeout: float
    ) -> None:
        """Raises what :meth:`finalize` would now."""
        await self._to_issue(tenant_id, month, currency, expected_hash, timeout)

    async def _to_issue(
        self, tenant_id: str, month: str, currency: str, expected_hash: str, timeout: float
    ) -> tuple[Register, InvoiceRecord | Draft]:
        """The invoice that there is, or what may be issued as the next entry of the register."""
        window = self.window(tenant_id, month)
        if clock.now_us() < end_us(month):
            raise conflict("month_not_over", f"{month} is not over (UTC); a draft shows what there is.")
        if not self.archive.profile("").name:
            raise conflict("seller_missing", "Say who sells first: inferbus invoice profile --set FILE")
        register = self.archive.register()
        there = register.final_of(tenant_id, currency, month)
        if there is None:  # a retry need not wait
            await self._caught_up(timeout)
            currency = currency or await self._only_currency(tenant_id, window)
            register = self.archive.register()
            there = register.final_of(tenant_id, currency, month)
        if there is not None:
            _expect(expected_hash, there.hash)
            return register, there
        draft = await self._draft(register, tenant_id, month, currency)
        await self._check_issuable(register, draft, window)
        _expect(expected_hash, draft.hash)
        await self._check_whole(register)
        return register, draft

    async def _check_issuable(self, register: Register, draft: Draft, window: tuple[str, str]) -> None:
        tenant_id, month, currency = (draft.content[name] for name in ("tenant_id", "month", "currency"))
        if not draft.content["lines"]:
            raise conflict("nothing_to_invoice", f"Nothing is charged in {month} in {currency} that was not invoiced.")
        latest = max((record.month for record in register.in_force(tenant_id, currency)), default="")
        # A voided month is open again, whatever was invoiced after it.
        voided = register.voided_months(tenant_id, currency)
        months = {line["month"] for line in draft.content["lines"]}
        earlier = [one for one in months if one < month and (one > latest or one in voided)]
        # What is older than the lines of this one can be.
        since = max(self.kept_from(), months_before(latest, -1) if latest else "")
        oldest = await queries.first_charged(self._store, tenant_id, currency, since, months_before(window[0], 1))
        if oldest:
            earlier.append(oldest)
        if earlier:
            raise conflict("earlier_month_open", f"{min(earlier)} is not invoiced: finalize it first.")

    async def _check_whole(self, register: Register) -> None:
        """A register that was restored from an older backup would issue its last numbers a second time."""
        known = await queries.last_issued(self._store)
        if known is None:
            return
        sequence, content_hash = known
        if sequence > len(register.entries) or register.entries[sequence - 1].hash != content_hash:
            raise conflict(
                "register_incomplete",
                f"ClickHouse knows entry {sequence} of the register of invoices, which has another one there or none: "
                "restore the buckets 'invoices' and 'invoice_contents' from their latest backup.",
            )

    async def void(self, number: str, reason: str) -> InvoiceRecord:
        """The credit note that takes the invoice back: a new one, or the one that there is.

        Raises InferBusError NOT_FOUND, CONFLICT for what is a credit note itself.
        """
        record = await self.check_void(number)
        content = credit_note_of((await self.archive.content(record))[0], number, reason)
        data = canonical(content)
        for _ in range(_ATTEMPTS):
            register = self.archive.register()
            there = register.credit_note_of(number)
            if there is not None:
                return there
            await self._check_whole(register)
            note = await self.archive.append(register, Draft(content, data, hash_of(data)))
            if note is not None:
                return note
        raise _too_busy()

    async def check_void(self, number: str) -> InvoiceRecord:
        """The invoice. Raises what :meth:`void` would now."""
        record = self.archive.find(number)
        if record.kind != InvoiceKind.INVOICE_KIND_INVOICE:
            raise conflict("not_an_invoice", f"{number} is a credit note, which cannot be voided.")
        await self._check_whole(self.archive.register())
        return record

    async def _only_currency(self, tenant_id: str, window: tuple[str, str]) -> str:
        found = await queries.currencies(self._store, tenant_id, *window)
        if not found:
            raise conflict("nothing_to_invoice", f"Nothing is charged up to {window[1]}.")
        if len(found) > 1:
            raise invalid(f"Name one of the currencies: {', '.join(found)}.", param="currency")
        return found[0]

    async def _caught_up(self, timeout: float) -> None:
        """All that is stored on the stream by now, which is all of a month that is over, is in the tables."""
        if self.archive.replaying:
            raise unavailable(
                "replay_running", "A replay puts charges back; retry when it is over.", retry_after=RETRY_AFTER
            )
        _, last = await self._frames.bounds()
        if not await self._ingest.reached(last, timeout):
            raise InferBusError(
                ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, "ingest_behind",
                f"The ingest is at frame {self._ingest.position} of {last}: wait until it has caught up.",
            )  # fmt: skip


def checked_month(month: str) -> None:
    """Raises InferBusError INVALID_ARGUMENT for what is no month."""
    try:
        parse_month(month)
    except ValueError as error:
        raise invalid(f"{error}.", param="month") from error


def _expect(wanted: str, found: str) -> None:
    if wanted not in ("", found):
        raise conflict("draft_changed", f"The invoice is another one by now ({found}): look at it again.")


def _too_busy() -> InferBusError:
    return unavailable("register_busy", "Many invoices are being issued; retry.", retry_after=RETRY_AFTER)

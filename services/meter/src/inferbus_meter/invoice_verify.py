"""``inferbus invoice verify``: an invoice worked out again, from the document inwards to the raw rows.

    1  the register: the entry is the one that was made (its chain), and says what the content says
    2  the document: its hash; its lines and totals are what its own basis gives
    3  the charges: the raw requests up to the invoice's position, less what earlier invoices had, give that basis; each
       request has one charge, and that is what its tokens and the rate in its row give, or once corrected the price
       that the correction names
    4  the rates: those in the rows are those of the price book under that version
    5  the tokens: the raw token rows of each request are as many as it was charged for, and none is without a charge

Rollups are not looked at. Memory: a page of requests at a time.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from inferbus.bus.v1.invoice_pb2 import InvoiceKind, InvoiceRecord
from inferbus.meter.v1.invoices_pb2 import InvoiceDifference, VerifyInvoiceResponse
from inferbus_rating import PriceBook
from inferbus_rating.book import Price
from inferbus_runtime import clock

from inferbus_meter import invoice_queries as queries
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.invoice import NOTHING, Account, Delta, Group, added, lines_of, totals_of
from inferbus_meter.core.invoice_content import (
    Content,
    account_of,
    canonical,
    credit_note_of,
    credits_in,
    hash_of,
    lines_in,
    totals_in,
)
from inferbus_meter.core.invoice_register import Register
from inferbus_meter.invoice_rows import (
    AGED,
    COUNTED,
    DUPLICATES,
    TOKENS_OF_CHARGES,
    TOKENS_WITHOUT_CHARGE,
    Scope,
    charges,
    corrected,
)
from inferbus_meter.invoices import Invoices

_NAMED = 100
"""Requests that are named for one reason; of more, their number."""
# A request without its end may still be running for so long.
_RUNNING_US = 24 * 3600 * 1_000_000


class Verification:
    """One run: :meth:`run` once. Raises what the store raises."""

    def __init__(self, invoices: Invoices, store: Store, book: PriceBook) -> None:
        self._invoices = invoices
        self._archive = invoices.archive
        self._store = store
        self._book = book
        self._answer = VerifyInvoiceResponse()

    async def run(self, number: str) -> VerifyInvoiceResponse:
        record = self._archive.find(number)
        register = self._archive.register()
        content, data = await self._archive.content(record)
        self._check_register(register, record, content)
        self._check_document(record, content, data)
        if record.kind == InvoiceKind.INVOICE_KIND_CREDIT_NOTE:
            voided = (await self._archive.content(self._archive.find(record.voids)))[0]
            if credit_note_of(voided, record.voids, content["reason"]) != content:
                self._differs("sum", f"it is not {record.voids} with the other sign")
            return self._answer
        await self._check_credits(register, record)
        account = account_of(content)
        self._check_rates(account)
        # Earlier months have invoices of their own: of them only what is on this one is looked at.
        months = [of.month for of in account.charges] + [of.month for of in account.adjustments]
        first = min(months, default=record.month)
        kept = self._invoices.kept_from()
        if first < kept:
            self._differs("not_proven", f"charges before {kept} have aged out")
        if record.month >= kept:
            window = (max(first, kept), record.month)
            scope = Scope(record, window, content["basis"]["position"])
            await self._check_charges(scope, register, account.within(*window))
            await self._check_each(scope)
            await self._check_corrections(scope, account)
            await self._check_tokens(scope)
        return self._answer

    # --- 1, 2: the register and the document ---

    def _check_register(self, register: Register, record: InvoiceRecord, content: Content) -> None:
        fault = register.faults().get(record.sequence)
        if fault is not None:
            self._differs("chain", fault)
        said = [content[name] for name in ("tenant_id", "month", "currency")]
        if [record.tenant_id, record.month, record.currency] != said:
            self._differs("sum", "tenant, month or currency in the register are not those of the content")
        amounts = {name: content["totals"][name] for name in ("subtotal", "net", "tax", "total")} | content["payment"]
        for name, amount in amounts.items():
            if getattr(record, name) != amount:
                self._differs("sum", f"{name} is {getattr(record, name)} in the register, {amount} on the invoice")

    def _check_document(self, record: InvoiceRecord, content: Content, data: bytes) -> None:
        if hash_of(data) != record.hash or canonical(content) != data:
            self._differs("hash", f"the content's SHA-256 is {hash_of(data)}, the register says {record.hash}")
        lines = lines_in(content)
        if record.kind == InvoiceKind.INVOICE_KIND_INVOICE:
            for position, (line, right) in enumerate(zip(lines, lines_of(account_of(content)), strict=False), 1):
                if line != right:
                    self._differs("sum", f"line {position}: {line.kind} {line.amount} is {right.kind} {right.amount}")
            if len(lines) != len(lines_of(account_of(content))):
                self._differs("sum", f"it has {len(lines)} lines, its basis gives another number")
        if totals_in(content) != totals_of(lines, record.currency, Decimal(content["tax_applied"]["rate"])):
            self._differs("sum", "the totals are not those of its lines")
        credits = added(one.amount for one in credits_in(content))
        due = decimal_text(totals_in(content).total - credits)
        if content["payment"] != {"credits": decimal_text(credits), "due": due}:
            self._differs("sum", "what is due is not the total without the credits")

    async def _check_credits(self, register: Register, record: InvoiceRecord) -> None:
        """No credit pays more, on all invoices together, than was paid in."""
        paid_in = {one.credit_id: Decimal(one.amount) for one in self._archive.credits(record.tenant_id)}
        used = await self._archive.credits_used(register, record.tenant_id, record.currency)
        for credit_id, amount in sorted(used.items()):
            if amount > paid_in.get(credit_id, Decimal(0)):
                had = decimal_text(paid_in.get(credit_id, Decimal(0)))
                self._differs("credits", f"credit {credit_id}: {had} paid in, {decimal_text(amount)} used by invoices")

    # --- 3: the charges ---

    async def _check_charges(self, scope: Scope, register: Register, account: Account) -> None:
        record = scope.record
        earlier, in_force = await self._accounts(scope, register)
        present, _ = await queries.charged(
            self._store, record.tenant_id, record.currency, scope.window, scope.position
        )  # fmt: skip
        right = Account(present.charges, {}, {}).less(Account(one.charges, {}, {}) for one in earlier)
        for group in sorted({*right.charges, *account.charges}):
            invoiced, given = account.charges.get(group, NOTHING), right.charges.get(group, NOTHING)
            if invoiced != given:
                self._differs(
                    "charges", f"{_named(group)}: invoiced {_told(invoiced)}, the raw rows give {_told(given)}"
                )
        for rerating, delta in account.adjustments.items():
            raw_delta = present.adjustments.get(rerating, Delta(0, Decimal(0)))
            billed = [one.adjustments[rerating] for one in in_force if rerating in one.adjustments] or [delta]
            total = Delta(sum(one.requests for one in billed), sum((one.amount for one in billed), Decimal(0)))
            if raw_delta.requests < total.requests or (
                raw_delta.requests == total.requests and raw_delta.amount != total.amount
            ):
                raw = f"{decimal_text(raw_delta.amount)} of {raw_delta.requests} requests"
                billed_text = f"{decimal_text(total.amount)} of {total.requests} requests"
                what = f"re-rating {rerating.rerate_id} of {rerating.month}"
                self._differs("adjustments", f"{what}: invoiced {billed_text}, the rows give {raw}")
        await self._check_discounts(scope, in_force, account)

    async def _check_discounts(self, scope: Scope, in_force: list[Account], account: Account) -> None:
        """They hang on the whole month: told apart from what came later only once that is invoiced as well."""
        record = scope.record
        now, _ = await self._invoices.charged(record.tenant_id, record.currency, scope.window)
        left = now.less(in_force)
        late = sum(sums.requests for sums in left.charges.values())
        if late > 0:
            self._differs("late_charges", f"{late} charges came after it: they go onto the next invoice")
        settled = not left.charges and not left.adjustments
        for saving in account.discounts:
            if settled and saving in left.discounts:
                off = decimal_text(left.discounts[saving])
                self._differs("discount", f"{saving.month} {saving.model} {saving.rate_version}: off by {off}")

    async def _accounts(self, scope: Scope, register: Register) -> tuple[list[Account], list[Account]]:
        """What the invoices billed that were in force when this one was issued; and those that are now."""
        record = scope.record
        earlier, in_force = [], []
        for one in register.entries:
            other = (one.tenant_id, one.currency) != (record.tenant_id, record.currency)
            if other or one.kind != InvoiceKind.INVOICE_KIND_INVOICE or one.month < scope.window[0]:
                continue
            account = account_of((await self._archive.content(one))[0]).within(*scope.window)
            note = register.credit_note_of(one.number)
            if one.sequence < record.sequence and (note is None or note.sequence > record.sequence):
                earlier.append(account)
            if note is None:
                in_force.append(account)
        return earlier, in_force

    async def _check_each(self, scope: Scope) -> None:
        duplicates = await self._store.rows(DUPLICATES, scope.asked)
        self._name("duplicate_charge", [(row[0], f"has {row[1]} charges") for row in duplicates])
        wrong = []
        async for request_id, charged, right in charges(self._store, scope):
            self._answer.charges += 1
            if charged != right:
                wrong.append((request_id, f"is charged {decimal_text(charged)}, its rate gives {decimal_text(right)}"))
        self._name("charge", wrong)

    async def _check_corrections(self, scope: Scope, account: Account) -> None:
        """A corrected charge is what its tokens cost at the price that the last correction names."""
        reratings = sorted({of.rerate_id for of in account.adjustments})
        if not reratings:
            return
        wrong, unknown = [], set()
        async for one in corrected(self._store, scope, reratings):
            prices = self._book.named(one.rate_version)
            if one.rate_version and not prices:
                unknown.add(one.rate_version)
                continue
            right = [one.charge_by(price) for price in prices] or [Decimal(0)]
            if one.charge not in right:
                gives = decimal_text(right[0])
                wrong.append((one.request_id, f"is charged {decimal_text(one.charge)} corrected, its price {gives}"))
        self._name("adjustments", wrong)
        for version in sorted(unknown):
            self._differs("rate", f"corrections follow rate version {version}, which is not in the price book")

    # --- 4: the rates ---

    def _check_rates(self, account: Account) -> None:
        wrong: dict[str, str] = {}
        for group in account.charges:
            prices = self._book.named(group.rate_version)
            if not prices:
                wrong[group.rate_version] = "is not in the price book any more: its rates cannot be compared"
            elif not any(_is_rate_of(price, group) for price in prices):
                wrong[group.rate_version] = "has other amounts in the price book than in the rows"
        for version, fault in sorted(wrong.items()):
            self._differs("rate", f"rate version {version} {fault}")

    # --- 5: the tokens ---

    async def _check_tokens(self, scope: Scope) -> None:
        asked: Mapping[str, Any] = {**scope.asked, "from": 0}
        aged = await self._store.rows(AGED, asked)
        if aged:
            asked = {**asked, "from": int(aged[0][1])}
            self._differs("not_proven", f"the token rows of {aged[0][0]} requests have aged out")
        ((tokens,),) = await self._store.rows(COUNTED, asked)
        self._answer.tokens = int(tokens)
        found = await self._store.rows(TOKENS_OF_CHARGES, asked)
        self._name(
            "output_tokens", [(row[0], f"is charged for {row[1]} output tokens, {row[2]} are there") for row in found]
        )  # fmt: skip
        ended = {**asked, "ended": clock.now_us() - _RUNNING_US}
        missing = await self._store.rows(TOKENS_WITHOUT_CHARGE, ended)
        self._name("missing_charge", [(row[0], f"has {row[1]} tokens and no charge") for row in missing])

    # --- what is told ---

    def _name(self, reason: str, found: list[tuple[str, str]]) -> None:
        for request_id, fault in found[:_NAMED]:
            self._differs(reason, f"request {request_id} {fault}", request_id)
        if len(found) > _NAMED:
            self._differs(reason, f"and {len(found) - _NAMED} more")

    def _differs(self, reason: str, detail: str, request_id: str = "") -> None:
        self._answer.differences.append(InvoiceDifference(reason=reason, request_id=request_id, detail=detail))


def _is_rate_of(price: Price, group: Group) -> bool:
    rate = price.embedding if group.operation == "embeddings" else price.plain
    amounts = (
        rate.input_per_million, rate.cached_input_per_million, rate.output_per_million, rate.reasoning_per_million,
        rate.per_call, rate.minimum,
    )  # fmt: skip
    return amounts == group[6:12] and group.factor in (rate.factor, price.batch_factor)


def _named(group: Group) -> str:
    return f"{group.month}, project {group.project_id or '-'}, model {group.model}, rate {group.rate_version}"


def _told(sums: Any) -> str:
    return f"{sums.requests} requests, {sums.tokens} tokens, {decimal_text(sums.cost)}"

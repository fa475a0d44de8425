"""Invoices as values: lines against an independent model of fractions, totals, months, and the register's moves."""

from collections import defaultdict
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus.bus.v1.invoice_pb2 import BillingProfileRecord, InvoiceKind, InvoiceRecord, Tax
from inferbus.bus.v1.registry_pb2 import CreditRecord
from inferbus.common.v1.usage_pb2 import Usage
from inferbus.meter.v1.invoices_pb2 import InvoiceState
from inferbus_meter.core.invoice import (
    NOTHING,
    Account,
    Delta,
    Group,
    Rerating,
    Saving,
    Spent,
    Sums,
    discounts_of,
    lines_of,
    minor_units,
    payable,
    totals_of,
)
from inferbus_meter.core.invoice_content import (
    account_of,
    canonical,
    content_of,
    credit_note_of,
    csv_of,
    hash_of,
    lines_in,
    totals_in,
)
from inferbus_meter.core.invoice_credits import apply_credits
from inferbus_meter.core.invoice_register import Issue, Register, RegisterError
from inferbus_meter.core.months import begin_us, end_us, months_before, parse_month
from inferbus_rating import Rate, cost
from inferbus_rating.tiers import Tier

MONTHS = ("2026-10", "2026-11")
amounts = st.decimals(0, 100, places=12) | st.sampled_from([Decimal(0), Decimal("0.5"), Decimal(3)])
rates = st.builds(
    Rate, st.sampled_from(["v1", "v2"]), st.just("EUR"), amounts, amounts, amounts, amounts, amounts, amounts,
    st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.333333333333")]),
)  # fmt: skip
tokens = st.integers(0, (1 << 32) - 1)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Group, Sums]:
    """One charged request: its group, and itself as sums."""
    rate = draw(rates)
    answered = draw(st.booleans())
    first = draw(st.booleans())
    inputs, outputs = draw(tokens), draw(tokens)
    usage = Usage(
        input_tokens=inputs, cached_input_tokens=draw(st.integers(0, inputs)), output_tokens=outputs,
        reasoning_tokens=draw(st.integers(0, outputs)),
    )  # fmt: skip
    group = Group(
        draw(st.sampled_from(MONTHS)), draw(st.sampled_from("pq")), draw(st.sampled_from("mn")), "chat", rate.version,
        draw(st.booleans()), rate.input_per_million, rate.cached_input_per_million, rate.output_per_million,
        rate.reasoning_per_million, rate.per_call, rate.minimum, rate.factor,
    )  # fmt: skip
    sums = Sums(
        1, int(first and answered), inputs - usage.cached_input_tokens, usage.cached_input_tokens,
        outputs - usage.reasoning_tokens, usage.reasoning_tokens,
        cost(usage, rate, first_choice=first, answered=answered), draw(st.integers(0, (1 << 64) - 1)),
    )  # fmt: skip
    return group, sums


def account(charged: list[tuple[Group, Sums]]) -> Account:
    charges: dict[Group, Sums] = {}
    for group, sums in charged:
        charges[group] = charges.get(group, NOTHING).plus(sums)
    return Account({group: charges[group] for group in sorted(charges)}, {}, {})


many = st.lists(requests(), max_size=12)


@given(many)
def test_lines_are_what_an_independent_model_says_and_add_up_to_what_was_charged(
    charged: list[tuple[Group, Sums]],
) -> None:
    lines = lines_of(account(charged))
    assert sum(map(Fraction, (line.amount for line in lines))) == sum(Fraction(sums.cost) for _, sums in charged)
    kinds = ("input", "cached_input", "output", "reasoning", "call")
    model: dict[tuple[object, ...], tuple[int, Fraction]] = defaultdict(lambda: (0, Fraction(0)))
    for group, sums in charged:
        prices = (*(Fraction(price) / 1_000_000 for price in group[6:10]), Fraction(group.per_call))
        quantities = (sums.input, sums.cached_input, sums.output, sums.reasoning, sums.calls)
        for kind, quantity, price, shown in zip(kinds, quantities, prices, group[6:11], strict=True):
            key = (*group[:6], kind, shown, group.factor, group[6:])
            had, amount = model[key]
            model[key] = (had + quantity, amount + quantity * price * Fraction(group.factor))
    wanted = sorted(
        (key[:9], quantity)
        for key, (quantity, _) in model.items()
        if quantity and (key[6] != "call" or key[7])
    )  # fmt: skip
    shown = sorted(
        ((line.month, line.project_id, line.model, line.operation, line.rate_version, line.estimated, line.kind,
          line.unit_price, line.factor), line.quantity)
        for line in lines if line.kind in kinds
    )  # fmt: skip
    assert shown == wanted
    exact = sorted(amount for key, (quantity, amount) in model.items() if quantity and (key[6] != "call" or key[7]))
    for line, amount in zip(sorted(Fraction(one.amount) for one in lines if one.kind in kinds), exact, strict=True):
        assert abs(line - amount) <= Fraction(1, 2 * 10**12)


@given(many, st.sampled_from(["EUR", "JPY", "KWD"]), st.decimals(0, Decimal("0.3"), places=4))
def test_lines_and_rounding_are_the_net_and_net_and_tax_the_total(
    charged: list[tuple[Group, Sums]], currency: str, rate: Decimal
) -> None:
    lines = lines_of(account(charged))
    totals = totals_of(lines, currency, rate)
    exact = sum((Fraction(line.amount) for line in lines), Fraction(0))
    step = Fraction(1, 10 ** minor_units(currency))
    assert exact + Fraction(totals.rounding) == Fraction(totals.net)
    assert abs(Fraction(totals.rounding)) <= step / 2
    assert Fraction(totals.net) % step == Fraction(totals.tax) % step == 0
    assert abs(Fraction(totals.tax) - Fraction(totals.net) * Fraction(rate)) <= step / 2
    assert totals.net + totals.tax == totals.total


@settings(max_examples=40)
@given(many, many, many)
def test_whatever_was_charged_when_it_is_on_exactly_one_invoice(
    first: list[tuple[Group, Sums]], late: list[tuple[Group, Sums]], last: list[tuple[Group, Sums]]
) -> None:
    invoiced: list[Account] = []
    for charged in (first, first + late, first + late + last):
        invoiced.append(account(charged).less(invoiced))
    together = NOTHING
    for one in invoiced:
        for sums in one.charges.values():
            together = together.plus(sums)
    everything = NOTHING
    for _, sums in first + late + last:
        everything = everything.plus(sums)
    assert together == everything
    assert account(first + late + last).less(invoiced) == Account({}, {}, {})
    # A voided invoice is left out: what was on it is charged again, and nothing else.
    assert account(first + late + last).less(invoiced[1:]).charges == invoiced[0].charges


@given(many, st.integers(0, 5000), st.fractions(0, 1))
def test_discounts_do_not_mix_and_hang_on_the_whole_month(
    charged: list[tuple[Group, Sums]], above: int, factor: Fraction
) -> None:
    tiers = {"v1": (Tier(above, Decimal(round(float(factor), 3)).quantize(Decimal("0.001"))),)}
    spent: dict[Saving, Spent] = {}
    for group, sums in charged:
        saving = Saving(group.month, group.project_id, group.model, group.rate_version, group.estimated)
        had = spent.get(saving, Spent(Decimal(0), 0))
        spent[saving] = Spent(had.charge + sums.cost, had.tokens + sums.tokens)
    found = discounts_of(spent, tiers)
    assert {saving.rate_version for saving in found} <= {"v1"}
    for saving, amount in found.items():
        of_month = sum(
            one.tokens for key, one in spent.items() if (key.month, key.model) == (saving.month, saving.model)
        )
        share = Fraction(max(0, of_month - above), of_month) * (1 - Fraction(tiers["v1"][0].factor))
        assert abs(Fraction(amount) - share * Fraction(spent[saving].charge)) <= Fraction(1, 2 * 10**12)


SELLER = BillingProfileRecord(name="Infer GmbH", tax=Tax(name="VAT", rate="0.19"), payment_days=14)
rerated = st.dictionaries(
    st.builds(
        Rerating, st.sampled_from(MONTHS), st.just("p"), st.just("m"), st.just("r"), st.just("v2"), st.booleans()
    ),
    st.builds(Delta, st.integers(1, 9), st.decimals(-9, 9, places=12)), max_size=2,
)  # fmt: skip
saved = st.dictionaries(
    st.builds(Saving, st.sampled_from(MONTHS), st.just("p"), st.just("m"), st.just("v1"), st.booleans()),
    st.decimals(0, 9, places=12), max_size=2,
)  # fmt: skip


@settings(max_examples=40)
@given(many, rerated, saved)
def test_a_content_says_its_account_again_and_a_credit_note_takes_it_all_back(
    charged: list[tuple[Group, Sums]], adjustments: dict[Rerating, Delta], discounts: dict[Saving, Decimal]
) -> None:
    given_account = Account(account(charged).charges, adjustments, discounts)
    content = content_of(
        given_account, tenant_id="acme", month="2026-11", currency="EUR", seller=SELLER,
        buyer=BillingProfileRecord(), position=7,
    )  # fmt: skip
    again = account_of(content)
    assert again == given_account
    assert lines_of(again) == lines_of(given_account) == lines_in(content)
    assert totals_in(content) == totals_of(lines_in(content), "EUR", Decimal("0.19"))
    note = credit_note_of(content, "INV-1", "mistake")
    assert [line.amount for line in lines_in(note)] == [-line.amount for line in lines_in(content)]
    assert [-amount for amount in totals_list(note)] == totals_list(content)
    assert account_of(note) == Account({}, {}, {})
    assert hash_of(canonical(note)) != hash_of(canonical(content))
    assert len(csv_of(content).splitlines()) == len(content["lines"]) + 2


def totals_list(content: dict[str, object]) -> list[Decimal]:
    totals = totals_in(content)
    return [totals.subtotal, totals.rounding, totals.net, totals.tax, totals.total]


def credit(number: int, amount: str, paid_in: str, expires: str = "", **of: str) -> CreditRecord:
    """Paid in on the first of the month ``paid_in``, expired at the beginning of ``expires``."""
    record = CreditRecord(**{"credit_id": f"c{number}", "currency": "EUR", "amount": amount, **of})
    record.create_time.FromMicroseconds(begin_us(paid_in))
    if expires:
        record.expire_time.FromMicroseconds(begin_us(expires))
    return record


def test_credits_pay_once_the_one_that_expires_first_before_the_others() -> None:
    credits = [
        credit(1, "100.005", "2026-09"), credit(2, "10", "2026-10", "2026-12"), credit(3, "50", "2026-08", "2026-11"),
        credit(4, "50", "2026-12"), credit(5, "50", "2026-09", currency="USD"),
        credit(6, "50", "2026-09", project_id="p"),
    ]  # fmt: skip
    paid = apply_credits(credits, {}, "2026-11", "EUR", Decimal("30.50"))
    assert paid == [("c2", Decimal(10)), ("c1", Decimal("20.50"))]
    used = {one.credit_id: one.amount for one in paid}
    # Half a cent of it cannot be paid with.
    assert apply_credits(credits, used, "2026-11", "EUR", Decimal(500)) == [("c1", Decimal("79.50"))]
    for nothing in (Decimal(0), Decimal(-5)):
        assert apply_credits(credits, {}, "2026-11", "EUR", nothing) == []


@given(
    st.lists(st.decimals(Decimal("0.01"), 50, places=4), max_size=5), st.lists(st.decimals(0, 90, places=2), max_size=6)
)
def test_credits_never_pay_more_than_was_paid_in_nor_than_is_owed(
    paid_in: list[Decimal], totals: list[Decimal]
) -> None:
    credits = [credit(number, f"{amount:f}", "2026-09") for number, amount in enumerate(paid_in)]
    used: dict[str, Decimal] = defaultdict(Decimal)
    for total in totals:
        applied = apply_credits(credits, used, "2026-11", "EUR", total)
        assert sum(one.amount for one in applied) <= total
        for one in applied:
            used[one.credit_id] += one.amount
    assert all(used[one.credit_id] <= Decimal(one.amount) for one in credits)
    whole_cents = sum((amount.quantize(Decimal("0.01"), ROUND_FLOOR) for amount in paid_in), Decimal(0))
    assert sum(used.values()) == min(sum(totals), whole_cents)


def test_a_spreadsheet_does_not_run_what_is_in_a_csv() -> None:
    group = Group("2026-11", "=HYPERLINK(1)", "@m", "chat", "-2+3", False, *[Decimal(1)] * 7)
    content = content_of(
        account([(group, Sums(1, 0, 1, 0, 0, 0, Decimal("0.000001"), 5))]),
        tenant_id="t", month="2026-11", currency="EUR", seller=SELLER, buyer=BillingProfileRecord(), position=1,
    )  # fmt: skip
    text = csv_of(content).decode()
    assert "'=HYPERLINK(1)" in text
    assert "'@m" in text
    assert "'-2+3" in text


@given(st.integers(1970, 2104), st.integers(1, 12), st.integers(0, 24))
def test_months_follow_each_other_without_a_gap(year: int, number: int, back: int) -> None:
    month = f"{year}-{number:02}"
    assert parse_month(month) == month
    assert months_before(months_before(month, back), -back) == month
    assert end_us(month) == begin_us(months_before(month, -1)) > begin_us(month)


@pytest.mark.parametrize("text", ["2026-13", "2026-00", "2026-1", "1969-12", "2026-11-01", "", "٢٠٢٦-١١"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        parse_month(text)


@pytest.mark.parametrize(
    ("amount", "currency", "rounded"),
    [
        ("0.005", "EUR", "0"),
        ("0.015", "EUR", "0.02"),
        ("-0.015", "EUR", "-0.02"),
        ("2.5", "JPY", "2"),
        ("1", "KWD", "1"),
    ],
)
def test_what_is_payable_is_rounded_half_even(amount: str, currency: str, rounded: str) -> None:
    assert payable(Decimal(amount), currency) == Decimal(rounded)


_YEAR_US = 365 * 86_400 * 1_000_000
_START_US = 1_790_000_000_000_000


class Books(RuleBasedStateMachine):
    """Invoices of two tenants and three months, issued and voided in any order; the clock may go back."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[InvoiceRecord] = []
        self.now_us = _START_US

    def append(self, content: dict[str, object]) -> bool:
        try:
            record = Register(self.entries).appended(content, hash_of(canonical(content)), Issue(self.now_us, "X-"))
        except RegisterError:
            return False
        self.entries.append(record)
        return True

    @rule(step=st.integers(-_YEAR_US // 8, _YEAR_US // 2))
    def time_goes_on(self, step: int) -> None:
        self.now_us = max(_START_US, self.now_us + step)

    @rule(tenant=st.sampled_from("ab"), month=st.sampled_from(["2026-08", "2026-09", "2026-10"]))
    def finalize(self, tenant: str, month: str) -> None:
        there = Register(self.entries).final_of(tenant, "EUR", month)
        content = content_of(
            Account({}, {}, {}), tenant_id=tenant, month=month, currency="EUR", seller=SELLER,
            buyer=BillingProfileRecord(), position=len(self.entries),
        )  # fmt: skip
        assert self.append(content) == (there is None)

    @precondition(lambda self: bool(self.entries))
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        register = Register(self.entries)
        record = data.draw(st.sampled_from(self.entries))
        is_invoice = record.kind == InvoiceKind.INVOICE_KIND_INVOICE
        may = is_invoice and register.state(record) == InvoiceState.INVOICE_STATE_FINAL
        content = content_of(
            Account({}, {}, {}), tenant_id=record.tenant_id, month=record.month, currency="EUR", seller=SELLER,
            buyer=BillingProfileRecord(), position=0,
        )  # fmt: skip
        assert self.append(credit_note_of(content, record.number, "mistake")) == may

    @invariant()
    def numbers_have_no_gap_and_time_does_not_go_back(self) -> None:
        register = Register(self.entries)
        assert [one.sequence for one in register.entries] == list(range(1, len(self.entries) + 1))
        by_year: dict[str, list[int]] = defaultdict(list)
        for one in register.entries:
            series, _, number = one.number.rpartition("-")
            assert series.endswith(f"{one.issue_time.ToDatetime():%Y}")
            by_year[series].append(int(number))
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_year.values())
        times = [one.issue_time.ToMicroseconds() for one in register.entries]
        assert times == sorted(times)

    @invariant()
    def a_month_has_one_invoice_in_force_at_most(self) -> None:
        register = Register(self.entries)
        for tenant in "ab":
            months = [one.month for one in register.in_force(tenant, "EUR")]
            assert len(months) == len(set(months))

    @invariant()
    def whoever_changes_an_entry_is_found(self) -> None:
        assert Register(self.entries).faults() == {}
        for at, one in enumerate(self.entries):
            forged = InvoiceRecord()
            forged.CopyFrom(one)
            forged.total = "0.01"
            register = Register([*self.entries[:at], forged, *self.entries[at + 1 :]])
            assert min(register.faults()) == one.sequence

    @precondition(lambda self: len(self.entries) > 1)
    @rule(data=st.data())
    def a_missing_entry_is_found(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.entries) - 2))
        with pytest.raises(RegisterError, match="gap"):
            Register([*self.entries[:at], *self.entries[at + 1 :]])


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)

"""Budgets and their ledgers: who may spend how much. Pure: the edges spend by it, the meter settles by it.

The law: what is settled and what is granted is never more than the budget. A ledger is changed by compare-and-set only,
so each function takes the record as it is and gives the one that it would become.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import BudgetGrant, BudgetLedgerRecord, BudgetPeriod, BudgetRecord, CreditRecord

PERIODS = {
    BudgetPeriod.BUDGET_PERIOD_DAY: "day",
    BudgetPeriod.BUDGET_PERIOD_MONTH: "month",
    BudgetPeriod.BUDGET_PERIOD_PREPAID: "prepaid",
}
ZERO = Decimal(0)
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Period:
    """[start, end) in Unix microseconds; a prepaid budget has one, which does not end."""

    start_us: int
    end_us: int | None


ALWAYS = Period(0, None)


def scope_of(tenant_id: str, project_id: str = "", key_id: str = "") -> str:
    if key_id:
        return f"key:{tenant_id}/{key_id}"
    return f"project:{tenant_id}/{project_id}" if project_id else f"tenant:{tenant_id}"


def budget_name(budget: BudgetRecord) -> str:
    """Its name in the bucket: a scope has one budget of each period."""
    return f"{scope_of(budget.tenant_id, budget.project_id, budget.key_id)}#{PERIODS[budget.period]}"


def ledger_name(budget: BudgetRecord, period: Period) -> str:
    """Its name in the bucket: amounts of two currencies never meet in one ledger."""
    return f"{budget_name(budget)}@{period.start_us // 1_000_000}:{budget.currency}"


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a ledger's name says."""

    tenant_id: str
    project_id: str
    key_id: str
    kind: BudgetPeriod.ValueType
    period: Period
    currency: str


def ledger_of(name: str) -> Ledger:
    """The inverse of :func:`ledger_name`. Raises ValueError, also KeyError, for what is no such name."""
    budget, at = name.rsplit("@", 1)
    start, currency = at.split(":", 1)
    scope, period = budget.rsplit("#", 1)
    kind = {text: value for value, text in PERIODS.items()}[period]
    level, owner = scope.split(":", 1)
    tenant_id, _, part = owner.partition("/")
    project_id, key_id = {"tenant": ("", ""), "project": (part, ""), "key": ("", part)}[level]
    return Ledger(tenant_id, project_id, key_id, kind, period_at(kind, int(start) * 1_000_000), currency)


def period_at(kind: BudgetPeriod.ValueType, unix_us: int) -> Period:
    """The period that a request counts in which was accepted then. Days and months are UTC's."""
    if kind == BudgetPeriod.BUDGET_PERIOD_PREPAID:
        return ALWAYS
    day = datetime.fromtimestamp(unix_us // 1_000_000, UTC).replace(hour=0, minute=0, second=0)
    if kind == BudgetPeriod.BUDGET_PERIOD_DAY:
        return Period(_us(day), _us(day + timedelta(days=1)))
    first = day.replace(day=1)
    return Period(_us(first), _us((first + timedelta(days=31)).replace(day=1)))


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def total_granted(ledger: BudgetLedgerRecord) -> Decimal:
    return sum((Decimal(one.granted or "0") for one in ledger.grants), ZERO)


def settled(ledger: BudgetLedgerRecord) -> Decimal:
    return Decimal(ledger.settled or "0")


def limit_of(budget: BudgetRecord, credits: Iterable[CreditRecord], ledger: BudgetLedgerRecord) -> Decimal:
    """What may be spent in the period in all. ``credits``: those of the budget's scope and currency; ``ledger``: see
    :func:`lapse`."""
    if budget.period != BudgetPeriod.BUDGET_PERIOD_PREPAID:
        return Decimal(budget.amount or "0")
    lapsed = sum((Decimal(one.amount) for one in ledger.lapsed), ZERO)
    return sum((Decimal(one.amount) for one in credits), ZERO) - lapsed


def lapse(ledger: BudgetLedgerRecord, credits: Sequence[CreditRecord], now_us: int) -> BudgetLedgerRecord:
    """The ledger in which credits that have expired are worth no more than what was spent of them.

    What expires first is spent first, and a grant counts as spent: it was given before. The order in which it is
    written matters, so whoever changes a ledger changes the outcome of this.
    """
    known = {one.credit_id for one in ledger.lapsed}
    expired = [one for one in credits if one.credit_id not in known and _expires_us(one) <= now_us]
    made = BudgetLedgerRecord()
    made.CopyFrom(ledger)
    if not expired:
        return made
    amounts = {one.credit_id: Decimal(one.amount) for one in credits}
    spent = settled(ledger) + total_granted(ledger)
    for one in ledger.lapsed:
        spent -= amounts.get(one.credit_id, ZERO) - Decimal(one.amount)
    for credit in sorted(expired, key=lambda one: (_expires_us(one), one.credit_id)):
        used = min(Decimal(credit.amount), max(ZERO, spent))
        spent -= used
        made.lapsed.add(credit_id=credit.credit_id, amount=text(Decimal(credit.amount) - used))
    return made


def left(ledger: BudgetLedgerRecord, limit: Decimal) -> Decimal:
    """What can still be granted; below 0 if the budget was lowered, or more was charged than was granted."""
    return limit - settled(ledger) - total_granted(ledger)


def grant_of(ledger: BudgetLedgerRecord, edge: str, boot: int) -> BudgetGrant | None:
    return next((one for one in ledger.grants if one.edge == edge and one.boot == boot), None)


def granting(
    ledger: BudgetLedgerRecord, mine: BudgetGrant, limit: Decimal, *, spent: Decimal, least: Decimal, wanted: Decimal
) -> BudgetLedgerRecord | None:
    """The ledger in which ``mine`` (its edge, boot and start) may spend ``least`` to ``wanted``, in all; None if not
    even the least is left. A grant is not lowered by this, and what was ``spent`` already is granted in any case: it
    cannot be taken back."""
    made = BudgetLedgerRecord()
    made.CopyFrom(ledger)
    known = grant_of(made, mine.edge, mine.boot)
    before = ZERO if known is None else Decimal(known.granted or "0")
    amount = max(spent, min(max(wanted, before), before + max(ZERO, left(made, limit))))
    if amount < least:
        return None
    if known is None:
        known = made.grants.add(edge=mine.edge, boot=mine.boot, start_time=mine.start_time)
    known.granted, known.ended = text(amount), False
    return made


def returning(
    ledger: BudgetLedgerRecord, edge: str, boot: int, *, keeps: Decimal, ended: bool
) -> BudgetLedgerRecord | None:
    """The ledger in which the grant is no more than it ``keeps``; None if it is so."""
    made = BudgetLedgerRecord()
    made.CopyFrom(ledger)
    known = grant_of(made, edge, boot)
    if known is None or (Decimal(known.granted or "0") == keeps and known.ended == ended):
        return None
    known.granted, known.ended = text(keeps), ended
    return made


@dataclass(frozen=True, slots=True)
class Charged:
    """What requests of the ledger's period have cost: ``total`` of all of them, ``of_grants`` of those that each of the
    ledger's grants stands for, in their order (a request stands for the last grant of its edge that began before it
    was accepted). ``requests``: how many there are."""

    total: Decimal
    of_grants: Sequence[Decimal]
    requests: int = 0


def settling(ledger: BudgetLedgerRecord, charged: Charged, over: Sequence[bool]) -> BudgetLedgerRecord | None:
    """The ledger by the charges, without the grants that are ``over``; None if nothing changes.

    What a grant's requests cost beyond it is settled at once, and so is what no grant stands for: the truth is in the
    charges, and a ledger that differs is corrected.
    """
    made = BudgetLedgerRecord()
    made.CopyFrom(ledger)
    del made.grants[:]
    covered = ZERO
    for grant, cost, gone in zip(ledger.grants, charged.of_grants, over, strict=True):
        if not gone:
            made.grants.append(grant)
            covered += min(cost, Decimal(grant.granted or "0"))
    amount = charged.total - covered
    if len(made.grants) == len(ledger.grants) and amount == settled(ledger):
        return None
    made.settled = text(amount)
    return made


def grant_windows(ledger: BudgetLedgerRecord) -> list[tuple[str, int, int]]:
    """(edge, start, end) of the requests that each grant stands for, by when they were accepted: Unix microseconds."""
    windows = []
    for grant in ledger.grants:
        start = start_us(grant)
        later = [start_us(one) for one in ledger.grants if one.edge == grant.edge and start_us(one) > start]
        windows.append((grant.edge, start, min(later, default=_NEVER)))
    return windows


def start_us(grant: BudgetGrant) -> int:
    return grant.start_time.seconds * 1_000_000 + grant.start_time.nanos // 1000


def text(amount: Decimal) -> str:
    """Without trailing zeros or an exponent: ``0.0105``."""
    shown = f"{amount:f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _expires_us(credit: CreditRecord) -> int:
    stamp = credit.expire_time
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000 if credit.HasField("expire_time") else _NEVER

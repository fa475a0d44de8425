"""Budgets as the operator sets them: what is one, when a threshold is passed, when a dead edge is done."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from urllib.parse import urlsplit

from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord, BudgetLedgerRecord, BudgetPeriod, BudgetRecord, CreditRecord
from inferbus.meter.v1.budgets_pb2 import BudgetStatus
from inferbus_rating import ledger as ledgers
from inferbus_rating.amounts import amount as amount_of
from inferbus_rating.ledger import Charged, Period
from inferbus_runtime.errors import invalid

_CURRENCY = re.compile(r"[A-Z]{3}")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_THRESHOLDS = 10
_MAX_URL = 2048
_MAX_NOTE = 500
# Requests of a period may end, and be charged, so long after it.
_LATE_US = 24 * 3600 * 1_000_000
_ALERT_AFTERLIFE, _PREPAID_ALERT = timedelta(days=7), timedelta(days=400)


def checked_budget(record: BudgetRecord, *, webhooks: bool) -> BudgetRecord:
    """The budget as it is kept. ``webhooks``: there is a secret to sign them with.

    Raises InferBusError INVALID_ARGUMENT naming the field.
    """
    _check_scope(record)
    prepaid = record.period == BudgetPeriod.BUDGET_PERIOD_PREPAID
    if record.period not in ledgers.PERIODS:
        raise invalid("'period' is day, month or prepaid.", param="period")
    _check_currency(record.currency)
    if prepaid and record.amount:
        raise invalid("A prepaid budget has no amount of its own: add credits to it.", param="amount")
    made = BudgetRecord(
        tenant_id=record.tenant_id,
        project_id=record.project_id,
        key_id=record.key_id,
        period=record.period,
        currency=record.currency,
        amount="" if prepaid else ledgers.text(_amount(record.amount)),
        hard=record.hard,
        webhook_url=_webhook(record.webhook_url, signed=webhooks),
    )
    if len(record.thresholds) > _MAX_THRESHOLDS:
        raise invalid(f"There are {_MAX_THRESHOLDS} thresholds at most.", param="thresholds")
    made.thresholds.extend(ledgers.text(one) for one in sorted({_threshold(one) for one in record.thresholds}))
    return made


def checked_credit(record: CreditRecord, now_us: int) -> CreditRecord:
    """The credit as it is kept. Raises InferBusError INVALID_ARGUMENT naming the field."""
    if not _ID.fullmatch(record.credit_id):
        raise invalid("'credit_id' has 1 to 128 letters, digits, '.', '_' or '-'.", param="credit_id")
    _check_scope(record)
    _check_currency(record.currency)
    amount = _amount(record.amount)
    if amount == 0:
        raise invalid("A credit is above 0.", param="amount")
    if len(record.note) > _MAX_NOTE:
        raise invalid(f"'note' has {_MAX_NOTE} characters at most.", param="note")
    made = CreditRecord()
    made.CopyFrom(record)
    made.amount = ledgers.text(amount)
    if made.HasField("expire_time") and made.expire_time.ToMicroseconds() <= now_us:
        raise invalid("A credit expires in the future.", param="expire_time")
    return made


def same_credit(one: CreditRecord, other: CreditRecord) -> bool:
    """Whether they differ in nothing but when they were made."""
    first, second = CreditRecord(), CreditRecord()
    first.CopyFrom(one)
    second.CopyFrom(other)
    first.ClearField("create_time")
    second.ClearField("create_time")
    return first == second


def status_of(
    budget: BudgetRecord, period: Period, limit: Decimal, ledger: BudgetLedgerRecord, charged: Charged
) -> BudgetStatus:
    reserved = sum(
        (max(Decimal(0), Decimal(grant.granted or "0") - cost)
         for grant, cost in zip(ledger.grants, charged.of_grants, strict=True)),
        Decimal(0),
    )  # fmt: skip
    status = BudgetStatus(
        budget=budget,
        amount=ledgers.text(limit),
        spent=ledgers.text(charged.total),
        reserved=ledgers.text(reserved),
        left=ledgers.text(limit - charged.total - reserved),
    )
    if period.end_us is not None:
        status.period_start.FromMicroseconds(period.start_us)
        status.period_end.FromMicroseconds(period.end_us)
    return status


def passed(budget: BudgetRecord, period: Period, limit: Decimal, spent: Decimal) -> Iterator[BudgetAlertRecord]:
    """The thresholds that ``spent`` has reached, without times. The id is the same whoever finds it, and differs once
    the budget's amount does: then there is news."""
    for threshold in budget.thresholds:
        if limit > 0 and spent >= limit * Decimal(threshold):
            named = f"{ledgers.ledger_name(budget, period)}|{ledgers.text(limit)}|{threshold}"
            alert = BudgetAlertRecord(
                alert_id=f"alert_{hashlib.sha256(named.encode()).hexdigest()[:24]}",
                budget=budget,
                threshold=threshold,
                amount=ledgers.text(limit),
                spent=ledgers.text(spent),
            )
            if period.end_us is not None:
                alert.period_start.FromMicroseconds(period.start_us)
            yield alert


def last_period(budget: BudgetRecord, period: Period, now_us: int) -> Period | None:
    """The one before ``period``, while what belongs to it may still be charged; None if the budget is younger."""
    if period.end_us is None or now_us >= period.start_us + _LATE_US:
        return None
    if max(budget.create_time.ToMicroseconds(), budget.update_time.ToMicroseconds()) >= period.start_us:
        return None
    return ledgers.period_at(budget.period, period.start_us - 1)


def alert_lifetime(alert: BudgetAlertRecord, now_us: int) -> timedelta:
    """How long it is to be kept: as long as it could be told again, and its webhook be tried."""
    end_us = ledgers.period_at(alert.budget.period, alert.period_start.ToMicroseconds()).end_us
    if end_us is None:
        return _PREPAID_ALERT
    return timedelta(microseconds=max(0, end_us - now_us)) + _ALERT_AFTERLIFE


@dataclass(frozen=True, slots=True)
class Marks:
    """How far the streams that a request passes were, and are: (first, last) sequence stored of ``requests`` and
    ``work``, the last of ``tokens``, and up to where of that the charges are in the tables."""

    requests: tuple[int, int]
    work: tuple[int, int]
    tokens: int
    charged: int


@dataclass(frozen=True, slots=True)
class Draining:
    """An edge that accepts nothing any more: whether all that it accepted has ended and is charged.

    Its requests wait in REQUESTS, then run in WORK, then end on TOKENS: each stream is waited for up to where it was
    when the one before had none of them left.
    """

    requests: int
    work: int | None = None
    tokens: int | None = None

    def further(self, marks: Marks) -> "Draining":
        work, tokens = self.work, self.tokens
        if work is None and _left(marks.requests, self.requests):
            work = marks.work[1]
        elif work is not None and tokens is None and _left(marks.work, work):
            tokens = marks.tokens
        return Draining(self.requests, work, tokens)

    def over(self, marks: Marks) -> bool:
        return self.tokens is not None and marks.charged >= self.tokens


def _left(bounds: tuple[int, int], mark: int) -> bool:
    """Whether nothing up to ``mark`` is in the stream; one that never held anything begins at 0."""
    return mark == 0 or bounds[0] > mark


def _check_scope(record: BudgetRecord | CreditRecord) -> None:
    if record.project_id and record.key_id:
        raise invalid("Name a project or a key, not both.", param="key_id")
    for name in ("tenant_id", "project_id", "key_id"):
        value = getattr(record, name)
        if (value or name == "tenant_id") and not _ID.fullmatch(value):
            raise invalid(f"'{name}' has 1 to 128 letters, digits, '.', '_' or '-'.", param=name)


def _check_currency(currency: str) -> None:
    if not _CURRENCY.fullmatch(currency):
        raise invalid("'currency' is three capital letters, such as USD.", param="currency")


def _amount(text: str) -> Decimal:
    try:
        if not text:
            raise ValueError("it is missing")
        return amount_of(text)
    except ValueError as error:
        raise invalid(f"'amount' is a decimal number: {error}.", param="amount") from error


def _threshold(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or not 0 < value <= 10 or len(text) > 12:
        raise invalid("A threshold is a part of the amount, such as 0.8, above 0 and at most 10.", param="thresholds")
    return value.normalize()


def _webhook(url: str, *, signed: bool) -> str:
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or len(url) > _MAX_URL or not url.isprintable():
        raise invalid(f"'webhook_url' is an http or https URL of {_MAX_URL} characters at most.", param="webhook_url")
    if not signed:
        raise invalid(
            "The meter has no secret to sign webhooks with; set INFERBUS_METER_WEBHOOK_SECRET.", param="webhook_url"
        )
    return url

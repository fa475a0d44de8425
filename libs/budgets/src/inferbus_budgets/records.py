"""What the registries say of money, in the shape in which a call asks for it: prices, hard budgets, credits."""

import logging
from collections.abc import Callable
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import (
    BudgetLedgerRecord,
    BudgetPeriod,
    BudgetRecord,
    CreditRecord,
    DeploymentRecord,
    PriceRecord,
)
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_rating import PriceBook
from inferbus_rating import ledger as ledgers
from inferbus_rating.ledger import Period
from inferbus_runtime import clock

from inferbus_budgets.amounts import ZERO

log = logging.getLogger(__name__)


class HardBudget:
    """A hard budget, and the ledger of the period that was asked for last: it is nearly always the same."""

    def __init__(self, budget: BudgetRecord) -> None:
        self.budget = budget
        self.name = ledgers.budget_name(budget)
        self._period = Period(0, 0)
        self._ledger = ""

    def at(self, accepted_us: int) -> tuple[Period, str]:
        """The period of a request that was accepted then, and its ledger's name."""
        end_us = self._period.end_us
        if not self._period.start_us <= accepted_us or (end_us is not None and accepted_us >= end_us):
            self._period = ledgers.period_at(self.budget.period, accepted_us)
            self._ledger = ledgers.ledger_name(self.budget, self._period)
        return self._period, self._ledger


class BudgetRecords:
    """Start it before use. What is made of the records is made when it is asked for first after a change."""

    def __init__(self, bus: Bus) -> None:
        self._budgets = Registry(bus, "budgets", BudgetRecord)
        self._credits = Registry(bus, "credits", CreditRecord)
        self._prices = Registry(bus, "prices", PriceRecord)
        self._deployments = Registry(bus, "deployments", DeploymentRecord)
        self.ledgers = Registry(bus, "budget_ledgers", BudgetLedgerRecord)
        self._made_book: PriceBook | None = None
        self._made_budgets: dict[str, dict[str, list[HardBudget]]] | None = None
        self._made_credits: dict[tuple[str, str], list[CreditRecord]] | None = None

    async def start(self, limits_changed: Callable[[], None], ledger_changed: Callable[[str], None]) -> None:
        """Returns when all of it is here. ``limits_changed``: called after a change of budgets or credits;
        ``ledger_changed``: with the name of a ledger. Raises like :meth:`Registry.start`."""

        def budgeted() -> None:
            self._made_budgets = None
            limits_changed()

        def credited() -> None:
            self._made_credits = None
            limits_changed()

        def priced() -> None:
            self._made_book = None

        self._prices.on_change(lambda name, record: priced())
        self._budgets.on_change(lambda name, record: budgeted())
        self._credits.on_change(lambda name, record: credited())
        self.ledgers.on_change(lambda name, record: ledger_changed(name))
        for registry in (self._prices, self._deployments, self._budgets, self._credits, self.ledgers):
            await registry.start()

    async def stop(self) -> None:
        for registry in (self.ledgers, self._credits, self._budgets, self._deployments, self._prices):
            await registry.stop()

    def book(self) -> PriceBook:
        if self._made_book is None:
            self._made_book = PriceBook.of(self._prices.items().values())
            for record, fault in self._made_book.faults:
                log.error(
                    "a price cannot be read: calls that it may be for are refused where a hard budget counts",
                    extra={"rate_version": record.rate_version, "model": record.model, "error": fault},
                )
        return self._made_book

    def answering(self, model: str) -> list[str]:
        """Who may answer for ``model``: it, or a fallback of its deployment. Those of an adapter are its base's."""
        deployment = self._deployments.get(model.partition(":")[0])
        return [model] if deployment is None else list(dict.fromkeys((model, *deployment.fallbacks)))

    def hard(self) -> dict[str, dict[str, list[HardBudget]]]:
        """Hard budgets by tenant and scope."""
        made = self._made_budgets
        if made is None:
            made = self._made_budgets = {}
            for budget in self._budgets.items().values():
                if budget.hard:
                    scope = ledgers.scope_of(budget.tenant_id, budget.project_id, budget.key_id)
                    made.setdefault(budget.tenant_id, {}).setdefault(scope, []).append(HardBudget(budget))
        return made

    def _paid(self) -> dict[tuple[str, str], list[CreditRecord]]:
        """Credits by scope and currency."""
        made = self._made_credits
        if made is None:
            made = self._made_credits = {}
            for credit in self._credits.items().values():
                scope = ledgers.scope_of(credit.tenant_id, credit.project_id, credit.key_id)
                made.setdefault((scope, credit.currency), []).append(credit)
        return made

    def present(self, budget_name: str, name: str) -> tuple[BudgetLedgerRecord, Decimal]:
        record = self.ledgers.get(name) or BudgetLedgerRecord()
        budget = self._budgets.get(budget_name)
        if budget is None:
            return record, ZERO
        credits: list[CreditRecord] = []
        if budget.period == BudgetPeriod.BUDGET_PERIOD_PREPAID:
            scope = ledgers.scope_of(budget.tenant_id, budget.project_id, budget.key_id)
            credits = self._paid().get((scope, budget.currency), [])
            record = ledgers.lapse(record, credits, clock.now_us())
        return record, ledgers.limit_of(budget, credits, record)

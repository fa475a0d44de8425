"""Hard budgets at the door: what a call may cost at most is reserved before it is accepted, and its real cost settled
when its end is on the log. No round trip for a call while this edge's grant has room; none at all without a budget.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord, BudgetRecord, KeyRecord, ModelRecord, WorkerRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import choice_id
from inferbus_dialect.plan import Plan
from inferbus_rating import Rate, Scope
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_budgets.account import Account
from inferbus_budgets.amounts import (
    ZERO,
    bounds_of,
    charge_of,
    exhausted,
    is_readable,
    most_of,
    most_of_any,
    other_currency,
    rate_of,
    unreadable,
)
from inferbus_budgets.holder import Holder
from inferbus_budgets.records import BudgetRecords, HardBudget

log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
# No stream keeps a request for longer, so none can end, and cost anything, after that.
_FORGET_SECONDS = 26 * 3600.0
# Less than what passes between the last call of a grant and the first one of the next.
_EARLIER_US = 1_000_000
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(slots=True)
class _Reservation:
    """Of one client call: ``open`` are its choices that have not ended, ``cost`` that of those that have."""

    amount: Decimal
    accounts: tuple[Account, ...]
    open: set[bytes]
    since: float
    cost: Decimal = ZERO


class Budgets:
    """``start``, then ``run`` as a task of the process; ``stop`` gives back what is not spent."""

    def __init__(self, bus: Bus, *, edge: str, model_of: Callable[[str], ModelRecord | None]) -> None:
        """``model_of``: the record of a model; None if there is none."""
        self._model_of = model_of
        self._records = BudgetRecords(bus)
        self._leases = Registry(bus, "leases", WorkerRecord)
        self._holder = Holder(self._leases, edge, self._cut_off)
        self._accounts: dict[str, Account] = {}
        self._open: dict[bytes, _Reservation] = {}
        self._fences: dict[bytes, int] = {}  # of those: what has a lower attempt is void

    async def start(self) -> None:
        """Returns when all registries are here. Raises like :meth:`Registry.start`."""
        await self._records.start(self._look, self._ledger_changed)
        await self._leases.start()

    async def stop(self) -> None:
        for account in self._accounts.values():
            if not account.void:
                try:
                    await account.close()
                except InferBusError as error:
                    log.warning("a grant was not given back", extra={"error": str(error)})
        if not self._open:
            await self._holder.give_back()
        await self._leases.stop()
        await self._records.stop()

    async def run(self) -> None:
        """Keep the lease and tend the accounts, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            try:
                for account in list(self._accounts.values()):
                    if self._holder.due:
                        await self._holder.renew()
                    await self._tend(account)
                if not self._accounts:
                    self._holder.rest()
            except InferBusError as error:
                # Without the broker nothing is accepted either; all of this is done again.
                log.warning("the lease on grants was not renewed", extra={"error": str(error)})
            self._forget(clock.monotonic() - _FORGET_SECONDS)

    def rate(
        self, key: KeyRecord, scope: Scope, operation: Operation.ValueType, priority: PriorityClass.ValueType,
        accepted_us: int,
    ) -> Rate | None:  # fmt: skip
        """The price in force; its version is empty if there is none. None: a record that may be meant is malformed."""
        book = self._records.book()
        return book.rate_at(scope, operation, priority, accepted_us) if is_readable(book, key, scope.model) else None

    def answering(self, model: str) -> list[str]:
        """Who may answer for ``model``: it first, then the fallbacks of its deployment."""
        return self._records.answering(model)

    # --- a call -----------------------------------------------------------------------------------------------------

    async def reserve(self, first: bytes, key: KeyRecord, plan: Plan, model: ModelRecord, accepted_us: int) -> None:
        """Reserve what the call ``first`` may cost, in every hard budget that it counts in, or in none.

        Raises InferBusError RESOURCE_EXHAUSTED ``insufficient_quota``; UNAVAILABLE if the bus is away, or if a price
        that may be meant is malformed.
        """
        of_tenant = self._records.hard().get(key.tenant_id)
        if of_tenant is None:
            return
        scopes = (
            ledgers.scope_of(key.tenant_id, key_id=key.key_id),
            ledgers.scope_of(key.tenant_id, key.project_id),
            ledgers.scope_of(key.tenant_id),
        )
        # A key without a project has the scope of its tenant twice.
        budgets = [budget for scope in dict.fromkeys(scopes) for budget in of_tenant.get(scope, ())]
        if not budgets:
            return
        need = self._need(budgets, key, plan, model, accepted_us)
        if need == ZERO:
            return
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                accounts = await self._with_room(budgets, need, accepted_us)
        except TimeoutError:
            raise unavailable(
                "budget_busy", "The budget is in great demand; retry.", retry_after=_RETRY_AFTER
            ) from None
        for account in accounts:
            account.hold(need)
        ids = {choice_id(first, choice) for choice in range(len(plan.requests))}
        reservation = _Reservation(need, tuple(accounts), ids, clock.monotonic())
        self._open.update(dict.fromkeys(ids, reservation))

    def refused(self, request_id: bytes) -> None:
        """One choice of a call was certainly not accepted: nothing of it can come onto the log, it costs nothing."""
        self._ended(request_id, ZERO)

    def on_frame(self, frame: Frame) -> None:
        """Settle what has ended. Never raises, never waits."""
        if self._open:
            for fence in frame.fences:
                if fence.request_id in self._open:
                    self._fences[fence.request_id] = max(fence.attempt, self._fences.get(fence.request_id, 0))
            for close in frame.closes:
                if close.request_id in self._open and close.attempt >= self._fences.get(close.request_id, 0):
                    cost = charge_of(self._records.book(), close, frame.contexts[close.context_index])
                    self._ended(close.request_id, cost)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _need(
        self, budgets: list[HardBudget], key: KeyRecord, plan: Plan, model: ModelRecord, accepted_us: int
    ) -> Decimal:
        """What the call may cost at most, whoever answers it. Raises InferBusError as :meth:`reserve`."""
        book = self._records.book()
        answers: list[tuple[Decimal, ...]] = []
        for name in self._records.answering(plan.model):
            answering = model if name == plan.model else self._model_of(name) or ModelRecord(name=name)
            if not is_readable(book, key, name):
                raise unreadable()
            rate = rate_of(book, key, plan, answering, accepted_us)
            answers.append(most_of(rate, bounds_of(plan, answering)))
            for one in budgets if any(answers[-1]) else ():
                if one.budget.currency != rate.currency:
                    raise other_currency(_kind(one.budget), one.budget.currency)
        return most_of_any(answers)

    async def _with_room(self, budgets: list[HardBudget], need: Decimal, accepted_us: int) -> list[Account]:
        """The budgets' accounts, each with that much free. What they have is to be held before the next await."""
        while True:
            if not self._holder.may_spend:
                await self._holder.renew()
            accounts = [self._account(one, accepted_us) for one in budgets]
            for one, account in zip(budgets, accounts, strict=True):
                if account.room < need:
                    raise exhausted(_kind(one.budget), reserved=account.room + account.reserved >= need)
            short = [account for account in accounts if account.free < need]
            if not short:
                return accounts
            await asyncio.gather(*(account.more(need) for account in short))

    def _account(self, hard: HardBudget, accepted_us: int) -> Account:
        period, name = hard.at(accepted_us)
        account = self._accounts.get(name)
        if account is None or account.void:

            def present() -> tuple[BudgetLedgerRecord, Decimal]:
                return self._records.present(hard.name, name)

            # Calls that came a little earlier may reserve a little later, and what was before the budget has no grant.
            since_us = max(self._holder.boot, hard.budget.update_time.ToMicroseconds(), accepted_us - _EARLIER_US)
            account = Account(name, period, present, self._records.ledgers, self._holder, since_us)
            self._accounts[name] = account
        return account

    async def _tend(self, account: Account) -> None:
        try:
            await account.tend()
        except InferBusError as error:  # of this one: the others are tended all the same
            log.warning("a grant was not tended", extra={"ledger": account.name, "error": str(error)})
        # A call may have made a new one of that name meanwhile, and hold something in it.
        if (account.void or account.over) and self._accounts.get(account.name) is account:
            del self._accounts[account.name]

    def _ended(self, request_id: bytes, cost: Decimal) -> None:
        self._fences.pop(request_id, None)
        reservation = self._open.pop(request_id, None)
        if reservation is None:
            return
        reservation.open.discard(request_id)
        reservation.cost += cost
        if reservation.open:
            return
        if reservation.cost > reservation.amount:
            log.error(
                "a call cost more than was reserved",
                extra={"cost": str(reservation.cost), "reserved": str(reservation.amount)},
            )
        for account in reservation.accounts:
            account.settle(reservation.amount, reservation.cost)

    def _forget(self, before: float) -> None:
        for request_id, reservation in list(self._open.items()):
            if reservation.since > before:
                return  # the others are younger
            self._ended(request_id, ZERO)

    # --- what changes -----------------------------------------------------------------------------------------------

    def _cut_off(self) -> None:
        """What was granted may have been taken away: the calls that run are settled by the meter, from the charges."""
        for account in self._accounts.values():
            account.void = True
        self._accounts.clear()

    def _ledger_changed(self, name: str) -> None:
        account = self._accounts.get(name)
        if account is not None:
            account.look()

    def _look(self) -> None:
        for account in self._accounts.values():
            account.look()


def _kind(budget: BudgetRecord) -> str:
    if budget.key_id:
        return "API key"
    return "project" if budget.project_id else "organization"

"""Budgets and credits over gRPC. Who may ask is the edge's business."""

from datetime import timedelta

import grpc
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord, BudgetPeriod, BudgetRecord, CreditRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import budgets_pb2_grpc
from inferbus.meter.v1.budgets_pb2 import (
    AddCreditRequest,
    AddCreditResponse,
    BudgetStatus,
    DeleteBudgetRequest,
    DeleteBudgetResponse,
    ListBudgetsRequest,
    ListBudgetsResponse,
    ListCreditsRequest,
    ListCreditsResponse,
    SetBudgetRequest,
    SetBudgetResponse,
)
from inferbus_bus.announcing import tell_made
from inferbus_bus.publish import Publisher
from inferbus_contracts.subjects import stream_spec
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.budget_alerts import event_of
from inferbus_meter.budgets import Budgets
from inferbus_meter.clickhouse import STORE_ERRORS, store_unavailable
from inferbus_meter.core.budget import checked_budget, checked_credit, same_credit, status_of

SERVICE_NAME = "inferbus.meter.v1.BudgetService"
# For so long the same event is stored once; half of it, since clocks and ways differ.
_TOLD_ONCE_US = stream_spec("AUDIT").duplicate_window // timedelta(microseconds=2)


class BudgetServicer(budgets_pb2_grpc.BudgetServiceServicer):
    """``webhooks``: there is a secret to sign them with."""

    def __init__(self, budgets: Budgets, publisher: Publisher, *, webhooks: bool) -> None:
        self._budgets = budgets
        self._publisher = publisher
        self._webhooks = webhooks

    async def SetBudget(  # noqa: N802 - gRPC's name
        self, request: SetBudgetRequest, context: "grpc.aio.ServicerContext[SetBudgetRequest, SetBudgetResponse]"
    ) -> SetBudgetResponse:
        budget = checked_budget(request.budget, webhooks=self._webhooks)
        name, now_us = ledgers.budget_name(budget), clock.now_us()
        known, revision = self._budgets.budgets.get(name), self._budgets.budgets.revision(name)
        budget.create_time.CopyFrom(clock.timestamp(now_us) if known is None else known.create_time)
        budget.update_time.CopyFrom(clock.timestamp(now_us))
        try:
            await self._open(budget, now_us, new=known is None)
            status = await self._status(budget, now_us)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        action = "budget.created" if known is None else "budget.updated"
        details: dict[str, object] = {
            "amount": budget.amount, "hard": budget.hard, "thresholds": list(budget.thresholds),
        }  # fmt: skip
        await self._budgets.budgets.update(name, budget, revision)
        event_id = f"audit_log-{name}-{now_us}"
        await tell_made(self._publisher, event_of(budget, action, event_id, now_us, details, request.actor_key_id))
        return SetBudgetResponse(status=status)

    async def DeleteBudget(  # noqa: N802
        self,
        request: DeleteBudgetRequest,
        context: "grpc.aio.ServicerContext[DeleteBudgetRequest, DeleteBudgetResponse]",
    ) -> DeleteBudgetResponse:
        scope = ledgers.scope_of(request.tenant_id, request.project_id, request.key_id)
        name = f"{scope}#{ledgers.PERIODS.get(request.period, '')}"
        known, now_us = self._budgets.budgets.get(name), clock.now_us()
        if known is None:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "budget_not_found", "There is no such budget.")
        # Before it is done: afterwards it could not be asked for again, if AUDIT could not be told.
        event_id = f"audit_log-{name}-{now_us}"
        await self._publisher.publish(event_of(known, "budget.deleted", event_id, now_us, {}, request.actor_key_id))
        await self._budgets.budgets.delete(name)
        return DeleteBudgetResponse()

    async def ListBudgets(  # noqa: N802
        self, request: ListBudgetsRequest, context: "grpc.aio.ServicerContext[ListBudgetsRequest, ListBudgetsResponse]"
    ) -> ListBudgetsResponse:
        now_us = clock.now_us()
        wanted = [
            one
            for _, one in sorted(self._budgets.budgets.items().items())
            if not request.tenant_id or one.tenant_id == request.tenant_id
        ]
        try:
            return ListBudgetsResponse(budgets=[await self._status(one, now_us) for one in wanted])
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error

    async def AddCredit(  # noqa: N802
        self, request: AddCreditRequest, context: "grpc.aio.ServicerContext[AddCreditRequest, AddCreditResponse]"
    ) -> AddCreditResponse:
        now_us = clock.now_us()
        credit = await self._paid_in(request.credit, now_us)
        # One that has just been paid in may not have been told of yet. Told twice in that time, it is there once.
        if now_us - credit.create_time.ToMicroseconds() < _TOLD_ONCE_US:
            await tell_made(self._publisher, _added(credit, request.actor_key_id))
        return AddCreditResponse(credit=credit)

    async def _paid_in(self, asked: CreditRecord, now_us: int) -> CreditRecord:
        """The credit: a new one, or the one that there is. Raises InferBusError."""
        known = self._budgets.credits.get(asked.credit_id)
        if known is not None and same_credit(known, asked):
            return known
        credit = checked_credit(asked, now_us)
        credit.create_time.CopyFrom(clock.timestamp(now_us))
        if known is not None:
            if same_credit(known, credit):
                return known
            raise _credit_exists()
        try:
            await self._budgets.credits.create(credit.credit_id, credit)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            other = await self._budgets.credit(credit.credit_id)  # the same was paid in at the same time, or another
            if not same_credit(other, credit):
                raise _credit_exists() from error
            return other
        return credit

    async def ListCredits(  # noqa: N802
        self, request: ListCreditsRequest, context: "grpc.aio.ServicerContext[ListCreditsRequest, ListCreditsResponse]"
    ) -> ListCreditsResponse:
        wanted = [
            one
            for one in self._budgets.credits.items().values()
            if not request.tenant_id or one.tenant_id == request.tenant_id
        ]
        wanted.sort(key=lambda one: (one.create_time.ToMicroseconds(), one.credit_id))
        return ListCreditsResponse(credits=wanted)

    async def _open(self, budget: BudgetRecord, now_us: int, *, new: bool) -> None:
        """What was spent in this period before it was a hard budget counts, too: its ledger says so before the edges
        know of it. A prepaid budget begins when it is made; one that was deleted and is made again goes on."""
        name, of, record, _ = self._budgets.present(budget, now_us)
        known, revision = self._budgets.ledgers.get(name), self._budgets.ledgers.revision(name)
        if new and of.period.end_us is None and not record.HasField("start_time"):
            record.start_time.CopyFrom(clock.timestamp(now_us))
        elif not budget.hard:
            return
        charged = await self._budgets.charged(of, record)
        made = ledgers.settling(record, charged, [False] * len(record.grants)) or record
        if made == (known or BudgetLedgerRecord()):
            return
        stored = await self._budgets.write(name, of.period, made, revision)
        await self._budgets.seen(name, stored)

    async def _status(self, budget: BudgetRecord, now_us: int) -> BudgetStatus:
        _, of, record, limit = self._budgets.present(budget, now_us)
        return status_of(budget, of.period, limit, record, await self._budgets.charged(of, record))


def _added(credit: CreditRecord, actor: str) -> AuditEvent:
    paid = BudgetRecord(
        tenant_id=credit.tenant_id, project_id=credit.project_id, key_id=credit.key_id, currency=credit.currency,
        period=BudgetPeriod.BUDGET_PERIOD_PREPAID,
    )  # fmt: skip
    details: dict[str, object] = {"credit_id": credit.credit_id, "amount": credit.amount, "note": credit.note}
    event_id = f"audit_log-credit-{credit.credit_id}"
    return event_of(paid, "credit.added", event_id, credit.create_time.ToMicroseconds(), details, actor)


def _credit_exists() -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_CONFLICT,
        "credit_exists",
        "There is another credit of that id. A credit is never changed: give this one an id of its own.",
        param="credit_id",
    )

"""What is told of budgets: changes and thresholds on AUDIT, and an alert for the webhook of each threshold."""

import json
import logging

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord, BudgetRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.core.budget import alert_lifetime

log = logging.getLogger(__name__)


class Alerts:
    def __init__(self, alerts: Registry[BudgetAlertRecord], publisher: Publisher) -> None:
        self._alerts = alerts
        self._publisher = publisher
        # Those that were told and for which there was no room.
        self._unstored: set[str] = set()

    async def tell(self, alert: BudgetAlertRecord, now_us: int) -> None:
        """Once, however often it is said. Raises InferBusError."""
        if self._alerts.get(alert.alert_id) is not None:
            return
        alert.create_time.CopyFrom(clock.timestamp(now_us))
        if alert.budget.webhook_url:
            alert.next_attempt_time.CopyFrom(clock.timestamp(now_us))
        # The event first: an alert that is stored is never told again.
        if alert.alert_id not in self._unstored:
            await self._publisher.publish(event_of(alert.budget, "budget.threshold_reached", alert.alert_id, now_us, {
                "threshold": alert.threshold, "amount": alert.amount, "spent": alert.spent,
            }))  # fmt: skip
        try:
            await self._alerts.create(alert.alert_id, alert, alert_lifetime(alert, now_us))
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                self._cannot_store(alert, error)
            elif error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            return
        self._unstored.discard(alert.alert_id)

    def _cannot_store(self, alert: BudgetAlertRecord, error: InferBusError) -> None:
        """Said once: it is tried again until there is room, and its webhook waits for that."""
        if alert.alert_id not in self._unstored:
            self._unstored.add(alert.alert_id)
            log.error(
                "an alert of a budget cannot be stored: it is on AUDIT, its webhook is not sent",
                extra={"alert_id": alert.alert_id, "tenant_id": alert.budget.tenant_id, "error": str(error)},
            )


def event_of(
    budget: BudgetRecord, action: str, event_id: str, now_us: int, details: dict[str, object], actor: str = ""
) -> AuditEvent:
    """For AUDIT: ``event_id`` is the same for the same event."""
    scope = ledgers.scope_of(budget.tenant_id, budget.project_id, budget.key_id)
    told = {"scope": scope, "period": ledgers.PERIODS[budget.period], "currency": budget.currency, **details}
    event = AuditEvent(
        event_id=event_id,
        actor_key_id=actor,
        tenant_id=budget.tenant_id,
        project_id=budget.project_id,
        action=action,
        target=ledgers.budget_name(budget),
        details=json.dumps(told),
    )
    event.event_time.CopyFrom(clock.timestamp(now_us))
    return event

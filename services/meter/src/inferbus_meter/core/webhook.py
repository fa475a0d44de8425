"""What a webhook of a budget says."""

import json

from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord
from inferbus_rating import ledger as ledgers


def body_of(alert: BudgetAlertRecord) -> bytes:
    """The same for each try."""
    budget = alert.budget
    data = {
        "tenant_id": budget.tenant_id,
        "project_id": budget.project_id or None,
        "key_id": budget.key_id or None,
        "period": ledgers.PERIODS[budget.period],
        "period_start": alert.period_start.ToJsonString() if alert.HasField("period_start") else None,
        "threshold": alert.threshold,
        "amount": alert.amount,
        "spent": alert.spent,
        "currency": budget.currency,
        "hard": budget.hard,
    }
    told = {"type": "budget.threshold_reached", "timestamp": alert.create_time.ToJsonString(), "data": data}
    return json.dumps(told, separators=(",", ":")).encode()

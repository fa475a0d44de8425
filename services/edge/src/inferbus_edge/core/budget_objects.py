"""Budgets as tenants see them, in the shape of OpenAI's other objects: nothing of the operator's webhooks."""

from typing import Any

from inferbus.bus.v1.registry_pb2 import BudgetPeriod
from inferbus.meter.v1.budgets_pb2 import BudgetStatus
from inferbus_rating.ledger import PERIODS, budget_name
from inferbus_runtime.errors import invalid

PERIOD_NAMES = tuple(PERIODS.values())


def period_name(given: Any) -> str:
    """``month`` as protobuf's JSON names it. Raises InferBusError INVALID_ARGUMENT."""
    for value, text in PERIODS.items():
        if given in (text, BudgetPeriod.Name(value)):
            return BudgetPeriod.Name(value)
    raise invalid(f"'period' is {', '.join(PERIOD_NAMES[:-1])} or {PERIOD_NAMES[-1]}.", param="period")


def budget_object(status: BudgetStatus) -> dict[str, Any]:
    budget = status.budget
    return {
        "object": "organization.budget",
        "id": budget_name(budget),
        "project_id": budget.project_id or None,
        "api_key_id": budget.key_id or None,
        "period": PERIODS[budget.period],
        "period_start": status.period_start.seconds if status.HasField("period_start") else None,
        "period_end": status.period_end.seconds if status.HasField("period_end") else None,
        "currency": budget.currency,
        "amount": status.amount,
        "spent": status.spent,
        "reserved": status.reserved,
        "left": status.left,
        "hard": budget.hard,
        "thresholds": list(budget.thresholds),
    }

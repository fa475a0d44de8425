"""Budgets are set, listed and deleted, and what is none is refused."""

import asyncio
from typing import Any

import pytest
from inferbus.bus.v1.registry_pb2 import BudgetRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.budgets_pb2 import DeleteBudgetRequest, ListBudgetsRequest
from inferbus_meter.core.budget import checked_budget
from inferbus_rating import ledger as ledgers
from inferbus_runtime.errors import InferBusError

from services.meter.tests.budgets.office import DAY, MONTH, PREPAID, refusal


async def test_budgets_are_set_listed_and_deleted(office) -> None:
    await office.set(amount="10", project_id="web")
    await office.set(amount="5", period=DAY, key_id="key_1")
    await office.set(amount="20", project_id="web", hard=True)
    listed = (await office.api.ListBudgets(ListBudgetsRequest())).budgets
    assert [(ledgers.budget_name(one.budget), one.amount) for one in listed] == [
        ("key:acme/key_1#day", "5"), ("project:acme/web#month", "20"),
    ]  # fmt: skip
    asked = DeleteBudgetRequest(tenant_id="acme", key_id="key_1", period=DAY, actor_key_id="key_op")
    await office.api.DeleteBudget(asked)
    async with asyncio.timeout(30):
        while len(office.budgets.budgets.items()) > 1:
            await asyncio.sleep(0.01)
    assert (await refusal(office.api.DeleteBudget(asked)))[:2] == (
        ErrorClass.ERROR_CLASS_NOT_FOUND, "budget_not_found",
    )  # fmt: skip
    assert [one.actor_key_id for one in await office.events("budget.deleted")] == ["key_op"]
    assert len(await office.events("budget.updated")) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tenant_id": ""}, "tenant_id"), ({"tenant_id": "a/b"}, "tenant_id"), ({"amount": ""}, "amount"),
        ({"amount": "-1"}, "amount"), ({"amount": "1e3000000"}, "amount"), ({"amount": "NaN"}, "amount"),
        ({"period": 0}, "period"), ({"currency": "usd"}, "currency"), ({"thresholds": ["0"]}, "thresholds"),
        ({"thresholds": ["NaN"]}, "thresholds"), ({"webhook_url": "file:///etc/passwd"}, "webhook_url"),
        ({"project_id": "web", "key_id": "key_1"}, "key_id"), ({"period": PREPAID}, "amount"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused_by_its_field(fields: dict[str, Any], param: str) -> None:
    budget = BudgetRecord(**{"tenant_id": "acme", "period": MONTH, "currency": "USD", "amount": "1", **fields})
    with pytest.raises(InferBusError) as refused:
        checked_budget(budget, webhooks=True)
    assert (refused.value.error_class, refused.value.param) == (ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, param)


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port/", "ftp://host/", "http://host:99999/"])
def test_what_is_no_url_is_refused_as_one(url: str) -> None:
    with pytest.raises(InferBusError) as refused:
        checked_budget(
            BudgetRecord(tenant_id="a", period=MONTH, currency="USD", amount="1", webhook_url=url), webhooks=True
        )
    assert refused.value.param == "webhook_url"

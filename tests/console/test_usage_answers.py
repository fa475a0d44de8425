"""Answers that come in another order than they were asked for, or not at all: what is shown is of the choice that is
shown, and what there is to choose from is not silently missing."""

import asyncio
import json

import pytest
from playwright.async_api import Route, expect

from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("budgets", {"budgets": [{"budget": {"tenant_id": "TENANT", "period": "BUDGET_PERIOD_MONTH"}}]}),
        ("invoices", {"invoices": [{"number": "INV-TENANT", "tenant_id": "TENANT", "month": "2026-11"}]}),
    ],
)
@pytest.mark.usefixtures("traffic")
async def test_a_slow_answer_about_another_tenant_is_not_shown(
    console: Visit, stack: Stack, keys: Keys, part: str, answer: dict[str, object]
) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def answered(route: Route) -> None:
        tenant = "globex" if "tenant=globex" in route.request.url else "acme"
        if tenant == "acme":
            await first.wait()
        body = str(answer).replace("'", '"').replace("TENANT", tenant)
        # A question that was taken back has nobody to answer.
        with_nobody = route.fulfill(status=200, content_type="application/json", body=body)
        await asyncio.gather(with_nobody, return_exceptions=True)
        if tenant == "acme":
            second.set()

    async with console(keys.admin) as page:
        await page.route(f"**/inferbus/v1/{part}?*", answered)
        await page.goto(f"{stack.root_url}/console/#/usage/{part}?tenant=acme")
        field = page.get_by_label("Tenant")
        await expect(field.locator("option", has_text="Globex")).to_have_count(1)
        await field.select_option("globex")
        shown = page.locator("tbody")
        await expect(shown.first).to_contain_text("globex")
        first.set()
        await second.wait()
        await page.evaluate("new Promise((seen) => setTimeout(seen, 50))")
        await expect(shown.first).to_contain_text("globex")
        await expect(page.get_by_text("acme", exact=True)).to_have_count(0)


@pytest.mark.parametrize(
    ("part", "asked", "listed"),
    [
        ("usage/report", "/inferbus/v1/tenants", "Globex"),
        ("usage/budgets", "/inferbus/v1/tenants", "Globex"),
        ("usage/invoices", "/inferbus/v1/tenants", "Globex"),
        ("analytics", "/inferbus/v1/analytics/values?*", "globex"),
    ],
)
@pytest.mark.usefixtures("traffic")
async def test_choices_that_cannot_be_listed_are_said_to_be(
    console: Visit, stack: Stack, keys: Keys, part: str, asked: str, listed: str
) -> None:
    error = {"error": {"message": "The registry is away.", "type": "server_error", "code": "away"}}
    async with console(keys.admin, expected=(503,)) as page:
        pattern = f"**{asked}"
        await page.route(pattern, lambda route: route.fulfill(status=503, body=json.dumps(error)))
        await page.goto(f"{stack.root_url}/console/#/{part}?from=-1h")
        alert = page.locator(".filters").get_by_role("alert")
        await expect(alert).to_contain_text("The registry is away.")
        await page.unroute(pattern)
        await alert.get_by_role("button", name="Try again").click()
        await expect(page.locator("select[name=tenant] option", has_text=listed)).to_have_count(1)
        await expect(alert).to_have_count(0)


@pytest.mark.usefixtures("traffic")
async def test_a_page_asks_for_no_more_at_once_than_a_tenant_may_and_again_when_it_is_told_to(
    console: Visit, stack: Stack, keys: Keys
) -> None:
    running, most, refused = 0, 0, 0
    busy = {"error": {"message": "Too many.", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}

    async def answered(route: Route) -> None:
        nonlocal running, most, refused
        running += 1
        most = max(most, running)
        if refused < 2:
            refused += 1
            await route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps(busy))
        else:
            await route.continue_()
        running -= 1

    async with console(keys.tenant, expected=(429,)) as page:
        await page.route("**/v1/organization/analytics?*", answered)
        await page.goto(f"{stack.root_url}/console/#/analytics?from=-1h")
        await expect(page.locator(".stat").first).to_be_visible()
        await expect(page.locator("[aria-busy]")).to_have_count(0)
        await expect(page.get_by_role("alert")).to_have_count(0)
    assert refused == 2
    assert most <= 3

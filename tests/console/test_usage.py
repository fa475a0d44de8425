"""The pages about usage and cost: what they show is what the API says, of the role's own."""

import asyncio
import csv
import io
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from inferbus_meter.core.invoice import minor_units
from playwright.async_api import Page, expect

from tests.console.browsing import WIDTHS, picture, unreadable
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack

# Without IQD: ISO 4217 gives it three, which nobody uses; browsers show what is used.
OTHER_DECIMALS = (
    "BHD", "BIF", "CLF", "CLP", "DJF", "GNF", "ISK", "JOD", "JPY", "KMF", "KRW", "KWD", "LYD", "OMR", "PYG",
    "RWF", "TND", "UGX", "UYI", "UYW", "VND", "VUV", "XAF", "XOF", "XPF",
)  # fmt: skip


async def opened(page: Page, stack: Stack, address: str) -> None:
    """The page at ``address``, with what it asks for."""
    await page.goto(f"{stack.root_url}/console/#/{address}")
    await expect(page.get_by_role("heading", name="Usage and cost")).to_be_visible()
    await expect(page.get_by_role("status")).to_have_count(0)


async def figure(page: Page, label: str) -> str:
    shown = page.locator(".stat", has=page.get_by_text(label, exact=True)).locator(".stat-value")
    return str(await shown.text_content())


async def first_column(page: Page) -> list[str]:
    return [text.strip() for text in await page.locator("tbody td:first-child").all_text_contents()]


@pytest.mark.usefixtures("traffic", "budget")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_operators_pages(
    console: Visit, stack: Stack, keys: Keys, pictures: Path, width: int, dark: bool
) -> None:
    async with console(keys.admin, width=width, dark=dark) as page:
        for part in ("report", "budgets", "invoices", "margin"):
            await opened(page, stack, f"usage/{part}?by=project&from=-1h")
            await expect(page.locator(".panel").last).to_be_visible()
            assert await unreadable(page) == []
            await picture(page, pictures, f"usage_{part}_{width}_{'dark' if dark else 'light'}")


@pytest.mark.parametrize("width", WIDTHS)
async def test_a_tenant_sees_its_own_and_nothing_of_others(
    console: Visit, stack: Stack, keys: Keys, traffic: int, budget: str, pictures: Path, width: int
) -> None:
    async with console(keys.tenant, width=width) as page:
        await opened(page, stack, "usage/report?by=project&from=-1h")
        await expect(page.locator(".stats")).to_be_visible()
        assert await figure(page, "Requests") == str(traffic)
        assert sorted(await first_column(page)) == ["search", "web"]
        assert "secret-project" not in await page.content()
        assert await page.get_by_label("Tenant").count() == 0
        assert await unreadable(page) == []
        await picture(page, pictures, f"usage_tenant_{width}")
        await opened(page, stack, "usage/budgets")
        await expect(page.get_by_role("cell", name="the whole organization")).to_be_visible()
        await expect(page.get_by_role("heading", name="Credits")).to_have_count(0)


@pytest.mark.parametrize("role", ["admin", "tenant"])
async def test_costs_are_the_apis_to_the_last_digit(
    console: Visit, stack: Stack, keys: Keys, traffic: int, role: str
) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
        rows = (await http.get(f"{stack.root_url}/inferbus/v1/costs?tenant=acme")).json()["rows"]
    (amount,) = [row["amount"] for row in rows]
    async with console(getattr(keys, role)) as page:
        await opened(page, stack, "usage/report?from=-1h" + ("&tenant=acme" if role == "admin" else ""))
        await expect(page.locator(".stats")).to_be_visible()
        shown = str(await page.locator("tbody td").last.text_content())
        assert shown.replace(",", "") == f"{amount.rstrip('0')}"


async def test_grouping_is_kept_in_the_address_and_goes_into_the_file(
    console: Visit, stack: Stack, keys: Keys, traffic: int
) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack, "usage/report?from=-1h")
        await page.get_by_label("Group by").select_option("user")
        await expect(page.get_by_role("heading", name="By end user")).to_be_visible()
        assert sorted(await first_column(page)) == ["ann", "bob"]
        assert "by=user" in page.url
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Export CSV").click()
        saved = await (await waiting.value).path()
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(Path(saved).read_text())))
        usage = [row for row in rows if row["what"] == "usage"]
        assert sum(int(row["requests"]) for row in usage) == traffic
        assert {row["user"] for row in rows} == {"ann", "bob"}
        await page.reload()
        await expect(page.get_by_role("heading", name="By end user")).to_be_visible()


@pytest.mark.parametrize(("by", "groups"), [("model", ["synthetic"]), ("tags", ["team=ann", "team=bob"])])
async def test_other_groups(console: Visit, stack: Stack, keys: Keys, traffic: int, by: str, groups: list[str]) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack, f"usage/report?from=-1h&by={by}")
        await expect(page.locator(".stats")).to_be_visible()
        assert sorted(await first_column(page)) == groups


async def test_a_range_of_ones_own_and_an_empty_one(console: Visit, stack: Stack, keys: Keys, traffic: int) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "usage/report?from=-1h")
        await page.get_by_role("button", name="Custom").click()
        await page.get_by_label("From (UTC)").fill("2020-01-01T00:00")
        await page.get_by_label("To (UTC)").fill("2020-01-02T00:00")
        await page.get_by_role("button", name="Apply").click()
        await expect(page.get_by_text("Nothing was used in this range.")).to_be_visible()
        assert "from=1577836800" in page.url
        await page.get_by_role("button", name="1h", exact=True).click()
        await expect(page.get_by_role("cell", name="all")).to_be_visible()


async def test_a_plot_says_the_values_under_the_cursor(console: Visit, stack: Stack, keys: Keys, traffic: int) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack, "usage/report?from=-15m&by=project")
        keys_of = page.locator(".plot .plot-name")
        assert await keys_of.all_text_contents() == ["web", "search"] * 3  # one group has one colour in all plots
        plot = page.locator(".plot").first
        await expect(plot.locator("canvas")).to_be_visible()
        await plot.locator(".u-over").hover(position={"x": 5, "y": 20})
        await expect(plot.locator(".plot-value").first).to_have_text("0")
        await plot.get_by_role("button", name="search").click()
        await expect(plot.locator(".plot-key.is-off")).to_have_count(1)


@pytest.mark.usefixtures("traffic")
async def test_what_a_tenant_owes_so_far(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin, expected=(400,)) as page:
        await opened(page, stack, "usage/margin?tenant=acme&from=-1h")
        await page.get_by_role("link", name="Invoices").click()
        await expect(page.get_by_role("heading", name="Issued")).to_be_visible()
        assert page.url.endswith("#/usage/invoices?from=-1h&tenant=acme")  # which stay from part to part
        await expect(page.get_by_role("heading", name="Draft of")).to_be_visible()
        await expect(page.locator(".badge", has_text="draft")).to_be_visible()
        await page.get_by_label("Month").fill("never")
        await page.get_by_label("Month").press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("month")  # in the API's own words
        await expect(page.get_by_role("button", name="Try again")).to_be_visible()


@pytest.mark.usefixtures("traffic")
async def test_the_margin_says_what_it_does_not_know(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "usage/margin?from=-7d")
        for column in ("GPU-hours up", "Busy", "Utilisation"):
            await expect(page.get_by_role("columnheader", name=column, exact=True)).to_be_visible()
        await expect(page.get_by_text("No meter watched for")).to_be_visible()  # the stack has not been up for a week


async def test_money_is_exact_in_the_browser_too(console: Visit, stack: Stack) -> None:
    """Sums and roundings against Python's decimals."""
    draw = random.Random(5)
    lists = [[_amount(draw) for _ in range(draw.randint(0, 9))] for _ in range(200)]
    roundings = [(_amount(draw), draw.randint(2, 8)) for _ in range(300)] + [("0.125", 2), ("0.135", 2), ("9.995", 2)]
    async with console() as page:
        await page.goto(f"{stack.root_url}/console/")
        sums = await page.evaluate(
            "async (lists) => { const { sum } = await import('/console/lib/decimal.js'); return lists.map(sum); }",
            lists,
        )
        rounded = await page.evaluate(
            "async (all) => { const { amountOf } = await import('/console/lib/format.js');"
            " return all.map(([amount, places]) => amountOf(amount, 'USD', places)); }",
            roundings,
        )
    assert [Decimal(found) for found in sums] == [sum(map(Decimal, amounts), Decimal(0)) for amounts in lists]
    wanted = [Decimal(amount).quantize(Decimal(1).scaleb(-places)) for amount, places in roundings]
    assert [Decimal(found.replace(",", "")) for found in rounded] == wanted


async def test_money_has_the_decimals_of_its_currency(console: Visit, stack: Stack) -> None:
    shown = {
        ("1234", "USD"): "1,234.00 USD", ("-0.5", "EUR"): "-0.50 EUR", ("0.000015", "USD"): "0.000015 USD",
        ("1234", "JPY"): "1,234 JPY", ("1234.000000000000", "KRW"): "1,234 KRW", ("0.25", "JPY"): "0.25 JPY",
        ("1.5", "KWD"): "1.500 KWD", ("-7", "TND"): "-7.000 TND", ("2", "POINTS"): "2.00 POINTS", ("3", "jpy"): "3 JPY",
    }  # fmt: skip
    async with console() as page:
        await page.goto(f"{stack.root_url}/console/")
        found = await page.evaluate(
            "async (all) => { const { money } = await import('/console/lib/format.js');"
            " return all.map(([amount, currency]) => money(amount, currency)); }",
            list(shown),
        )
        places = await page.evaluate(
            "async (all) => { const { amountOf } = await import('/console/lib/format.js');"
            " return all.map((currency) => amountOf('1', currency)); }",
            sorted(OTHER_DECIMALS),
        )
    assert found == list(shown.values())
    # The same as on an invoice.
    assert places == [f"{1:.{minor_units(currency)}f}" for currency in sorted(OTHER_DECIMALS)]


async def test_a_spreadsheet_runs_nothing_of_a_tenants_words(console: Visit, stack: Stack) -> None:
    words = ["=1+1", "+a", "-b", "@c", 'x"y,z', "-12.5", "two\nlines", "plain", "a;=1+1", "a\t=1+1"]
    async with console() as page:
        await page.goto(f"{stack.root_url}/console/")
        text = await page.evaluate(
            "async (words) => { const { csv } = await import('/console/lib/csv.js');"
            " return csv([['word', (word) => word]], words).text(); }",
            words,
        )
    found = [row["word"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert found == ["'=1+1", "'+a", "'-b", "'@c", 'x"y,z', "-12.5", "two\nlines", "plain", "a;=1+1", "a\t=1+1"]
    # Whatever a spreadsheet parts cells at.
    for separator in (";", "\t"):
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        assert not [cell for row in rows for cell in row if cell.startswith("=")]


def _amount(draw: random.Random) -> str:
    places = draw.randint(0, 12)
    return f"{Decimal(draw.randint(-(10**14), 10**14)).scaleb(-places):f}"


@pytest.fixture(scope="session")
async def budget(stack: Stack, keys: Keys) -> str:
    """Of the tenant "acme": one of which most is spent, and credits."""
    wanted = {
        "tenant_id": "acme", "period": "month", "currency": "USD", "amount": "0.0001", "thresholds": ["0.5", "0.8"],
    }  # fmt: skip
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
        (await http.put(f"{stack.root_url}/inferbus/v1/budgets", json=wanted)).raise_for_status()
        credit = {"credit_id": "c1", "tenant_id": "acme", "currency": "USD", "amount": "25.00", "note": "Invoice 7"}
        (await http.post(f"{stack.root_url}/inferbus/v1/credits", json=credit)).raise_for_status()
        for kind in ("budgets", "credits"):  # the meter has them
            while not (await http.get(f"{stack.root_url}/inferbus/v1/{kind}")).json().get(kind):
                await asyncio.sleep(0.05)
    return "month"

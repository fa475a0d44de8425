"""The analytics page: what it shows is what the API says, each panel for itself, and of the role's own."""

import re
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any

import httpx2 as httpx
import pytest
from playwright.async_api import Page, expect

from tests.console.browsing import WIDTHS, picture, unreadable
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack

OPERATORS, TENANTS = 18, 13
MEASURE = re.compile(r"/analytics\?measure=(\w+)")


async def opened(page: Page, stack: Stack, query: str) -> None:
    await page.goto(f"{stack.root_url}/console/#/analytics?{query}")
    await expect(page.get_by_role("heading", name="Analytics")).to_be_visible()
    await settled(page)


async def settled(page: Page) -> None:
    """Every panel has its answer."""
    await expect(page.locator(".stat").first).to_be_visible()
    await expect(page.locator("[aria-busy]")).to_have_count(0)
    await expect(page.get_by_role("status")).to_have_count(0)


def panel(page: Page, title: str) -> Any:
    return page.locator(".panel", has=page.get_by_role("heading", name=title, exact=True))


def chooser(page: Page, name: str) -> Any:
    return page.locator(f"select[name={name}]")


async def figure(page: Page, label: str, part: str = "value") -> str:
    stat = page.locator(".stat", has=page.get_by_text(label, exact=True))
    return str(await stat.locator(f".stat-{part}").text_content())


async def told(stack: Stack, key: str, query: dict[str, str]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        answer = await http.get(f"{stack.root_url}/inferbus/v1/analytics", params=query)
        answer.raise_for_status()
        rows: list[dict[str, Any]] = answer.json().get("rows", [])
        return rows


def moments() -> tuple[int, int]:
    """A range that has ended, so that it does not change any more: whole minutes, up to the present one."""
    end = int(time()) // 60 * 60 + 60
    return end - 7200, end


@pytest.mark.parametrize("width", WIDTHS)
async def test_the_operators_page(
    console: Visit, stack: Stack, keys: Keys, traffic: int, pictures: Path, width: int
) -> None:
    async with console(keys.admin, width=width) as page:
        await opened(page, stack, "from=-1h&by=tenant")
        await expect(page.locator(".plot")).to_have_count(OPERATORS)
        for head in await page.locator(".plot .panel-head").all():
            assert await head.locator("h3").text_content()
            assert await head.locator(".plot-unit").text_content()
        assert await page.locator(".plot-note").filter(visible=True).count() == OPERATORS
        await expect(panel(page, "Requests").locator("canvas")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"analytics_{width}_light")
        await page.get_by_role("button", name="Dark colours").click()
        await expect(page.get_by_role("button", name="Light colours")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"analytics_{width}_dark")


async def test_a_tenant_sees_its_own_and_no_machine(
    console: Visit, stack: Stack, keys: Keys, traffic: int, pictures: Path
) -> None:
    async with console(keys.tenant, width=390, dark=True) as page:
        asked: set[str] = set()
        page.on("request", lambda request: asked.update(MEASURE.findall(request.url)))
        await opened(page, stack, "from=-1h&by=project")
        await expect(page.locator(".plot")).to_have_count(TENANTS)
        assert "ttft" in asked
        assert not {"interruptions", "billing_lag", "energy", "output"} & asked
        content = await page.content()
        for hidden in ("globex", "secret-project", "worker-0"):
            assert hidden not in content
        assert {"web", "search"} <= set(await panel(page, "By project").locator("tbody button").all_text_contents())
        for name, there in (("tenant", 0), ("worker", 0), ("model", 1)):
            await expect(chooser(page, name)).to_have_count(there)
        assert await unreadable(page) == []
        await picture(page, pictures, "analytics_tenant")


async def test_figures_and_groups_are_the_apis(console: Visit, stack: Stack, keys: Keys, traffic: int) -> None:
    start, end = moments()
    async with console(keys.admin) as page:
        asked = {"measure": "requests", "start": iso(start), "end": iso(end)}
        before = await told(stack, keys.admin, asked)
        await opened(page, stack, f"from={start}&to={end}")
        noted = int((await figure(page, "Requests", "note")).split()[0].replace(",", ""))
        after = await told(stack, keys.admin, asked)
        assert before[0]["numbers"]["requests"] <= noted <= after[0]["numbers"]["requests"]
        assert "ms" in await figure(page, "First token, P99")
        assert (await figure(page, "Failed")).startswith("0")
        row = panel(page, "By model").locator("tbody tr", has_text="synthetic")
        cell = (await row.locator("td").all_text_contents())[1]
        assert before[0]["numbers"]["requests"] <= int(cell) <= after[0]["numbers"]["requests"]


async def test_a_group_narrows_the_page(console: Visit, stack: Stack, keys: Keys, traffic: int) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "from=-1h")
        await chooser(page, "by").select_option("tenant")
        await expect(panel(page, "By tenant").locator("tbody tr")).not_to_have_count(1)
        await panel(page, "By tenant").get_by_role("button", name="acme", exact=True).click()
        await expect(panel(page, "By tenant").locator("tbody tr")).to_have_count(1)
        await expect(chooser(page, "tenant")).to_have_value("acme")
        assert "tenant=acme" in page.url
        options = await chooser(page, "tenant").locator("option").all_text_contents()
        assert {"all", "acme", "globex"} <= set(options)


async def test_a_panel_that_fails_says_why_and_the_others_live_on(
    console: Visit, stack: Stack, keys: Keys, traffic: int
) -> None:
    async with console(keys.admin, expected=(400,)) as page:
        await opened(page, stack, "from=-1h&ttft=soon&class=interactive")
        await expect(panel(page, "Goodput").get_by_role("alert")).to_contain_text("'ttft_target' is a duration")
        await expect(panel(page, "Inter-token latency")).to_contain_text("A token does not know its class")
        await expect(panel(page, "Requests").locator("canvas")).to_be_visible()
        await expect(panel(page, "Time to first token").locator("canvas")).to_be_visible()
        await page.get_by_label("Target: TTFT").fill("1m")
        await page.get_by_label("Target: TTFT").press("Enter")
        await expect(panel(page, "Goodput").locator("canvas")).to_be_visible()
        assert await unreadable(page) == []


async def test_an_empty_range_says_so(console: Visit, stack: Stack, keys: Keys, traffic: int, pictures: Path) -> None:
    async with console(keys.admin, width=390) as page:
        await opened(page, stack, "from=1577836800&to=1577923200")
        await expect(page.locator(".plot-empty")).to_have_count(OPERATORS)
        assert await figure(page, "First token, P99") == "–"
        assert await page.get_by_text("Nothing in this range.").count() == OPERATORS + 2
        assert await unreadable(page) == []
        await picture(page, pictures, "analytics_empty")


async def test_the_slowest_requests_lead_to_theirs(console: Visit, stack: Stack, keys: Keys, traffic: int) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack, "from=-1h")
        link = panel(page, "The slowest requests").get_by_role("link").first
        request_id = await link.text_content()
        await link.click()
        await expect(page).to_have_url(re.compile(rf"#/requests/{request_id}$"))
        await expect(page.get_by_text(str(request_id)).first).to_be_visible()


async def test_the_slowest_requests_are_of_what_the_page_is_narrowed_to(
    console: Visit, stack: Stack, keys: Keys, traffic: int
) -> None:
    # A token does not know its class: its gaps are refused.
    async with console(keys.tenant, expected=(400,)) as page:
        slowest = panel(page, "The slowest requests")
        await opened(page, stack, "from=-1h&class=interactive")
        await expect(slowest.locator("tbody a").first).to_be_visible()
        for other in ("class=batch", "class=interactive&revision=another"):
            await opened(page, stack, f"from=-1h&{other}")
            await expect(slowest.get_by_text("Nothing in this range.")).to_be_visible()
            await expect(slowest.locator("tbody a")).to_have_count(0)


async def test_a_live_page_asks_anew_and_a_range_is_drawn_with_the_mouse(
    console: Visit, stack: Stack, keys: Keys, traffic: int
) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack, "from=-15m")
        async with page.expect_response(lambda answer: "measure=requests" in answer.url) as waiting:
            await page.get_by_role("button", name="Live").click()
        assert (await waiting.value).status == 200
        await settled(page)
        assert "live=1" in page.url
        await page.get_by_role("button", name="Live").click()
        over = panel(page, "Requests").locator(".u-over")
        await over.hover(position={"x": 20, "y": 40})
        await page.mouse.down()
        await over.hover(position={"x": 120, "y": 40})
        await page.mouse.up()
        await expect(page).to_have_url(re.compile(r"from=\d{10}&to=\d{10}"))
        await settled(page)


def iso(unix_seconds: int) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat().replace("+00:00", "Z")

"""The console's frame: signing in, what each role sees, colours, the brand of a domain."""

import asyncio
import base64
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from playwright.async_api import Browser, Page, expect

from tests.console.browsing import picture, unreadable, visit
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack

LOGO = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="4" fill="#0b6e4f"/></svg>'


async def titles(page: Page) -> list[str]:
    return await page.locator(".bar nav a").all_text_contents()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
async def test_the_login_page(console: Visit, stack: Stack, pictures: Path, width: int, dark: bool) -> None:
    async with console(width=width, dark=dark) as page:
        await page.goto(f"{stack.root_url}/console")
        await expect(page.get_by_label("API key")).to_be_focused()
        await expect(page.get_by_text("not encrypted")).to_have_count(0)
        assert page.url == f"{stack.root_url}/console/"
        assert await unreadable(page) == []
        await picture(page, pictures, f"login_{width}_{'dark' if dark else 'light'}")


async def test_signing_in_and_out(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(expected=(401,)) as page:
        await page.goto(f"{stack.root_url}/console/#/usage/budgets")
        await page.get_by_label("API key").fill("ib-nonsense")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("not valid")
        await page.get_by_label("API key").fill(keys.tenant)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Usage and cost")).to_be_visible()
        assert page.url.endswith("#/usage/budgets")  # where he wanted to go
        await page.reload()
        await expect(page.get_by_role("heading", name="Usage and cost")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API key")).to_have_value("")
        assert await page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])") == "[{},{}]"


async def test_a_key_that_is_revoked_leads_back_to_the_login(console: Visit, stack: Stack, keys: Keys) -> None:
    secret = await stack.new_key(tenant_id="acme", project_id="web", scopes=["tenant_admin"], name="gone soon")
    async with console(secret, expected=(401,)) as page:
        await page.goto(f"{stack.root_url}/console/#/usage/budgets")
        await expect(page.get_by_role("heading", name="Budgets")).to_be_visible()
        await _revoke(stack, secret)
        await page.get_by_role("link", name="Invoices").click()
        await expect(page.get_by_role("alert")).to_contain_text("revoked")
        await expect(page.get_by_label("API key")).to_be_visible()


async def test_each_role_is_led_to_what_it_may_see(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await page.goto(f"{stack.root_url}/console/#/usage/budgets")
        await expect(page.locator(".role")).to_have_text("operator")
        assert "Brands" in await titles(page)
    async with console(keys.tenant) as page:
        await page.goto(f"{stack.root_url}/console/#/usage/margin")
        await expect(page.get_by_role("link", name="Invoices")).to_be_visible()
        assert "Brands" not in await titles(page)
        await expect(page.get_by_role("link", name="Margin")).to_have_count(0)


async def test_a_key_for_inference_sees_its_projects_batches_and_asks_models(
    console: Visit, stack: Stack, keys: Keys
) -> None:
    async with console() as page:
        await page.goto(f"{stack.root_url}/console/#/usage/budgets")
        await page.get_by_label("API key").fill(keys.caller)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
        assert page.url.endswith("#/batches")
        assert await titles(page) == ["Batches", "Playground"]
        await expect(page.locator(".role")).to_have_text("acme · web")


async def test_colours_are_chosen_and_kept(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await page.goto(f"{stack.root_url}/console/#/usage/budgets")
        light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.get_by_role("button", name="Dark colours").click()
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        await page.reload()
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


async def test_nothing_that_the_api_says_becomes_markup(console: Visit, stack: Stack, keys: Keys) -> None:
    name = "<img src=x onerror=document.title='broken'><b>bold</b>"
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
        url = f"{stack.root_url}/inferbus/v1/tenants"
        (await http.post(url, json={"tenant_id": "hostile", "name": name})).raise_for_status()
    async with console(keys.admin) as page:
        await page.goto(f"{stack.root_url}/console/#/brand?tenant=hostile")
        await expect(page.get_by_role("heading", name="A new brand")).to_be_visible()
        assert f"{name} (hostile)" in await page.locator("option").all_text_contents()
        assert await page.locator("b").count() == 0
        assert "broken" not in await page.title()


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
async def test_the_brand_page(console: Visit, stack: Stack, keys: Keys, pictures: Path, width: int, dark: bool) -> None:
    async with console(keys.admin, width=width, dark=dark) as page:
        await page.goto(f"{stack.root_url}/console/#/brand?tenant=globex")
        await expect(page.get_by_role("button", name="Save")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"brand_{width}_{'dark' if dark else 'light'}")


async def test_a_brand_is_made_seen_and_shown_under_its_domain(
    console: Visit, stack: Stack, keys: Keys, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "logo.svg").write_bytes(LOGO)
    async with console(keys.admin, expected=(400,)) as page:
        await page.goto(f"{stack.root_url}/console/#/brand?tenant=acme")
        await page.get_by_label("Name").fill("Acme AI")
        await page.get_by_label("Domain").fill("localhost")
        await page.get_by_label("Logo").set_input_files(tmp_path / "logo.svg")
        await page.get_by_label("Accent on light ground, as #2456c7").fill("#ffee00")
        await expect(page.get_by_text("Contrast 1.1 to 1")).to_be_visible()
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("alert")).to_contain_text("choose a darker colour")
        await page.get_by_label("Accent on light ground, as #2456c7").fill("#0b6e4f")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
        await picture(page, pictures, "brand_edited")
    port = urlsplit(stack.root_url).port
    async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(60):
        while (await http.get(f"http://localhost:{port}/console/brand.json")).json()["display_name"] != "Acme AI":
            await asyncio.sleep(0.05)
        assert (await http.get(f"{stack.root_url}/console/brand.json")).json()["display_name"] == "InferBus"


async def test_a_visitor_of_the_domain_sees_the_brand_before_he_signs_in(
    browser: Browser, stack: Stack, keys: Keys, pictures: Path
) -> None:
    brand = {
        "display_name": "Globex Intelligence", "domain": "globex.console.test", "accent_light": "#7a1f5c",
        "logo": base64.b64encode(LOGO).decode(),
    }  # fmt: skip
    root = f"http://globex.console.test:{urlsplit(stack.root_url).port}"
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
        await http.delete(f"{stack.root_url}/inferbus/v1/tenants/acme/brand")
        path = f"{stack.root_url}/inferbus/v1/tenants/globex/brand"
        (await http.put(path, json=brand)).raise_for_status()
        async with visit(browser, root) as page:
            await page.goto(f"{root}/console/")
            await expect(page.get_by_text("Globex Intelligence")).to_be_visible()
            assert await page.title() == "Globex Intelligence"
            await expect(page.get_by_text("This connection is not encrypted")).to_be_visible()
            assert str(await page.locator(".brand img").get_attribute("src")).startswith("data:image/svg+xml;base64,")
            button = page.get_by_role("button", name="Sign in")
            assert await button.evaluate("(one) => getComputedStyle(one).backgroundColor") == "rgb(122, 31, 92)"
            assert await unreadable(page) == []
            await picture(page, pictures, "login_branded")
        (await http.delete(path)).raise_for_status()


async def _revoke(stack: Stack, secret: str) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=60) as http:
        own = (await http.get(f"{stack.root_url}/inferbus/v1/key")).json()["key"]["key_id"]
        admin = {"Authorization": f"Bearer {stack.admin_key}"}
        (await http.delete(f"{stack.root_url}/inferbus/v1/keys/{own}", headers=admin)).raise_for_status()
